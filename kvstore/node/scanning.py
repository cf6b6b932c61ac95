"""Scans: pages of live entries in ring order, merged over as many owners as the level needs.

Keys are spread by hash, so a prefix has a run of keys in every partition. A page walks the
partitions; neighbours with the same owners are asked together. The cursor is the storage key
to go on from, so a scan survives a change of node and needs no state here.

Rules kept here:
- a key that is there for the whole scan is returned exactly once, as new as the level promises;
- nothing grows with the data: a page has limits on keys, bytes and keys looked at;
- scans compare replicas but mend nothing (docs/consistency.md says so).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from kvstore import errors, limits
from kvstore.core import quorum, ring
from kvstore.core import record as records
from kvstore.core.scanning import Page, merge
from kvstore.core.topology import Topology
from kvstore.node.link import Link
from kvstore.storage.store import Store
from kvstore.types import NodeId, Partition
from kvstore.wire import messages


def prefix_stop(prefix: bytes) -> bytes | None:
    """The first key after all keys with this prefix; None when there is no such key."""
    bare = prefix.rstrip(b"\xff")
    return bare[:-1] + bytes([bare[-1] + 1]) if bare else None


def local_page(store: Store, *, start: bytes, stop: bytes, prefix: bytes, limit: int, bytes_max: int) -> Page:
    """What this replica holds in [start, stop) whose keys begin with `prefix`; all kinds of records.

    Steps over the partitions between the bounds; within each the prefix is one range.
    """
    entries: list[tuple[bytes, bytes]] = []
    size = 0
    first, last = int.from_bytes(start[:2], "big"), int.from_bytes(stop[:2], "big")
    after = prefix_stop(prefix)
    for partition in range(first, last + 1):
        head = partition.to_bytes(2, "big")
        low = max(head + prefix, start)
        high = (
            head + after
            if after is not None
            else (partition + 1).to_bytes(3, "big")[1:]
            if partition < 0xFFFF
            else stop
        )
        high = min(high, stop)
        if low >= high:
            continue
        found, more = store.scan(low, high, limit=limit - len(entries), bytes_max=bytes_max - size)
        entries += found
        size += sum(len(record) for _, record in found)
        if more or len(entries) >= limit or size >= bytes_max:
            return Page(entries, more or partition < last)
    return Page(entries, False)


class Scanner:
    """Runs the scans that clients bring to this node."""

    def __init__(
        self, *, number: NodeId, store: Store, links: Mapping[NodeId, Link], now: Callable[[], int]
    ) -> None:
        self._number = number
        self._store = store
        self._links = links
        self._now = now

    async def page(self, topology: Topology, request: messages.Scan, timeout_ms: int) -> list[Any]:
        """`[[key, payload, version, expires_ms] ..., cursor, epoch, answered]` for one page."""
        options = request.options
        limit = min(options.limit or limits.SCAN_LIMIT_MAX, limits.SCAN_LIMIT_MAX)
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline = started + timeout_ms / 1000
        position: bytes | None = request.cursor or ring.storage_key(Partition(0), b"")
        end = topology.partitions
        rows: list[list[Any]] = []
        size = 0
        answered: set[NodeId] = set()
        while position is not None and len(rows) < limit and size < limits.SCAN_PAGE_BYTES_MAX:
            first = int.from_bytes(position[:2], "big")
            if first >= end:
                position = None
                break
            last = self._run_end(topology, first)
            stop = last.to_bytes(2, "big") if last <= 0xFFFF else b"\xff\xff\xff"
            pages, who = await self._ask_owners(
                topology, Partition(first), position, stop, options, limit - len(rows), deadline
            )
            answered.update(who)
            merged = merge(pages, self._now())
            for skey, record in merged.entries:
                payload = None if options.keys_only else records.readable_of(record)
                rows.append([skey[2:], payload, records.shown_version_of(record), records.expires_of(record)])
                size += len(skey) + len(payload or b"")
            rest = stop if last < end else None
            position = rest if merged.resume is None else merged.resume + b"\0"
            if loop.time() - started > timeout_ms / 2000:
                break  # a page with few entries is better than none: the cursor goes on from here
            await asyncio.sleep(0)  # others have their turn between steps
        return [rows, position, topology.epoch, sorted(answered)]

    @staticmethod
    def _run_end(topology: Topology, first: int) -> int:
        """One past the last partition from `first` on that has the same owners."""
        owners = sorted(topology.owners[first])
        last = first + 1
        while last < topology.partitions and sorted(topology.owners[last]) == owners:
            last += 1
        return last

    async def _ask_owners(
        self,
        topology: Topology,
        partition: Partition,
        start: bytes,
        stop: bytes,
        options: messages.Options,
        limit: int,
        deadline: float,
    ) -> tuple[list[Page], list[NodeId]]:
        """Pages of as many owners as the level needs; ourselves first, it costs least."""
        owners = sorted(topology.owners_of(partition), key=lambda n: (n != self._number, n))
        needed = quorum.needed(options.consistency, options.r, len(owners), operation="scan")
        loop = asyncio.get_running_loop()
        alive = [n for n in owners if n == self._number or self._links[n].up]
        if len(alive) < needed:
            down = " ".join(topology.node(n).name for n in owners if n not in alive)
            raise errors.Unavailable(operation="scan", needed=needed, alive=len(alive), down=down)
        pages: list[Page] = []
        who: list[NodeId] = []
        for number in alive:
            if len(pages) == needed:
                break
            page: Page | None = None
            if number == self._number:
                with suppress(errors.DamagedRecord):  # like an owner that does not answer
                    page = local_page(
                        self._store,
                        start=start,
                        stop=stop,
                        prefix=options.prefix,
                        limit=limit,
                        bytes_max=limits.SCAN_PAGE_BYTES_MAX,
                    )
            else:
                page = await self._ask_peer(number, topology.epoch, start, stop, options, limit, deadline)
            if page is not None:
                pages.append(page)
                who.append(number)
        if len(pages) < needed:
            silent = " ".join(topology.node(n).name for n in alive if n not in who)
            if loop.time() >= deadline:
                raise errors.QuorumTimeout(operation="scan", needed=needed, acked=len(pages), missing=silent)
            raise errors.Unavailable(operation="scan", needed=needed, alive=len(pages), down=silent)
        return pages, who

    async def _ask_peer(
        self,
        number: NodeId,
        epoch: int,
        start: bytes,
        stop: bytes,
        options: messages.Options,
        limit: int,
        deadline: float,
    ) -> Page | None:
        """A peer's page, or None when it does not answer in time."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Page | None] = loop.create_future()

        def replied(error: Any, result: Any) -> None:
            if not future.done():
                future.set_result(_page_of(error, result))

        budget_ms = max(1, int((deadline - loop.time()) * 1000))
        self._links[number].call(
            "scan",
            messages.encode_peer_scan(
                epoch, budget_ms, start, stop, options.prefix, limit, limits.SCAN_PAGE_BYTES_MAX
            ),
            replied,
        )
        try:
            async with asyncio.timeout_at(deadline):
                return await future
        except TimeoutError:
            return None


def _page_of(error: Any, result: Any) -> Page | None:
    """A peer's answer; None when it is an error, or no page: another owner is asked, and the link stays."""
    try:
        return None if error is not None else Page(*messages.decode_peer_page(result))
    except errors.ProtocolError:
        return None
