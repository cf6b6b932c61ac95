"""Which process is ours: a pid alone is not enough, because the system hands it to a stranger one day.

A process is known by its pid, the instant it started, and a word on its command line. On Linux
these come from /proc, elsewhere from `ps`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

_START_FIELD = 19
"""Field 22 of /proc/PID/stat, counted from behind the name, which may hold anything."""
_PS = "/bin/ps"
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """A process as we left it."""

    pid: int
    started: str
    """When it started, in the system's own terms; compared as text."""
    word: str
    """Stands on its command line: the node's directory."""

    @classmethod
    def of(cls, pid: int, word: str) -> ProcessMark:
        """Mark a process that runs now."""
        return cls(pid, _started(pid) or "", word)

    def is_alive(self) -> bool:
        """Whether that very process still runs.

        One that was started this instant has an empty command line for a moment.
        """
        if not self.started or _started(self.pid) != self.started:
            return False
        line = _command_line(self.pid)
        return not line or self.word in line

    def send(self, number: signal.Signals) -> bool:
        """Signal it, if it still is what it was."""
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def save(self, path: Path) -> None:
        """Keep it for another command."""
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


def load_mark(path: Path) -> ProcessMark | None:
    """What `save` kept; None when there is nothing usable."""
    try:
        plain = json.loads(path.read_bytes())
        return ProcessMark(int(plain["pid"]), str(plain["started"]), str(plain["word"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _started(pid: int) -> str | None:
    """When a process started; None when it is gone or only waits to be reaped."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None if (PROC / "self").exists() else _from_ps(pid, "lstart")
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[_START_FIELD - 1]


def _command_line(pid: int) -> str:
    try:
        return (
            (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="surrogateescape")
        )
    except OSError:
        return _from_ps(pid, "command") or ""


def _from_ps(pid: int, column: str) -> str | None:
    try:
        asked = subprocess.run(  # noqa: S603  fixed program, a number
            [_PS, "-ww", "-o", f"{column}=", "-p", str(pid)],
            capture_output=True,
            text=True,
            check=False,
            env={"LC_ALL": "C"},
        )
    except OSError:
        return None
    return asked.stdout.strip() or None
