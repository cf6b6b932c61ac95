"""What a base store must do: hold records in key order, and take a flush that is whole or absent.

The memtable is moved here in slices. A slice is begun, filled and sealed on the loop; the blocking
part of making it durable is a job for the flush worker; then `adopt` shows it to readers. What a
slice brought is invisible before `adopt`, and is there as a whole or not at all after a crash.

Engines raise `Full` when the disk has no room (the slice may be tried again when there is), and
`Grow` when they ran into a bound of their own that `grow` moves. Any other error is final.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


class Full(Exception):
    """The disk has no room for this slice; nothing of it was kept."""


class Grow(Exception):
    """The engine's own bound was reached; `abort`, `grow`, and do the slice again."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What the base store holds of the log, written in the transaction that makes it true."""

    position: int = 0
    """The last sequence number of the log that is covered."""
    segment: int = 0
    """The log had reached this segment; 0 before the log was born."""
    highest_version: int = 0
    ceiling: int = 0
    keys: int = 0
    tombstones: int = 0
    owner: bytes = b""
    """Fingerprint of cluster and node."""


class Engine(Protocol):
    """An ordered map on disk or in memory. One reader and one slice at a time, both on the loop."""

    @property
    def outlives_process(self) -> bool:
        """Whether what was made durable is there for the next process.

        If not, the store begins with what the log still has, as a cache may: some keys are
        missing then, none is older than it was.
        """
        ...

    def open(self) -> None:
        """Open or create. Blocks. Raises OSError or KVError."""
        ...

    def mark(self) -> Mark:
        """What the last adopted slice with a mark said."""
        ...

    def get(self, skey: bytes) -> bytes | None:
        """The record under a key."""
        ...

    def scan(
        self, start: bytes, stop: bytes, *, limit: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Records from `start` up to, not with, `stop`, in order; True when there are more.

        Ends after `limit` records, or after the one that reaches `bytes_max`.
        """
        ...

    def due(self, after: bytes, until_ms: int, limit: int) -> list[bytes]:
        """Up to `limit` expiry keys behind `after` whose instant is not later than `until_ms`."""
        ...

    def first_due(self, after: bytes) -> bytes | None:
        """The first expiry key behind `after`."""
        ...

    def begin(self) -> None:
        """Begin a slice."""
        ...

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Put records in ascending key order into the slice, with expiry keys where they have one."""
        ...

    def retire(self, expiry_keys: Sequence[bytes], dropped: Sequence[bytes] = ()) -> None:
        """Take expiry keys out of the index, and records out with nothing in their place.

        Those that are not there do not matter.
        """
        ...

    def seal(self, mark: Mark | None) -> Callable[[], None]:
        """End the slice; the returned job makes it durable. A mark is put in the same transaction.

        After the job of a slice with a mark nothing of the log up to its position is needed.
        """
        ...

    def adopt(self) -> None:
        """Show the slice to readers; on the loop, after its job."""
        ...

    def abort(self) -> None:
        """Drop the slice that was begun, if any."""
        ...

    def grow(self) -> None:
        """Move the bound that raised `Grow`. No slice may be open."""
        ...

    def leaves(self) -> int:
        """Pages that hold records: what changes on the disk when a record does."""
        ...

    def expiring(self) -> int:
        """Expiry keys held."""
        ...

    def size_bytes(self) -> int:
        """Space taken."""
        ...

    def close(self) -> None:
        """Give everything back; an open slice is dropped."""
        ...


EXPIRY_BYTES = 8


def expiry_key(expires: bytes, skey: bytes) -> bytes:
    """The key of the expiry index: the instant as the record has it (8 bytes), then the key."""
    return expires + skey


def split_expiry_key(key: bytes) -> tuple[bytes, bytes]:
    """`(instant, skey)` of an expiry key."""
    return key[:EXPIRY_BYTES], key[EXPIRY_BYTES:]
