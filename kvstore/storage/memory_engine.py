"""The base store as a dict: for the simulator, for tests, and for caches.

The dict lives in a `Backing` that is handed in, so that the simulator's disk can keep it across a
crash of its host. A slice reaches the backing when its job runs, at one stroke, as a committed
transaction would. Without one that is kept, a restart begins with what the log still has.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvstore.storage.engine import Mark, expiry_key
from kvstore.types import Kind

_ZERO8 = bytes(8)
_TOMBSTONE = int(Kind.TOMBSTONE)


@dataclass(slots=True)
class Backing:
    """What would be on the disk."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    keys: list[bytes] = field(default_factory=list)
    """The keys of `records`, sorted."""
    expiring: list[bytes] = field(default_factory=list)
    """Expiry keys, sorted."""
    mark: Mark = field(default_factory=Mark)


@dataclass(slots=True)
class _Slice:
    records: dict[bytes, bytes] = field(default_factory=dict)
    dropped: set[bytes] = field(default_factory=set)
    expiring: dict[bytes, bool] = field(default_factory=dict)
    """Expiry key to whether it is there afterwards."""


class MemoryEngine:
    """An `Engine` over a `Backing`."""

    __slots__ = ("_backing", "_kept", "_slice")

    def __init__(self, backing: Backing | None = None) -> None:
        self._kept = backing is not None
        self._backing = backing if backing is not None else Backing()
        self._slice: _Slice | None = None

    @property
    def outlives_process(self) -> bool:
        """Whether somebody else keeps the backing."""
        return self._kept

    def open(self) -> None:
        """Nothing to open."""

    def mark(self) -> Mark:
        """What the last slice with a mark said."""
        return self._backing.mark

    def get(self, skey: bytes) -> bytes | None:
        """The record under a key."""
        return self._backing.records.get(skey)

    def scan(
        self, start: bytes, stop: bytes, *, limit: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Records from `start` up to, not with, `stop`; see `Engine.scan`."""
        keys, records = self._backing.keys, self._backing.records
        page: list[tuple[bytes, bytes]] = []
        size = 0
        for at in range(bisect_left(keys, start), bisect_left(keys, stop)):
            if len(page) >= limit or size >= bytes_max:
                return page, True
            page.append((keys[at], records[keys[at]]))
            size += len(page[-1][1])
        return page, False

    def due(self, after: bytes, until_ms: int, limit: int) -> list[bytes]:
        """Expiry keys behind `after`, not later than `until_ms`."""
        keys = self._backing.expiring
        at = bisect_right(keys, after)
        return keys[at : min(at + limit, bisect_left(keys, (until_ms + 1).to_bytes(8, "big")))]

    def first_due(self, after: bytes) -> bytes | None:
        """The first expiry key behind `after`."""
        keys = self._backing.expiring
        at = bisect_right(keys, after)
        return keys[at] if at < len(keys) else None

    def begin(self) -> None:
        """Begin a slice."""
        assert self._slice is None
        self._slice = _Slice()

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Put records into the slice."""
        assert self._slice is not None
        for skey, record in pairs:
            self._slice.records[skey] = record
            if record[8:16] != _ZERO8 and record[16] != _TOMBSTONE:
                self._slice.expiring[expiry_key(record[8:16], skey)] = True

    def retire(self, expiry_keys: Sequence[bytes], dropped: Sequence[bytes] = ()) -> None:
        """Take expiry keys out of the index, and records out."""
        assert self._slice is not None
        self._slice.dropped.update(dropped)
        for key in expiry_keys:
            self._slice.expiring[key] = False

    def seal(self, mark: Mark | None) -> Callable[[], None]:
        """End the slice; the job puts it into the backing at one stroke."""
        assert self._slice is not None
        part, self._slice = self._slice, None
        backing = self._backing

        def job() -> None:
            fresh = [skey for skey in part.records if skey not in backing.records]
            backing.records.update(part.records)
            if fresh:
                # New lists, so that a reader on the loop keeps a whole one.
                backing.keys = sorted(backing.keys + fresh)
            if gone := [skey for skey in part.dropped if backing.records.pop(skey, None) is not None]:
                backing.keys = sorted(set(backing.keys).difference(gone))
            if part.expiring:
                kept = [key for key in backing.expiring if key not in part.expiring]
                backing.expiring = sorted(kept + [key for key, there in part.expiring.items() if there])
            if mark is not None:
                backing.mark = mark

        return job

    def adopt(self) -> None:
        """Readers see the backing as it is: the memtable shows the same records meanwhile."""

    def abort(self) -> None:
        """Drop the slice that was begun, if any."""
        self._slice = None

    def grow(self) -> None:
        """Nothing bounds a dict but memory."""

    def leaves(self) -> int:
        """Each record is a page of its own."""
        return len(self._backing.records)

    def expiring(self) -> int:
        """Expiry keys held."""
        return len(self._backing.expiring)

    def size_bytes(self) -> int:
        """Nothing is on disk."""
        return 0

    def close(self) -> None:
        """Drop an open slice; the backing stays with whoever handed it in."""
        self._slice = None
