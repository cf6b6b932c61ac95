"""A process is ours only if its number, its start and its command line say so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore_cli import processes
from kvstore_cli.processes import ProcessMark, load_mark

SLEEPER = "import time; time.sleep(60)"


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the folder of the test on its command line."""
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path)])
    yield process
    process.kill()
    process.wait()


def test_a_mark_knows_its_process_until_it_ends(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    mark = ProcessMark.of(sleeper.pid, str(tmp_path))
    assert mark.is_alive()
    assert mark.send(signal.SIGTERM)
    sleeper.wait()
    assert not mark.is_alive()
    assert not mark.send(signal.SIGTERM)


def test_a_process_whose_command_line_is_not_there_yet_is_alive(
    sleeper: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells that a program has begun a little before it tells with which arguments."""
    mark = ProcessMark.of(sleeper.pid, str(tmp_path))
    monkeypatch.setattr(processes, "_command_line", lambda _pid: "")
    assert mark.is_alive()
    assert not replace(mark, started="1").is_alive()


def test_a_process_that_waits_to_be_reaped_is_not_alive(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    mark = ProcessMark.of(sleeper.pid, str(tmp_path))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not mark.is_alive()


def test_a_stranger_with_a_reused_number_is_never_signalled(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    mark = ProcessMark.of(sleeper.pid, str(tmp_path))
    for stranger in (replace(mark, started="1"), replace(mark, word="/elsewhere"), replace(mark, started="")):
        assert not stranger.is_alive()
        assert not stranger.send(signal.SIGKILL)
    assert sleeper.poll() is None


def test_ps_tells_the_same_where_there_is_no_proc(
    sleeper: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path(processes._PS).exists():
        pytest.skip("no ps on this machine")
    monkeypatch.setattr(processes, "PROC", tmp_path / "no-proc")
    mark = ProcessMark.of(sleeper.pid, str(tmp_path))
    assert mark.is_alive()
    assert not replace(mark, started="Thu Jan  1 00:00:00 1970").is_alive()
    assert not replace(mark, word="/elsewhere").is_alive()
    sleeper.kill()
    sleeper.wait()
    assert not mark.is_alive()


def test_a_mark_is_read_back_and_damage_is_none(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    mark = ProcessMark.of(sleeper.pid, str(tmp_path))
    mark.save(tmp_path / "mark.json")
    assert load_mark(tmp_path / "mark.json") == mark
    for damage in ("", "{}", "[1]", "null", '{"pid": "x", "started": 1, "word": ""}'):
        (tmp_path / "mark.json").write_text(damage)
        assert load_mark(tmp_path / "mark.json") is None
    assert load_mark(tmp_path / "nowhere") is None
