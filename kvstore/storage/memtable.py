"""Durable records that the base store does not have yet.

One dict a partition, not one for all: a dict that doubles at 200,000 keys stops the loop for 10 to
30 ms, one of 1,000 keys for nothing that can be felt. Scans and flushes sort one partition at a time for
the same reason, and a table is freed in steps.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator

from kvstore.storage.engine import expiry_key
from kvstore.types import Kind

_ZERO8 = bytes(8)
_TOMBSTONE = int(Kind.TOMBSTONE)
PREFIX_BYTES = 2
"""The partition in front of every key."""
RUN_KEYS = 4_096
"""Keys sorted in one piece, about 1.5 ms: more would be felt on the loop."""
_NONE: dict[bytes, bytes] = {}


class Memtable:
    """Records by key, with their order, expiry and size."""

    __slots__ = ("_popped", "_sorted", "bytes", "due", "retired", "shards")

    def __init__(self) -> None:
        self.shards: dict[bytes, dict[bytes, bytes]] = {}
        """Records by partition, then by key. Nothing is ever taken out before the table is dissolved."""
        self.bytes = 0
        """Bytes written, replaced ones included: it bounds the log behind this table as well."""
        self.due: list[bytes] = []
        """A heap of expiry keys; some may be obsolete."""
        self.retired: list[bytes] = []
        """Expiry keys to take out of the base store's index."""
        self._sorted: dict[bytes, list[bytes]] = {}
        """Keys of scanned partitions in order; out of date when the partition has more."""
        self._popped = b""
        """What expires before this was taken out of the heap, or soon will be."""

    def count(self) -> int:
        """Records held."""
        return sum(map(len, self.shards.values()))

    def get(self, skey: bytes) -> bytes | None:
        """The record under a key."""
        return self.shards.get(skey[:PREFIX_BYTES], _NONE).get(skey)

    def absorb(self, batch: dict[bytes, bytes], written: int) -> None:
        """Take in records that have become durable; `written` is their size."""
        shards, due = self.shards, self.due
        for skey, record in batch.items():
            shard = shards.get(skey[:PREFIX_BYTES])
            if shard is None:
                shard = shards[skey[:PREFIX_BYTES]] = {}
            expires = record[8:16]
            if expires != _ZERO8 and record[16] != _TOMBSTONE:
                # A record that ends with the one it replaces is waited for already.
                old = shard.get(skey)
                if old is None or old[8:17] != record[8:17] or expires < self._popped:
                    heapq.heappush(due, expiry_key(expires, skey))
            shard[skey] = record
        self.bytes += written

    def scan(
        self, start: bytes, stop: bytes, *, limit: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Records from `start` up to, not with, `stop`, in order; True when there are more."""
        page: list[tuple[bytes, bytes]] = []
        size = 0
        first, last = start[:PREFIX_BYTES], stop[:PREFIX_BYTES]
        for prefix in (first,) if first == last else sorted(self.shards):
            if not first <= prefix <= last or prefix not in self.shards:
                continue
            shard, keys = self.shards[prefix], self._keys(prefix)
            for at in range(bisect_left(keys, start), bisect_left(keys, stop)):
                if len(page) >= limit or size >= bytes_max:
                    return page, True
                page.append((keys[at], shard[keys[at]]))
                size += len(page[-1][1])
        return page, False

    def _keys(self, prefix: bytes) -> list[bytes]:
        keys = self._sorted.get(prefix)
        if keys is None or len(keys) != len(self.shards[prefix]):
            keys = self._sorted[prefix] = sorted(self.shards[prefix])
        return keys

    def in_order(self, count: int, bytes_max: int) -> Iterator[list[tuple[bytes, bytes]]]:
        """All records in key order, in chunks of at most `count` and about `bytes_max`.

        Each step is bounded: a large partition is sorted in runs, and an empty chunk is yielded
        after each so that the caller can let others in. The table must not change meanwhile.
        """
        chunk: list[tuple[bytes, bytes]] = []
        size = 0
        for prefix in sorted(self.shards):
            shard = self.shards[prefix]
            keys = list(shard)
            runs: list[list[bytes]] = []
            for at in range(0, len(keys), RUN_KEYS):
                runs.append(sorted(keys[at : at + RUN_KEYS]))
                if len(keys) > RUN_KEYS:
                    yield []
            for skey in runs[0] if len(runs) == 1 else heapq.merge(*runs):
                record = shard[skey]
                chunk.append((skey, record))
                size += len(record)
                if len(chunk) >= count or size >= bytes_max:
                    yield chunk
                    chunk, size = [], 0
        if chunk:
            yield chunk

    def dissolve(self, count: int) -> bool:
        """Let go of about `count` records; False when nothing is left.

        A table that is dropped as a whole stops the loop for as long as it takes to free all of it,
        40 ms for 32 MiB of small records.
        """
        self._sorted.clear()
        del self.due[-count:], self.retired[-count:]
        while count > 0 and self.shards:
            prefix, shard = self.shards.popitem()
            while count > 0 and shard:
                shard.popitem()
                count -= 1
            if shard:
                self.shards[prefix] = shard
        return bool(self.shards)

    def pop_due(self, until_ms: int, limit: int) -> list[bytes]:
        """Take up to `limit` expiry keys whose instant is not later than `until_ms`."""
        found: list[bytes] = []
        bound = (until_ms + 1).to_bytes(8, "big")
        self._popped = max(self._popped, bound)
        while self.due and len(found) < limit and self.due[0] < bound:
            found.append(heapq.heappop(self.due))
        return found
