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
from typing import Any

import kvstore
from kvstore.apps.shortener.link import page_key
from kvstore.apps.shortener.problems import BadField

PAGE_LINKS_MAX = 200
_STRIPES = 64
_CHANGE_S = 10.0
Listed = tuple[str, str]
"""(code, id)."""


def _entries(data: bytes | None) -> list[Listed]:
    return [] if data is None else [(code, link_id) for code, link_id in json.loads(data)]


def _packed(entries: list[Listed]) -> bytes:
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()


class OwnedLists:
    """Lists of all owners."""

    def __init__(self, kv: kvstore.Client) -> None:
        self._kv = kv
        # One owner's changes in this process queue up here, instead of beating each other in the store.
        self._locks = [asyncio.Lock() for _ in range(_STRIPES)]

    def _lock(self, owner: str) -> asyncio.Lock:
        return self._locks[zlib.crc32(owner.encode()) % _STRIPES]

    async def add(self, owner: str, entry: Listed) -> int:
        """Append; once, however often it is asked. Returns the page."""
        async with self._lock(owner):
            while True:
                page = await self._last(owner)
                if await self._added(owner, page, entry):
                    return page
                await self._turn(owner, page + 1)

    async def _added(self, owner: str, page: int, entry: Listed) -> bool:
        fits = True

        def change(data: Any) -> bytes:
            nonlocal fits
            entries = _entries(data)
            fits = entry in entries or len(entries) < PAGE_LINKS_MAX
            return _packed(entries if entry in entries or not fits else [*entries, entry])

        await self._kv.update(page_key(owner, page), change, timeout=_CHANGE_S)
        return fits

    async def remove(self, owner: str, page: int, entry: Listed) -> None:
        """Take an entry out."""
        async with self._lock(owner):
            await self._kv.update(
                page_key(owner, page),
                lambda data: _packed([each for each in _entries(data) if each != entry]),
                timeout=_CHANGE_S,
            )

    async def read(self, owner: str, cursor: str | None, limit: int) -> tuple[list[Listed], str | None]:
        """Newest first, and the cursor of what comes next. Something deleted meanwhile may repeat others."""
        if cursor is None:
            page, at = await self._last(owner), PAGE_LINKS_MAX
        else:
            page, at = _position(cursor)
        found: list[Listed] = []
        while page >= 0:
            entry = await self._kv.get(page_key(owner, page))
            entries = _entries(entry.value if entry is not None else None)[:at]
            take = entries[-(limit - len(found)) :][::-1]
            found += take
            left = len(entries) - len(take)
            if len(found) == limit:
                more = left > 0 or page > 0
                return found, f"{page}.{left}" if more else None
            page, at = page - 1, PAGE_LINKS_MAX
        return found, None

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
