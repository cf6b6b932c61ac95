"""What the system needs from the world: time, files, one disk thread, and dice.

`kvstore.io` has the real ones, `kvstore.sim` the imagined ones; everything else is
handed one of these and never asks the machine itself. One contract suite
(`tests/contract`) runs against both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Clock(Protocol):
    """Two clocks: one people share, one that only goes forward."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01Z; may jump either way."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed instant; never goes back."""
        ...


class File(Protocol):
    """One open file, written at positions that the caller keeps."""

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`. Raises OSError; part may then be written."""
        ...

    def read_at(self, offset: int, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end of the file."""
        ...

    def sync(self) -> None:
        """Make everything written so far durable (fdatasync). An error is final: never retry."""
        ...

    def size(self) -> int:
        """The file's length in bytes."""
        ...

    def truncate(self, size: int) -> None:
        """Cut (or extend with zeros) to `size`."""
        ...

    def close(self) -> None:
        """Give the handle back. Does not sync."""
        ...


class Files(Protocol):
    """A directory tree. Paths are absolute strings. All calls block and raise OSError."""

    def make_dir(self, path: str) -> None:
        """Create a directory and its parents, mode 0700; no error if it exists."""
        ...

    def list_dir(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        ...

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        ...

    def create(self, path: str, preallocate: int = 0) -> File:
        """Make a new file, mode 0600, with space reserved. Fails if it exists."""
        ...

    def open(self, path: str) -> File:
        """Open an existing file for reading and writing."""
        ...

    def read(self, path: str) -> bytes:
        """Return all of a file."""
        ...

    def write_atomic(self, path: str, data: bytes) -> None:
        """Replace a file as a whole: temporary, sync, rename, sync the directory."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Move a file within the tree; durable only after `sync_dir`."""
        ...

    def remove(self, path: str) -> None:
        """Delete a file; durable only after `sync_dir`."""
        ...

    def sync_dir(self, path: str) -> None:
        """Make creations, renames and removals in a directory durable."""
        ...

    def free_bytes(self, path: str) -> int:
        """Space left for us on the disk that holds `path`."""
        ...

    def total_bytes(self, path: str) -> int:
        """Size of the disk that holds `path`."""
        ...

    def lock(self, path: str) -> Callable[[], None] | None:
        """Take an exclusive lock file; return its release, or None when another holds it."""
        ...


class Worker(Protocol):
    """Runs jobs off the loop, one at a time and in order; answers on the loop."""

    def submit(self, job: Callable[[], _T], done: Callable[[_T | None, BaseException | None], None]) -> None:
        """Run `job`, then call `done(result, None)` or `done(None, error)` on the loop."""
        ...

    def close(self) -> None:
        """Finish the jobs already submitted, then stop. Blocks; for the end of a node."""
        ...


class Dice(Protocol):
    """Randomness, as `random.Random` gives it (seeded in the simulator)."""

    def random(self) -> float:
        """A float in [0, 1)."""
        ...

    def randrange(self, start: int, stop: int | None = None, /) -> int:
        """An integer in [start, stop)."""
        ...

    def randbytes(self, n: int) -> bytes:
        """`n` random bytes."""
        ...
