"""Clicks into PN counters: which counters a click counts in, and additions that are certain in the end.

    url/c/ID/v/mobile      a class of device; the sum over all classes is the total
    url/c/ID/d/20261121    a day          url/c/ID/h/2026112109    an hour     (UTC)
    url/c/ID/r/HOST        a referrer     url/c/ID/g/DE            a country
    url/n/ID               register: which referrers and countries there are

Who came from nowhere and whose country nobody told has no counter of that sort: it is what the others leave
of the total. Nothing is added twice: an addition that ended `Unresolved` stays in the client's own total
and travels with the next one, so then zero is added, not the amount again; one that was `Refused` is owed.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import kvstore
from kvstore import errors
from kvstore.apps.shortener import visitors
from kvstore.apps.shortener.link import counter_key, names_key

REFERRERS_MAX, COUNTRIES_MAX = 100, 250
"""Counters a link may have of each sort; further ones are `other`."""
_NAMES_KEPT = 10_000
_WRITERS = 64
"""Many at once share the syncs of the disks below."""
_WRITE_S = 1.0
_PAUSE_S = 0.2


class Click(NamedTuple):
    """What is told apart about a visit."""

    link_id: str
    hour: str
    referrer: str
    country: str
    device: str


Entry = tuple[Click, int]
"""A click, and how often."""


@dataclass(frozen=True, slots=True)
class Names:
    """Which counters a link has, beside those every link has."""

    referrers: frozenset[str] = frozenset()
    countries: frozenset[str] = frozenset()

    def encode(self) -> bytes:
        """The bytes of the register."""
        return json.dumps([sorted(self.referrers), sorted(self.countries)]).encode()

    @classmethod
    def decode(cls, data: bytes | None) -> Names:
        """The other way."""
        return cls() if data is None else cls(*(frozenset(part) for part in json.loads(data)))

    def with_clicks(self, clicks: Iterable[Click]) -> Names:
        """These and what the clicks bring, within the limits."""
        seen = sorted(clicks)
        referrers = (click.referrer for click in seen if click.referrer != visitors.DIRECT)
        countries = (click.country for click in seen if click.country != visitors.UNKNOWN)
        return Names(
            _grown(self.referrers, referrers, REFERRERS_MAX), _grown(self.countries, countries, COUNTRIES_MAX)
        )

    def counters_of(self, click: Click) -> Iterator[str]:
        """The keys that a click counts in."""
        for part in (f"v/{click.device}", f"d/{click.hour[:8]}", f"h/{click.hour}"):
            yield counter_key(click.link_id, part)
        for letter, name, known, usual in (
            ("r", click.referrer, self.referrers, visitors.DIRECT),
            ("g", click.country, self.countries, visitors.UNKNOWN),
        ):
            if name != usual:
                yield counter_key(click.link_id, f"{letter}/{name if name in known else visitors.OTHER}")


def _grown(known: frozenset[str], new: Iterable[str], most: int) -> frozenset[str]:
    names = dict.fromkeys(sorted(known))
    for name in new:
        names.setdefault(name if len(names) < most else visitors.OTHER)
    return frozenset(names)


def hour_of(now_ms: int) -> str:
    """`2026112109`, in UTC."""
    return _hour(now_ms // 3_600_000)


@lru_cache(64)
def _hour(hours: int) -> str:
    return dt.datetime.fromtimestamp(hours * 3600, dt.UTC).strftime("%Y%m%d%H")


class Counting:
    """Adds to counters until every addition is certain."""

    def __init__(self, kv: kvstore.Client) -> None:
        self._kv = kv
        self._names: OrderedDict[str, Names] = OrderedDict()
        self.failed = 0
        """Attempts that were made again."""
        self.dropped = 0
        """Clicks that the store will never take."""

    async def count(self, entries: Sequence[Entry]) -> int:
        """Add them all; however long the store takes. Returns how many counters that were."""
        by_link: dict[str, list[Entry]] = {}
        for entry in entries:
            by_link.setdefault(entry[0].link_id, []).append(entry)
        amounts: Counter[str] = Counter()

        async def name(link_id: str, found: list[Entry]) -> None:
            names = await self._named(link_id, [click for click, _ in found])
            for click, n in found:
                for key in names.counters_of(click):
                    amounts[key] += n

        await _together(sorted(by_link.items()), name)
        await _together(sorted(amounts.items()), self._surely)
        return len(amounts)

    async def _named(self, link_id: str, clicks: list[Click]) -> Names:
        """A link's names with those of the clicks, in the store before anything is counted under them."""
        known = self._names.get(link_id, Names())
        if known.with_clicks(clicks) != known:
            known = await self._renamed(link_id, clicks)
            self._names[link_id] = known
            self._names.move_to_end(link_id)
            while len(self._names) > _NAMES_KEPT:
                self._names.popitem(last=False)
        return known

    async def _renamed(self, link_id: str, clicks: list[Click]) -> Names:
        found = Names()

        def change(data: Any) -> bytes:
            nonlocal found
            found = Names.decode(data).with_clicks(clicks)
            return found.encode()

        while True:
            try:
                await self._kv.update(names_key(link_id), change, timeout=_WRITE_S)
                return found
            except errors.KVError:
                self.failed += 1
                await asyncio.sleep(_PAUSE_S)

    async def _surely(self, key: str, amount: int) -> None:
        owed = amount
        while True:
            try:
                await self._kv.counter_add(key, owed, timeout=_WRITE_S)
                return
            except (errors.NotNow, errors.Unresolved) as error:
                self.failed += 1
                if isinstance(error, errors.Unresolved):
                    owed = 0  # it is in the client's total: what is left to do is to see that arrive
                await asyncio.sleep(_PAUSE_S)
            except errors.Refused:
                self.dropped += amount
                return


async def _together(jobs: Iterable[tuple[Any, Any]], work: Callable[[Any, Any], Awaitable[None]]) -> None:
    """A few at a time, all of them from one iterator."""
    left = iter(jobs)

    async def some() -> None:
        for job in left:
            await work(*job)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_WRITERS):
            tasks.create_task(some())


async def names_of(kv: kvstore.Client, link_id: str) -> Names:
    """Which counters a link has."""
    entry = await kv.get(names_key(link_id))
    return Names.decode(None if entry is None else entry.value)
