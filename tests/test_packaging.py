"""The wheel holds what it should and nothing else, and works in an environment that has only it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"kvstore", "kvstore_cli", "jepsen_lite"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("packaging")]


def _run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the checkout, so that nothing is found there by accident."""
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | quiet, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_module_of_the_compiled_build_is_there() -> None:
    tree = ast.parse((ROOT / "scripts" / "compiled.py").read_text(encoding="utf-8"))
    (listed,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES"
    )
    folders = {"kvstore_cli": ROOT / "cli" / "kvstore_cli"}
    for package, names in listed.items():
        for name in names.split():
            assert (folders.get(package, ROOT / package) / f"{name}.py").is_file(), f"{package}: {name}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter whose environment holds the wheel, what it depends on, and nothing more."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    return python


def test_the_wheel_holds_three_typed_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    info = next(name for name in top if name.endswith(".dist-info"))
    assert f"{info}/licenses/LICENSE" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_every_module_of_the_checkout_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    roots = (ROOT / "kvstore", ROOT / "cli" / "kvstore_cli", ROOT / "jepsen-lite" / "jepsen_lite")
    ours = {str(path.relative_to(root.parent)) for root in roots for path in root.rglob("*.py")}
    assert sorted(ours - names) == []


def test_an_installed_wheel_brings_its_packages_and_no_source_folder(
    clean_python: Path, tmp_path: Path
) -> None:
    asked = sorted(PACKAGES | {"cli", "tests", "configs", "bench", "docs"})
    code = f"import importlib.util as u, json; print(json.dumps([n for n in {asked} if u.find_spec(n)]))"
    assert set(json.loads(_run(clean_python, "-c", code, cwd=tmp_path))) == PACKAGES


def test_the_installed_command_and_library_work(clean_python: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in _run(clean_python.parent / "kv", "--version", cwd=tmp_path)
    code = "import kvstore, importlib.metadata as m; print(kvstore.connect.__name__, m.version('kvring'))"
    assert _run(clean_python, "-c", code, cwd=tmp_path).split() == ["connect", version]


def test_importing_the_library_loads_nothing_heavy(clean_python: Path, tmp_path: Path) -> None:
    """The face is lazy: a program that only wants the client pays for no disk engine and no terminal."""
    heavy = ["lmdb", "rich", "prompt_toolkit", "structlog", "uvloop", "aiofiles", "click"]
    code = f"import sys, json, kvstore; print(json.dumps([n for n in {heavy} if n in sys.modules]))"
    assert json.loads(_run(clean_python, "-c", code, cwd=tmp_path)) == []
