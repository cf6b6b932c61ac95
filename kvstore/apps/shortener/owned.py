"""The list of an owner's links: pages of a bounded size, newest last, each a register.

A scan of the store would read everybody's keys, so each owner has pages of their own; `HEAD` knows the last
one. An entry is written before its link and removed after it: a link is never missing from its owner's
list, and an entry whose link does not exist (its maker died in between) is skipped by whoever reads.
Entries are named by code and id, so a failed claim of one's own alias removes nothing else.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import kvstore
from kvstore import errors
from kvstore.apps.shortener.link import page_key
from kvstore.apps.shortener.problems import BadField

PAGE_LINKS_MAX = 200
PAGES_WALKED_MAX = 20
"""In one call: pages that deletions emptied have nothing to show, and each costs a read."""
_STRIPES = 64
_CHANGE_S = 10.0
_ENDS_KEPT = 1_000
Listed = tuple[str, str]
"""(code, id)."""


def _entries(data: bytes | None) -> list[Listed]:
    return [] if data is None else [(code, link_id) for code, link_id in json.loads(data)]


def _packed(entries: list[Listed]) -> bytes:
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class _End:
    """The last page of an owner, as we left it."""

    page: int
    version: int
    entries: tuple[Listed, ...]


@dataclass(slots=True, eq=False)
class _Batch:
    """Entries of one owner that are written together."""

    left: list[Listed] = field(default_factory=list[Listed])
    pages: dict[Listed, int] = field(default_factory=dict[Listed, int])
    failure: errors.KVError | None = None


class OwnedLists:
    """Lists of all owners."""

    def __init__(self, kv: kvstore.Client) -> None:
        self._kv = kv
        # One owner's changes in this process queue up here, instead of beating each other in the store;
        # additions that queue are then made together.
        self._locks = [asyncio.Lock() for _ in range(_STRIPES)]
        self._batches: dict[str, _Batch] = {}
        self._ends: OrderedDict[str, _End] = OrderedDict()

    def _lock(self, owner: str) -> asyncio.Lock:
        return self._locks[zlib.crc32(owner.encode()) % _STRIPES]

    async def add(self, owner: str, entry: Listed) -> int:
        """Append; once, however often it is asked. Returns the page."""
        batch = self._batches.setdefault(owner, _Batch())
        batch.left.append(entry)
        async with self._lock(owner):
            if entry not in batch.pages and batch.failure is None:
                # First of those who came while the last batch was written: we write for all of them.
                if self._batches.get(owner) is batch:
                    del self._batches[owner]
                try:
                    await self._write(owner, batch)
                except errors.KVError as failure:
                    batch.failure = failure
        if batch.failure is not None:
            raise batch.failure
        return batch.pages[entry]

    async def _write(self, owner: str, batch: _Batch) -> None:
        if await self._appended(owner, batch):
            return
        while True:
            page = await self._last(owner)
            there = await self._added(owner, page, batch.left)
            batch.pages |= dict.fromkeys(there, page)
            batch.left = [entry for entry in batch.left if entry not in batch.pages]
            if not batch.left:
                return
            await self._turn(owner, page + 1)

    async def _appended(self, owner: str, batch: _Batch) -> bool:
        """To the page as we left it, in one round; False when somebody else was there, or it is full."""
        known = self._ends.pop(owner, None)
        if known is None or len(known.entries) + len(batch.left) > PAGE_LINKS_MAX:
            return False
        entries = [*known.entries, *(entry for entry in batch.left if entry not in known.entries)]
        done = await self._kv.cas(
            page_key(owner, known.page),
            new=_packed(entries),
            expected_version=known.version,
            timeout=_CHANGE_S,
        )
        if not done:
            return False
        self._remember(owner, _End(known.page, done.version, tuple(entries)))
        batch.pages |= dict.fromkeys(batch.left, known.page)
        return True

    def _remember(self, owner: str, end: _End) -> None:
        self._ends[owner] = end
        self._ends.move_to_end(owner)
        while len(self._ends) > _ENDS_KEPT:
            self._ends.popitem(last=False)

    async def _added(self, owner: str, page: int, new: Sequence[Listed]) -> set[Listed]:
        there: set[Listed] = set()
        entries: list[Listed] = []

        def change(data: Any) -> bytes:
            nonlocal there, entries
            entries = _entries(data)
            more = [entry for entry in dict.fromkeys(new) if entry not in entries]
            entries += more[: max(PAGE_LINKS_MAX - len(entries), 0)]
            there = set(entries).intersection(new)
            return _packed(entries)

        done = await self._kv.update(page_key(owner, page), change, timeout=_CHANGE_S)
        self._remember(owner, _End(page, done.version, tuple(entries)))
        return there

    async def remove(self, owner: str, page: int, entry: Listed) -> None:
        """Take an entry out."""
        async with self._lock(owner):
            self._ends.pop(owner, None)
            await self._kv.update(
                page_key(owner, page),
                lambda data: _packed([each for each in _entries(data) if each != entry]),
                timeout=_CHANGE_S,
            )

    async def read(self, owner: str, cursor: str | None, limit: int) -> tuple[list[Listed], str | None]:
        """Newest first, and the cursor of what comes next. Something deleted meanwhile may repeat others.

        There may be fewer than `limit`, or none, and still a cursor: many pages in between are empty.
        """
        last = await self._last(owner)
        page, at = (last, PAGE_LINKS_MAX) if cursor is None else _position(cursor)
        # Anybody can write a cursor: one beyond the end must not cost a read for each page that never was.
        page = min(page, last)
        end = max(page - PAGES_WALKED_MAX, -1)
        found: list[Listed] = []
        while page > end:
            entry = await self._kv.get(page_key(owner, page))
            entries = _entries(entry.value if entry is not None else None)[:at]
            take = entries[-(limit - len(found)) :][::-1]
            found += take
            left = len(entries) - len(take)
            if len(found) == limit:
                more = left > 0 or page > 0
                return found, f"{page}.{left}" if more else None
            page, at = page - 1, PAGE_LINKS_MAX
        return found, f"{page}.{at}" if page >= 0 else None

    async def _last(self, owner: str) -> int:
        entry = await self._kv.get(self._head(owner))
        return 0 if entry is None else int(entry.value)

    async def _turn(self, owner: str, page: int) -> None:
        await self._kv.update(
            self._head(owner), lambda data: str(max(int(data or b"0"), page)).encode(), timeout=_CHANGE_S
        )

    @staticmethod
    def _head(owner: str) -> str:
        return page_key(owner, -1)


def _position(cursor: str) -> tuple[int, int]:
    page, dot, at = cursor.partition(".")
    if not (dot and page.isascii() and page.isdigit() and at.isascii() and at.isdigit()) or len(cursor) > 20:
        raise BadField("this cursor did not come from here", field="cursor")
    return int(page), min(int(at), PAGE_LINKS_MAX)
