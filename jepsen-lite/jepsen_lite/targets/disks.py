"""Disks of node processes: small ones that can be full, and torn tails of their logs."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from pathlib import Path

DISK_BYTES = 64 << 20
SMALL = {"KV_SEGMENT_BYTES": "4194304", "KV_MEMTABLE_BYTES": "4194304"}
"""What fits a node into it."""
_FILLER = "filler"
_CHUNK = bytes(1 << 20)
_TORN_BYTES_MAX = 24
"""Less than the head of a record, so that it cannot be taken for one that was whole and got damaged."""


def problem() -> str:
    """Why there can be no small disks; empty when there can."""
    return "" if os.geteuid() == 0 else "a full disk needs root, to mount a small tmpfs for each node"


def mount(folder: Path) -> None:
    """Put a small disk under a node's folder. Raises CalledProcessError."""
    options = f"size={DISK_BYTES},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "jepsen-lite", str(folder)], check=True)  # noqa: S603, S607


def unmount(folder: Path) -> None:
    """Take it away."""
    subprocess.run(["umount", str(folder)], check=False)  # noqa: S603, S607


def fill(folder: Path) -> None:
    """Write until there is no room left."""
    with (folder / _FILLER).open("ab", buffering=0) as file:
        try:
            while True:
                file.write(_CHUNK)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def free(folder: Path) -> None:
    """Make room again."""
    (folder / _FILLER).unlink(missing_ok=True)


def tear_tail(folder: Path, dice: random.Random) -> bool:
    """Put the beginning of a record behind the last whole one, as a crash in mid-write leaves it.

    Nothing that was written is touched. False: a crash has left such a thing already, or there is no log.
    """
    from kvstore.io.disk import SystemFiles  # noqa: PLC0415  brings the storage engine
    from kvstore.storage import inspect  # noqa: PLC0415

    report = inspect.verify(SystemFiles(), str(folder))
    if not report.segments or report.segments[-1].verdict != "clean":
        return False
    last = report.segments[-1]
    torn = bytes(dice.randint(1, 255) for _ in range(dice.randint(1, _TORN_BYTES_MAX)))
    with Path(last.path).open("r+b") as file:
        file.seek(last.end)
        file.write(torn)
        file.flush()
        os.fsync(file.fileno())
    return True
