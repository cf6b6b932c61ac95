"""The wheel with what a request passes through compiled by mypyc: `make up COMPILED=1`.

The same sources, the same behaviour, no other language: mypyc (the compiler of mypy and black) turns typed
modules into C extensions. What is not listed stays Python beside it. Off unless
HATCH_BUILD_HOOK_ENABLE_CUSTOM=1, since it needs a C compiler and a minute or two
(docs/decisions/0005-a-compiled-build.md).

Own glue and not hatch-mypyc, which compiles inside the source tree, where an editable install would pick up
stale extensions, and which takes packages from one directory only (we have three).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES = {
    "kvstore/core": (
        "changes hashing leads quorum reading record register ring topology version window witness writing"
    ),
    "kvstore/wire": "codec messages options peer_messages register_messages results session",
    "kvstore/node": (
        "acceptor asking batches ceiling client_stream clocks coordinator deadlines linear link operations "
        "peer_service phase proposers registers replica service stream turn verbs waiting"
    ),
    "kvstore/storage": "group memtable promises segment store tables wal",
    "kvstore/client": "batches caller change change_batch connection nodes receipt steps",
    "kvstore/apps/ratelimit": "algorithms clock ledger machine registers turns windows",
    "kvstore_cli": "bench_histogram bench_load bench_native bench_workload",
}
"""Of each package the modules on the way of a request, and the load generator of `kv bench`, which shares the
processors with the nodes. Not those that examine what users hand in (client.terms, core.admission): compiled
code refuses a wrong type by itself, as a TypeError instead of our error. Async generators and several base
classes are beyond mypyc."""


_SETUP = """
from mypyc.build import mypycify
from setuptools import setup
setup(
    name="kvring",
    packages=[],
    ext_modules=mypycify(
        {arguments!r}, opt_level="3", debug_level="0", multi_file=True, target_dir={target!r}
    ),
)
"""
_ARGUMENTS = ["--ignore-missing-imports", "--explicit-package-bases", "--namespace-packages"]
"""What mypy is strict about is for `make check`, which sees all packages with their types."""


class CompiledWheel(BuildHookInterface[Any]):
    """Adds the extensions to a wheel, beside the sources they were made of."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile a copy. An editable install stays Python: extensions would outlive the next edit."""
        if version == "editable":
            return
        work = self._work = Path(mkdtemp(prefix="kvring-compiled-"))
        for package in ("kvstore", "cli/kvstore_cli"):
            sources = Path(self.root, package)
            shutil.copytree(
                sources, work / sources.name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
            )
        files = [f"{package}/{name}.py" for package, names in MODULES.items() for name in names.split()]
        setup = _SETUP.format(arguments=[*_ARGUMENTS, *files], target=str(work / "c"))
        (work / "setup.py").write_text(setup, encoding="utf-8")
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(work)
            raise RuntimeError(f"mypyc or the C compiler failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        for made in work.rglob("*.so"):
            if "build" not in made.relative_to(work).parts:
                build_data["force_include"][str(made)] = str(made.relative_to(work))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the copy."""
        if version != "editable":
            shutil.rmtree(self._work, ignore_errors=True)
