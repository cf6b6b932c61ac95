"""Durable records that the base store does not have yet.

A dict for the hot path, plus what makes the slow paths bounded: the keys by their first two bytes
(the partition), so that a scan or a flush sorts one partition at a time; a heap of expiry keys;
and the expiry keys of the base store that these records make obsolete.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator

from kvstore.storage.engine import expiry_key
from kvstore.types import Kind

_ZERO8 = bytes(8)
_TOMBSTONE = int(Kind.TOMBSTONE)
_PREFIX_BYTES = 2
RUN_KEYS = 4_096
"""Keys sorted in one piece, about 1.5 ms: more would be felt on the loop."""


class Memtable:
    """Records by key, with their order, expiry and size."""

    __slots__ = ("_keys", "bytes", "due", "records", "retired")

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.bytes = 0
        """Bytes written, replaced ones included: it bounds the log behind this table as well."""
        self.due: list[bytes] = []
        """A heap of expiry keys; some may be obsolete."""
        self.retired: list[bytes] = []
        """Expiry keys to take out of the base store's index."""
        self._keys: dict[bytes, list[bytes]] = {}

    def absorb(self, batch: dict[bytes, bytes], written: int) -> None:
        """Take in records that have become durable; `written` is their size."""
        records, keys, due = self.records, self._keys, self.due
        for skey, record in batch.items():
            if skey not in records:
                prefix = skey[:_PREFIX_BYTES]
                run = keys.get(prefix)
                if run is None:
                    keys[prefix] = [skey]
                else:
                    run.append(skey)
            if record[8:16] != _ZERO8 and record[16] != _TOMBSTONE:
                heapq.heappush(due, expiry_key(record[8:16], skey))
        records.update(batch)
        self.bytes += written

    def scan(
        self, start: bytes, stop: bytes, *, limit: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Records from `start` up to, not with, `stop`, in order; True when there are more."""
        page: list[tuple[bytes, bytes]] = []
        size = 0
        first, last = start[:_PREFIX_BYTES], stop[:_PREFIX_BYTES]
        for prefix in (first,) if first == last else sorted(self._keys):
            if not first <= prefix <= last or prefix not in self._keys:
                continue
            run = self._keys[prefix]
            # Sorted but for what came since the last scan, which makes this nearly linear.
            run.sort()
            for at in range(bisect_left(run, start), bisect_left(run, stop)):
                if len(page) >= limit or size >= bytes_max:
                    return page, True
                page.append((run[at], self.records[run[at]]))
                size += len(page[-1][1])
        return page, False

    def in_order(self, count: int, bytes_max: int) -> Iterator[list[tuple[bytes, bytes]]]:
        """All records in key order, in chunks of at most `count` and about `bytes_max`.

        Each step is bounded: a large partition is sorted in runs, and an empty chunk is yielded
        after each so that the caller can let others in. The table must not change meanwhile.
        """
        chunk: list[tuple[bytes, bytes]] = []
        size = 0
        for prefix in sorted(self._keys):
            # A copy: a scan between two steps sorts the original.
            keys = list(self._keys[prefix])
            runs = []
            for at in range(0, len(keys), RUN_KEYS):
                runs.append(sorted(keys[at : at + RUN_KEYS]))
                if len(keys) > RUN_KEYS:
                    yield []
            for skey in runs[0] if len(runs) == 1 else heapq.merge(*runs):
                record = self.records[skey]
                chunk.append((skey, record))
                size += len(record)
                if len(chunk) >= count or size >= bytes_max:
                    yield chunk
                    chunk, size = [], 0
        if chunk:
            yield chunk

    def pop_due(self, until_ms: int, limit: int) -> list[bytes]:
        """Take up to `limit` expiry keys whose instant is not later than `until_ms`."""
        found: list[bytes] = []
        bound = (until_ms + 1).to_bytes(8, "big")
        while self.due and len(found) < limit and self.due[0] < bound:
            found.append(heapq.heappop(self.due))
        return found
