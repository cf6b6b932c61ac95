"""A small cache of links in front of the store: short-lived, with one read in flight for each code.

Rules kept here:

- only what was found is kept; a miss is asked anew each time, so a link just made elsewhere is never a 404;
- who joins a read that began before they came does not take its miss: the link may have been made since;
- what was edited or deleted here is forgotten at once, also by reads that are under way, and a quorum is
  asked next: one replica may not have heard of the change;
- a code that a quorum did not find, although it was known, is asked of a quorum until it is found again;
- one replica that shows an older link than this cache has seen is not believed: a quorum is asked;
- a reader that is cancelled takes nobody with it: another of those who wait begins again.

How old an answer may be: an entry lives `ttl_s`; entries read from one replica are trusted until
`verify_s` after the last quorum read of that code, and the first read of all is followed by a quorum read
after `ttl_s`. So a change made elsewhere is seen within `verify_s + ttl_s`, while a quorum can be reached
and the entry is not pushed out: one that is forgotten early is read from one replica again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from kvstore.apps.shortener.link import Link


class Found(NamedTuple):
    """What a read brought."""

    link: Link | None
    version: int
    """Of the link's record; 0 where there is none."""
    verified: bool
    """A quorum said so."""


Read = Callable[[str, bool], Awaitable[Found]]
"""(code, must it be verified) -> what was found."""


@dataclass(frozen=True, slots=True)
class _Kept:
    link: Link
    version: int
    until_s: float
    verified_s: float | None
    """When a quorum was last asked."""


@dataclass(slots=True, eq=False)
class _Flight:
    began: int
    done: asyncio.Future[Link | None]
    stale: bool = field(default=False)
    """The link was changed here while the read was under way."""


class LinkCache:
    """Links by code."""

    def __init__(
        self, read: Read, *, monotonic: Callable[[], float], ttl_s: float, verify_s: float, links_max: int
    ) -> None:
        self._read = read
        self._monotonic = monotonic
        self._ttl_s = ttl_s
        self._verify_s = verify_s
        self._links_max = links_max
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._doubted: OrderedDict[str, None] = OrderedDict()
        """Codes of which one replica may still show what is gone: changed here, or missed by a quorum."""
        self._flights: dict[str, _Flight] = {}
        self._arrivals = 0
        self.hits = 0
        self.reads = 0

    async def get(self, code: str) -> Link | None:
        """The link, or None when there is none. Raises what a read raises."""
        self._arrivals += 1
        arrival = self._arrivals
        while True:
            kept = self._kept.get(code)
            if kept is not None and self._monotonic() < kept.until_s:
                self._kept.move_to_end(code)
                self.hits += 1
                return kept.link
            flight = self._flights.get(code)
            if flight is None:
                return await self._lead(code)
            try:
                found = await asyncio.shield(flight.done)
            except asyncio.CancelledError:
                if flight.done.cancelled() and not _is_cancelled():
                    continue
                raise
            if flight.stale or (found is None and flight.began < arrival):
                continue
            return found

    def forget(self, code: str) -> None:
        """Drop what is known of a code, and what reads under way will bring."""
        self._kept.pop(code, None)
        self._doubt(code)
        flight = self._flights.pop(code, None)
        if flight is not None:
            flight.stale = True

    async def _lead(self, code: str) -> Link | None:
        """Read for all who come while it lasts."""
        self._arrivals += 1
        flight = self._flights[code] = _Flight(self._arrivals, asyncio.get_running_loop().create_future())
        try:
            found = await self._load(code, flight)
        except Exception as error:
            flight.done.set_exception(error)
            flight.done.exception()  # seen: there may be nobody else who waits
            raise
        except BaseException:
            flight.done.cancel()
            raise
        else:
            flight.done.set_result(found)
            return found
        finally:
            if self._flights.get(code) is flight:
                del self._flights[code]

    async def _load(self, code: str, flight: _Flight) -> Link | None:
        before = self._kept.get(code)
        now_s = self._monotonic()
        verified_s = None if before is None else before.verified_s
        due = code in self._doubted
        if before is not None:
            due = due or verified_s is None or now_s - verified_s >= self._verify_s
        self.reads += 1
        found = await self._read(code, due)
        if before is not None and found.version < before.version and not found.verified:
            self.reads += 1
            found = await self._read(code, True)
        if flight.stale:
            return found.link
        if found.link is None:
            if self._kept.pop(code, None) is not None:
                self._doubt(code)
            return None
        if found.verified:
            self._doubted.pop(code, None)
            verified_s = now_s
        # Ages count from before the read: what it says may have been true only then.
        self._kept[code] = _Kept(found.link, found.version, now_s + self._ttl_s, verified_s)
        self._kept.move_to_end(code)
        while len(self._kept) > self._links_max:
            self._kept.popitem(last=False)
        return found.link

    def _doubt(self, code: str) -> None:
        self._doubted[code] = None
        self._doubted.move_to_end(code)
        while len(self._doubted) > self._links_max:
            self._doubted.popitem(last=False)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
