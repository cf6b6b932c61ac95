"""Nodes as processes of ours: what is a complaint, and who starts them when."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from jepsen_lite.nemesis import Fault
from jepsen_lite.targets import NodeAt
from jepsen_lite.targets.processes import Child, Place, Processes


class NoLinks:
    """Links that nothing happens to."""

    name = "none"
    missing: Mapping[str, str] = {}

    async def open(self) -> None: ...

    async def apply(self, faults: Sequence[Fault]) -> None: ...

    async def close(self) -> None: ...


def _process(tmp_path: Path, code: str) -> tuple[Processes, Child]:
    """A "node" that runs a line of Python."""
    node = NodeAt(1, "n1", "127.0.0.1", 1, 2, "127.0.0.1")
    child = Child(node, tmp_path / "n1")
    with child.log.open("wb") as out:
        child.process = subprocess.Popen([sys.executable, "-c", code], stdout=out, stderr=out)
    return Processes([child], Place(NoLinks(), "127.0.0.1"), faketime="", missing={}), child


async def test_a_node_that_ends_by_itself_or_logs_a_traceback_is_a_complaint(tmp_path: Path) -> None:
    cluster, child = _process(tmp_path, "raise ValueError")
    assert child.process is not None
    await asyncio.to_thread(child.process.wait)
    assert cluster.complaints() == [
        "n1 ended by itself, status 1",
        "n1.log says 'Traceback (most recent call last)'",
    ]


async def test_a_node_that_is_paused_killed_or_stopped_is_no_complaint(tmp_path: Path) -> None:
    cluster, child = _process(tmp_path, "import time; time.sleep(60)")
    pause = Fault(0, 1, "pause", "pause", nodes=(1,))
    await cluster.do(pause)
    assert child.is_paused
    await cluster.do(Fault(0, 1, "kill", "kill", nodes=(1,)))
    assert child.process is not None
    assert child.process.returncode == -9
    await cluster.stop()
    assert cluster.complaints() == []


async def test_a_node_that_two_faults_want_down_is_started_once_after_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, child = _process(tmp_path, "import time; time.sleep(60)")
    started: list[Child] = []
    monkeypatch.setattr(cluster, "start", started.append)
    restart, kill = (Fault(0, 1, kind, kind, nodes=(1,)) for kind in ("restart", "kill"))
    await asyncio.gather(cluster.do(restart), cluster.do(kill))
    await cluster.undo(restart)
    assert started == []
    await cluster.undo(kill)
    assert started == [child]
    await cluster.stop()
