"""Clicks on their way to the counters, kept in the store: a killed process loses only what it never wrote.

    url/j                  register: names of all journals
    url/j/NAME             register: who works it off, and how far it is worked off: [record, entry]
    url/j/NAME/RECORD      a record: the clicks of one flush

A process writes its own journal, one record after the other, and works it off in portions. How far it is
moves on *before* a portion is counted: so a portion under way when its process dies is lost, and none is
ever counted twice. A journal whose register does not move for STILL_S belongs to nobody: another process
takes it over by compare-and-set, which the first one notices at its next step, should it live after all;
what it had written since is lost then, and not doubled.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import kvstore
from kvstore import errors
from kvstore.apps.shortener.codes import new_id
from kvstore.apps.shortener.counting import Click, Entry
from kvstore.apps.shortener.link import journal_key, record_key
from kvstore.apps.shortener.reservations import found_at, settled

STILL_S = 30.0
RECORDS_MAX = 20_000
"""Not yet worked off; with more, clicks wait in memory."""
_KEPT_S = 30 * 86_400.0
"""A record that nobody could delete ends by itself."""
_WRITE_S = 1.0
Place = tuple[int, int]


class TakenOver(Exception):
    """Somebody else works this journal off now."""


class FullError(Exception):
    """There are RECORDS_MAX records that wait."""


def encode(entries: list[Entry]) -> bytes:
    """A record's bytes."""
    plain = [[*click, n] for click, n in entries]
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()


def decode(data: bytes) -> list[Entry]:
    """The other way."""
    return [(Click(*parts), n) for *parts, n in json.loads(data)]


class Journal:
    """One journal, in the hands of this process."""

    def __init__(
        self, kv: kvstore.Client, name: str, *, at: Place = (0, 0), version: int = 0, written: int | None = 0
    ) -> None:
        """`version` 0: it is not in the store yet. `written` None: up to the first record that is missing."""
        self._kv = kv
        self._holder = new_id()
        self._version = version
        self._open: tuple[int, list[Entry]] | None = None
        self._lock = asyncio.Lock()
        self.name = name
        self.at = at
        self.written = written

    @property
    def waiting(self) -> int:
        """Records that are not worked off."""
        return 0 if self.written is None else self.written - self.at[0]

    async def append(self, record: bytes) -> None:
        """Write the next record; after an error, the same one again. Raises FullError, TakenOver, KVError."""
        assert self.written is not None
        if self.waiting >= RECORDS_MAX:
            raise FullError
        if not self._version:
            await self._enrol()
        await self._kv.put(record_key(self.name, self.written), record, ttl=_KEPT_S, timeout=_WRITE_S)
        self.written += 1

    async def take(self, most: int) -> list[Entry]:
        """The next portion, which nobody gets again; nothing at the end. Raises TakenOver, KVError."""
        while self.written is None or self.at[0] < self.written:
            number, first = self.at
            entries = await self._record(number)
            if entries is None and self.written is None:
                return []
            portion = (entries or [])[first : first + most]
            ended = first + len(portion) >= len(entries or [])
            await self.move((number + 1, 0) if ended else (number, first + len(portion)))
            if ended:
                self._open = None
                with suppress(errors.KVError):
                    await self._kv.delete(record_key(self.name, number), timeout=_WRITE_S)
            if portion:
                return portion
        return []

    async def move(self, to: Place) -> None:
        """Note how far it is. Raises TakenOver, KVError."""
        async with self._lock:
            await self._moved(to)

    async def beat(self) -> None:
        """Show that somebody is there. Raises TakenOver, KVError."""
        async with self._lock:
            if self._version:
                await self._moved(self.at)

    async def _moved(self, to: Place) -> None:
        new = json.dumps([self._holder, *to]).encode()
        while True:
            change = self._kv.cas(journal_key(self.name), new=new, expected_version=self._version)
            done = await settled(self._kv, change)
            if done:
                self._version, self.at = done.version, to
                return
            await self._look_again()

    async def _look_again(self) -> None:
        """Learn the version that an attempt of ours has left, whose outcome we never heard."""
        found = await found_at(self._kv, journal_key(self.name))
        if found is None or json.loads(found[0])[0] != self._holder:
            raise TakenOver
        self._version = found[1]

    async def close(self) -> None:
        """Strike it off, if there is nothing left in it. Raises KVError."""
        if self._version and not self.waiting:
            await _listed(self._kv, lambda names: names - {self.name})
            await self._kv.delete_if(journal_key(self.name), expected_version=self._version)

    async def _enrol(self) -> None:
        await _listed(self._kv, lambda names: names | {self.name})
        new = json.dumps([self._holder, *self.at]).encode()
        done = await settled(self._kv, self._kv.put_if_absent(journal_key(self.name), new))
        if done:
            self._version = done.version
        else:
            await self._look_again()

    async def _record(self, number: int) -> list[Entry] | None:
        if self._open is None or self._open[0] != number:
            entry = await self._kv.get(record_key(self.name, number), timeout=_WRITE_S)
            if entry is None:
                return None
            self._open = number, decode(entry.value)
        return self._open[1]


class Lookout:
    """Finds journals that nobody works off."""

    def __init__(self, kv: kvstore.Client, monotonic: Callable[[], float]) -> None:
        self._kv = kv
        self._monotonic = monotonic
        self._seen: dict[str, tuple[int, float]] = {}
        """By name: a version, and since when it has been that."""

    async def orphan(self, own: str) -> Journal | None:
        """One that stood still for STILL_S, now ours. Raises KVError."""
        names = await _listed(self._kv, None) - {own}
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        for name in sorted(names):
            found = await found_at(self._kv, journal_key(name))
            if found is None:
                await _listed(self._kv, lambda listed, gone=name: listed - {gone})  # type: ignore[misc]
                continue
            data, version = found
            if self._seen.get(name, (0, 0.0))[0] != version:
                self._seen[name] = version, self._monotonic()
            elif self._monotonic() - self._seen[name][1] >= STILL_S:
                _, record, entry = json.loads(data)
                journal = Journal(self._kv, name, at=(record, entry), version=version, written=None)
                with suppress(TakenOver):
                    await journal.move(journal.at)
                    return journal
        return None


async def _listed(
    kv: kvstore.Client, change: Callable[[frozenset[str]], frozenset[str]] | None
) -> frozenset[str]:
    """The names of all journals, after a change if there is one."""
    names: frozenset[str] = frozenset()

    def changed(data: Any) -> bytes:
        nonlocal names
        names = frozenset(json.loads(data or b"[]"))
        names = names if change is None else change(names)
        return json.dumps(sorted(names)).encode()

    if change is None:
        found = await found_at(kv, journal_key(""))
        return frozenset(json.loads(found[0])) if found is not None else names
    await kv.update(journal_key(""), changed)
    return names
