"""The tests that the `limits` package has for its own storages, run against ours.

They come with its source and not with its wheel, so they run when LIMITS_SOURCE says where that is:

    pip download --no-deps --no-binary limits limits==5.8.0 && tar xzf limits-5.8.0.tar.gz
    LIMITS_SOURCE=$PWD/limits-5.8.0 pytest tests/apps/test_ratelimit_limits_suite.py

Our storages stand in for those in memory; clients of its rivals are stubs that nobody asks. Some of these
tests measure tenths of a second, and are marked as flaky there: what fails is tried once more.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes_in_thread import nodes_in_thread

SOURCE = os.environ.get("LIMITS_SOURCE", "")
SUITES = (
    "tests/test_storage.py", "tests/test_strategy.py", "tests/integration/test_concurrency.py",
    "tests/aio/test_storage.py", "tests/aio/test_strategy.py",
)  # fmt: skip
PLUGIN = """
import os, sys, types
from unittest import mock
import pytest

for name in ("redis", "redis.cluster", "redis.sentinel", "valkey", "pymemcache", "pymongo"):
    sys.modules.setdefault(name, mock.MagicMock())
lazy = types.ModuleType("pytest_lazy_fixtures")
lazy.lf = lambda name: None
sys.modules.setdefault("pytest_lazy_fixtures", lazy)

import limits.aio.storage, limits.storage
from kvstore.apps.ratelimit.limits_storage import AsyncKvstoreStorage, KvstoreStorage

honest, made = limits.storage.storage_from_string, []
URI = os.environ["KV_LIMITS_URI"]

def storage_from_string(uri, **options):
    if uri == "async+memory://":
        return honest("async+" + URI, timeout=20, **options)
    if uri != "memory://":
        return honest(uri, **options)
    made.append(honest(URI, timeout=20, **options))
    return made[-1]

limits.storage.storage_from_string = storage_from_string
limits.storage.MemoryStorage = KvstoreStorage
limits.aio.storage.MemoryStorage = AsyncKvstoreStorage

@pytest.fixture(autouse=True)
def _empty():
    yield
    (made or [storage_from_string("memory://")])[0].reset()
    for each in made:
        each.close()
    made.clear()
"""


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    """Three nodes in a thread."""
    with nodes_in_thread(tmp_path / "nodes") as urls:
        yield "kvstore://" + ",".join(url.removeprefix("kv://") for url in urls)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(not SOURCE, reason="LIMITS_SOURCE does not say where the source of limits is")
@pytest.mark.timeout(400)
def test_the_storage_tests_of_limits_pass(uri: str, tmp_path: Path) -> None:
    (tmp_path / "kv_plugin.py").write_text(PLUGIN, encoding="utf-8")
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", SOURCE, "--noconftest"),
        *("-p", "kv_plugin", "-p", "no:randomly", "-W", "ignore", "-o", f"cache_dir={tmp_path / 'cache'}"),
        *("-k", "in-memory", *SUITES),
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "KV_LIMITS_URI": uri}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], cwd=SOURCE, env=environment, capture_output=True, text=True, check=False
        )

    first = run()
    done = run("--lf") if first.returncode else first
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped)", first.stdout)}
    assert counts["passed"] + counts.get("failed", 0) >= 55, first.stdout
    assert counts.get("failed", 0) <= 3, first.stdout
    assert "skipped" not in counts
