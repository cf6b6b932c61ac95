"""Clicks: noted in memory by the redirect, written to PN counters in batches.

A redirect calls `note`, which waits for nothing. Every `flush_s` the writer takes what is there and adds it
up per counter:

    url/c/ID/t             total
    url/c/ID/d/20261121    a day          url/c/ID/h/2026112109    an hour     (UTC)
    url/c/ID/r/HOST        a referrer     url/c/ID/g/DE            a country   url/c/ID/v/mobile   a device

Nothing is counted twice: an addition that ended `Unresolved` stays in the client's own total and travels
with the next one, so then zero is added, not the amount again; one that was `Refused` is owed. What can
be lost: on `kill -9` what came since the last flush began (`flush_s` and the time of a write); and clicks
beyond CLICKS_MAX different ones in memory, which `dropped` counts.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections import Counter, OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import kvstore
from kvstore import errors
from kvstore.apps.shortener import visitors
from kvstore.apps.shortener.link import counter_key, names_key

CLICKS_MAX = 20_000
"""Different clicks (link, hour, referrer, country, device) in memory; the same ones are only a number."""
REFERRERS_MAX, COUNTRIES_MAX, DAYS_MAX = 100, 250, 3_700
"""Counters a link may have of each sort; further referrers and countries are `other`."""
_NAMES_KEPT = 10_000
_WRITERS = 8
_WRITE_S = 1.0
_LAST_S = 8.0
"""How long a stop may take for clicks when the store does not take them."""
OWED_MAX = 100_000
"""Counters with additions that were refused; beyond that they are dropped, and counted as such."""


class Click(NamedTuple):
    """What is told apart about a visit."""

    link_id: str
    hour: str
    referrer: str
    country: str
    device: str


@dataclass(frozen=True, slots=True)
class Names:
    """Which counters a link has."""

    referrers: frozenset[str] = frozenset()
    countries: frozenset[str] = frozenset()
    days: frozenset[str] = frozenset()

    def encode(self) -> bytes:
        """The bytes of the register."""
        return json.dumps([sorted(self.referrers), sorted(self.countries), sorted(self.days)]).encode()

    @classmethod
    def decode(cls, data: bytes | None) -> Names:
        """The other way."""
        return cls() if data is None else cls(*(frozenset(part) for part in json.loads(data)))

    def with_clicks(self, clicks: Iterable[Click]) -> Names:
        """These and what the clicks bring, within the limits."""
        seen = sorted(clicks)
        return Names(
            _grown(self.referrers, (click.referrer for click in seen), REFERRERS_MAX),
            _grown(self.countries, (click.country for click in seen), COUNTRIES_MAX),
            _grown(self.days, (click.hour[:8] for click in seen), DAYS_MAX),
        )

    def counters_of(self, click: Click) -> tuple[str, ...]:
        """The keys that a click counts in."""
        referrer = click.referrer if click.referrer in self.referrers else visitors.OTHER
        country = click.country if click.country in self.countries else visitors.OTHER
        parts = (
            "t", f"d/{click.hour[:8]}", f"h/{click.hour}",
            f"r/{referrer}", f"g/{country}", f"v/{click.device}",
        )  # fmt: skip
        return tuple(counter_key(click.link_id, part) for part in parts)


def _grown(known: frozenset[str], new: Iterable[str], most: int) -> frozenset[str]:
    names = dict.fromkeys(sorted(known))
    for name in new:
        names.setdefault(name if len(names) < most else visitors.OTHER)
    return frozenset(names)


def hour_of(now_ms: int) -> str:
    """`2026112109`, in UTC."""
    return dt.datetime.fromtimestamp(now_ms // 1000, dt.UTC).strftime("%Y%m%d%H")


class Clicks:
    """Counts for all links. `run` is a task of whoever owns this; it flushes once more when it stops."""

    def __init__(self, kv: kvstore.Client, *, flush_s: float) -> None:
        self._kv = kv
        self._flush_s = flush_s
        self._noted: Counter[Click] = Counter()
        self._owed: Counter[str] = Counter()
        """By counter: what was refused and must be added; 0: an addition whose outcome is not known."""
        self._names: OrderedDict[str, Names] = OrderedDict()
        self.noted = 0
        self.dropped = 0
        self.failed = 0

    @property
    def waiting(self) -> int:
        """Clicks in memory."""
        return self._noted.total()

    def note(self, click: Click) -> None:
        """Count a visit. Never waits."""
        if click in self._noted or len(self._noted) < CLICKS_MAX:
            self._noted[click] += 1
            self.noted += 1
        else:
            self.dropped += 1

    async def run(self, stop: asyncio.Event) -> None:
        """Write until `stop` is set, and then what is left, as far as a store that fails allows."""
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write(stop))
            await stop.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await asyncio.shield(writing)
            writing.cancel()

    async def _write(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._flush_s):
                    await stop.wait()
            await self.flush()
        while self._noted or self._owed:  # the store failed: again, until `run` gives up
            await asyncio.sleep(self._flush_s)
            await self.flush()

    async def flush(self) -> None:
        """Write what is there. What could not be written now stays for the next time."""
        batch, self._noted = self._noted, Counter()
        amounts, self._owed = self._owed, Counter()
        by_link: dict[str, list[Click]] = {}
        for click in batch:
            by_link.setdefault(click.link_id, []).append(click)
        jobs = iter(sorted(by_link.items()))
        await self._together(lambda: self._name_all(jobs, batch, amounts))
        adding = iter(sorted(amounts.items()))
        await self._together(lambda: self._add_all(adding))

    async def _together(self, work: Any) -> None:
        """A few at a time, all of them from one iterator."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_WRITERS):
                tasks.create_task(work())

    async def _name_all(self, jobs: Any, batch: Counter[Click], amounts: Counter[str]) -> None:
        for link_id, clicks in jobs:
            try:
                names = await self._names_with(link_id, clicks)
            except errors.KVError:
                self.failed += 1
                for click in clicks:
                    self._noted[click] += batch[click]
                continue
            for click in clicks:
                for key in names.counters_of(click):
                    amounts[key] += batch[click]

    async def _names_with(self, link_id: str, clicks: list[Click]) -> Names:
        """A link's names with those of the clicks, in the store before anything is counted under them."""
        known = self._names.get(link_id)
        if known is None or known.with_clicks(clicks) != known:
            found: list[Names] = []

            def change(data: Any) -> bytes:
                found[:] = [Names.decode(data).with_clicks(clicks)]
                return found[0].encode()

            await self._kv.update(names_key(link_id), change, timeout=_WRITE_S)
            known = self._names[link_id] = found[0]
        self._names.move_to_end(link_id)
        while len(self._names) > _NAMES_KEPT:
            self._names.popitem(last=False)
        return known

    async def _add_all(self, adding: Any) -> None:
        for key, amount in adding:
            try:
                await self._kv.counter_add(key, amount, timeout=_WRITE_S)
            except errors.NotNow:
                self.failed += 1
                if len(self._owed) < OWED_MAX:
                    self._owed[key] += amount
                else:
                    self.dropped += amount
            except errors.Refused:
                self.failed += 1
                self.dropped += amount
            except errors.Unresolved:
                self.failed += 1
                self._owed[key] += 0


async def names_of(kv: kvstore.Client, link_id: str) -> Names:
    """Which counters a link has."""
    entry = await kv.get(names_key(link_id))
    return Names.decode(None if entry is None else entry.value)
