"""The URL shortener: several services make, follow and delete links, fight for aliases, crash, count clicks.

Clients that may ask any node share one service, as the requests of one process do; each client that stays
with a node has its own. A crash forgets what a service has in memory, in the middle of counting, and the
next one begins with nothing. Times of links are told by this machine's clock, which no nemesis turns.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from jepsen_lite.checks_shortener import check_claims, check_clicks, check_lives, check_targets
from jepsen_lite.history import Operation
from jepsen_lite.seat import Seat
from jepsen_lite.verdict import Verdict, guarded
from kvstore import errors
from kvstore.apps.shortener.clicks import Clicks
from kvstore.apps.shortener.clock import wall_ms
from kvstore.apps.shortener.counting import Click, hour_of
from kvstore.apps.shortener.journal import TakenOver
from kvstore.apps.shortener.links import Links
from kvstore.apps.shortener.options import ShortenerOptions
from kvstore.apps.shortener.problems import Problem
from kvstore.apps.shortener.wishes import Wish

_T = TypeVar("_T")
_OPTIONS = ShortenerOptions(cache_ttl_s=1.0, verify_s=4.0)
_OWNERS = ("ada", "bob", "eve")
_RECENT = 25
_ALIAS_USES = 25
_FINALS = 15
_TRIES = 20


@dataclass(slots=True, eq=False)
class _Service:
    """What one process of the service has in memory."""

    name: str
    links: Links
    clicks: Clicks
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class _Made:
    """A link that was acknowledged."""

    code: str
    owner: str
    is_alias: bool
    ttl: float


@contextmanager
def _telling(op: Operation) -> Iterator[None]:
    """What the application refuses is a failure, by its name."""
    try:
        yield
    except Problem as problem:
        op.outcome, op.error = "fail", problem.kind


async def _persisted(work: Callable[[], Awaitable[_T]]) -> _T:
    """After healing the store may still need a moment. Raises errors.KVError when it is too long."""
    for _ in range(_TRIES):
        with suppress(errors.KVError, TakenOver):
            return await work()
        await asyncio.sleep(0.2)
    return await work()


class Shorteners:
    """Make, click, unmake, flush, crash."""

    linearizable = True
    keys_are_stored = False

    def __init__(self) -> None:
        self._services: dict[str, _Service] = {}
        self._numbers = itertools.count()
        self._made: list[_Made] = []
        self._aliases = 0
        self._unmade: list[str] = []
        self._is_settled = False

    async def step(self, seat: Seat) -> None:
        """Mostly visits; now and then everything a service lives through."""
        draw = seat.dice.random()
        if draw < 0.2:
            await self._make_new(seat)
        elif draw < 0.35:
            self._aliases += 1
            await self._make(seat, self._url(seat), alias=f"alias-{self._aliases // _ALIAS_USES}")
        elif draw < 0.4:
            await self._unmake(seat)
        elif draw < 0.5:
            await self._count(seat)
        elif draw < 0.52:
            await self._crash(seat)
        else:
            await self._click(seat)

    async def _make_new(self, seat: Seat) -> None:
        """A link of any code; a request of unknown outcome is repeated under its key."""
        ttl = seat.dice.choice((0.0, 0.0, 1.5, 4.0))
        key = seat.unique() if seat.dice.random() < 0.6 else None
        url = self._url(seat)
        op = await self._make(seat, url, ttl=ttl, key=key)
        if key is not None and (op.outcome == "unknown" or seat.dice.random() < 0.1):
            await self._make(seat, url, ttl=ttl, key=key)

    async def _make(
        self, seat: Seat, url: str, *, alias: str | None = None, ttl: float = 0.0, key: str | None = None
    ) -> Operation:
        owner = _OWNERS[0] if key else seat.dice.choice(_OWNERS)
        wish = Wish(url=url, alias=alias, ttl_s=ttl or None)

        async def ask(op: Operation) -> None:
            with _telling(op):
                made = await self._service(seat).links.create(owner, wish, idempotency_key=key)
                op.seen, op.observed = made.link.code, True
                self._made.append(_Made(made.link.code, owner, alias is not None, ttl))

        return await seat.call("make", alias or "new", ask, value=url, ttl=ttl)

    async def _click(self, seat: Seat) -> None:
        """Follow a link as a visitor does, or an alias that may not be there."""
        if not self._made or seat.dice.random() < 0.1:
            code = f"alias-{self._aliases // _ALIAS_USES}"
        else:
            code = seat.dice.choice(self._made[-_RECENT:]).code
        await self._follow(seat, "click", code)

    async def _follow(self, seat: Seat, kind: str, code: str) -> None:
        service = self._service(seat)

        async def ask(op: Operation) -> None:
            with _telling(op):
                link = await service.links.resolve(code)
                op.value = link.url
                if kind == "click":
                    # The one there is now: the other may have crashed meanwhile.
                    counting = self._service(seat)
                    op.expected = counting.name
                    counting.clicks.note(Click(link.id, hour_of(wall_ms()), "direct", "--", "bot"))

        await seat.call(kind, code, ask)

    async def _unmake(self, seat: Seat) -> None:
        able = [made for made in self._made[-_RECENT:] if not made.is_alias and not made.ttl]
        if not able:
            return
        made = seat.dice.choice(able)

        async def ask(op: Operation) -> None:
            with _telling(op):
                await self._service(seat).links.delete(made.owner, made.code)

        op = await seat.call("unmake", made.code, ask)
        if op.outcome == "ok":
            self._unmade.append(made.code)

    async def _count(self, seat: Seat) -> None:
        """Write what a service has noted, and count it."""
        service = self._service(seat)
        async with service.turn:
            if service is self._service(seat):
                await self._flush(seat, service)
                with suppress(errors.KVError):
                    await service.clicks.settle()

    async def _flush(self, seat: Seat, service: _Service) -> bool:
        async def ask(op: Operation) -> None:
            if not await service.clicks.flush():
                op.outcome, op.error = "fail", "not written"

        return (await seat.call("flush", service.name, ask)).outcome == "ok"

    async def _crash(self, seat: Seat) -> None:
        """End a service in the middle of what it does."""
        service = self._service(seat)
        async with service.turn:
            if service is not self._service(seat):
                return

            async def ask(_op: Operation) -> None:
                with suppress(TimeoutError, errors.KVError):
                    async with asyncio.timeout(seat.dice.uniform(0.0, 0.03)):
                        await service.clicks.settle()
                self._services.pop(seat.node, None)

            await seat.call("crash", service.name, ask)

    def _service(self, seat: Seat) -> _Service:
        """The service of this seat; of the last reads, one of their own."""
        where = f"final {seat.node}" if seat.final else seat.node
        found = self._services.get(where)
        if found is None:
            loop = asyncio.get_running_loop()
            links = Links(seat.kv, _OPTIONS, now_ms=wall_ms, monotonic=loop.time)
            clicks = Clicks(seat.kv, flush_s=1.0, monotonic=loop.time, counters_per_s=1_000_000)
            found = self._services[where] = _Service(f"{where}.{next(self._numbers)}", links, clicks)
        return found

    def _url(self, seat: Seat) -> str:
        return f"https://example.com/{seat.unique()}"

    async def finish(self, seat: Seat) -> None:
        """Count all clicks, once; then look at the newest links and their totals, and make one."""
        if not self._is_settled:
            self._is_settled = True
            await self._settle(seat)
        gone = set(self._unmade)
        tried = {each.code: each for each in self._made if not each.ttl and each.code not in gone}
        for each in list(tried.values())[-_FINALS:]:
            if await self._is_there(seat, each):
                await self._follow(seat, "resolve", each.code)
                await self._total(seat, each)
        await self._make(seat, self._url(seat))
        for code in self._unmade[-3:]:
            await self._look_for(seat, code)

    async def _settle(self, seat: Seat) -> None:
        """What lives writes and counts; what crashed is taken over, as soon as the time for that is up."""
        for service in list(self._services.values()):
            for _ in range(_TRIES):
                if await self._flush(seat, service):
                    break
                await asyncio.sleep(0.2)
            await _persisted(service.clicks.settle)
        jumps = itertools.count(step=1000)
        heir = Clicks(seat.kv, flush_s=1.0, monotonic=lambda: float(next(jumps)), counters_per_s=1_000_000)
        await _persisted(heir.adopt)  # sees how far they are
        while await _persisted(heir.adopt):
            pass

    async def _is_there(self, seat: Seat, made: _Made) -> bool:
        """Whether its owner has it: a deletion of unknown outcome leaves nothing that one could promise."""
        with suppress(Problem):
            await self._service(seat).links.get(made.owner, made.code)
            return True
        return False

    async def _total(self, seat: Seat, made: _Made) -> None:
        async def ask(op: Operation) -> None:
            _, stats = await self._service(seat).links.stats(made.owner, made.code)
            op.value = stats.total

        await seat.call("total", made.code, ask)

    async def _look_for(self, seat: Seat, code: str) -> None:
        """A first read may come from a replica that does not know; the next one is after the stated time."""
        links = self._service(seat).links
        with suppress(Problem):
            await links.resolve(code)
            await asyncio.sleep(_OPTIONS.spread_s)

        async def ask(op: Operation) -> None:
            with suppress(Problem):
                op.value = (await links.resolve(code)).url

        await seat.call("gone", code, ask)

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """See `checks_shortener`."""
        return [
            guarded("targets", lambda: check_targets(operations)),
            guarded("lives", lambda: check_lives(operations)),
            guarded("claims", lambda: check_claims(operations)),
            guarded("clicks", lambda: check_clicks(operations)),
        ]
