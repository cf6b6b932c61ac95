"""Local mode holds its stated bound whatever the instances do, and the bound is reached."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvstore
from kvstore import errors
from kvstore.apps.ratelimit import headers, ledger
from kvstore.apps.ratelimit.clock import StoreClock
from kvstore.apps.ratelimit.ledger import Ledger, Verdict
from kvstore.apps.ratelimit.limit import Algorithm, Limit
from kvstore.apps.ratelimit.limiter import Limiter
from kvstore.apps.ratelimit.machine import Moment, steady_us
from kvstore.apps.ratelimit.purses import Purse, Purses, over_admission_max
from kvstore.apps.ratelimit.rules import Mode, Rule

START_US = 1_700_000_000_000_000
KEY = b"k"


AHEAD = contextvars.ContextVar("AHEAD", default=False)
"""Set in a task that renews ahead of need, whose answers take their time."""


@dataclass
class World:
    """One ledger that all instances share, and the time they agree on."""

    now_us: int = START_US
    book: Ledger = field(default_factory=Ledger)
    grants: int = 0
    landing: asyncio.Event = field(default_factory=asyncio.Event)
    fails: bool = False

    async def grant(
        self, key: bytes, limits: Sequence[Limit], *, least: int, most: int
    ) -> tuple[int, Verdict]:
        assert key == KEY
        if self.fails:
            raise errors.NoMajority(operation="grant")
        self.grants += 1
        got, verdict, self.book = ledger.grant(
            limits, self.book, now=Moment(self.now_us), least=least, most=most
        )
        if AHEAD.get():
            await self.landing.wait()
        return got, verdict

    async def land(self) -> None:
        """Let the answers arrive that are on their way."""
        self.landing.set()
        for _ in range(5):
            await asyncio.sleep(0)
        self.landing = asyncio.Event()

    def instance(self, limit: Limit, *, batch: int, lease_us: int) -> Instance:
        return Instance(self, limit, batch=batch, lease_us=lease_us)


class Instance:
    """What a limiter does with its purses, with renewals that land when the test says so."""

    def __init__(self, world: World, limit: Limit, *, batch: int, lease_us: int) -> None:
        self.world = world
        self.limits: tuple[Limit, ...] = (limit,)
        self.purses = Purses(world, clock=lambda: world.now_us)
        self.batch, self.lease_us = batch, lease_us
        self.renewing: list[asyncio.Task[None]] = []

    async def take(self, cost: int, *, ahead: bool = True) -> bool:
        purse = self.purses.open(("rule", "k"), KEY, self.limits, batch=self.batch, lease_us=self.lease_us)
        verdict = purse.spend(cost, self.world.now_us)
        if verdict is not None:
            if ahead and purse.wants_more(self.world.now_us):
                purse.is_renewing = True
                self.renewing.append(asyncio.create_task(self._renew(purse)))
                await asyncio.sleep(0)
            return verdict.allowed
        waiting = asyncio.create_task(self.purses.take(purse, cost))
        for _ in range(5):
            await asyncio.sleep(0)
        if not waiting.done():  # behind a renewal
            await self.world.land()
        return (await waiting).allowed

    async def _renew(self, purse: Purse) -> None:
        AHEAD.set(True)
        await self.purses.renew(purse)
        purse.is_renewing = False


Step = tuple[int, int, int, bool]
"""Microseconds since the one before, the instance, the cost, and whether renewals land before it."""
steps = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 200, 450, 1000]), st.integers(0, 2), st.integers(1, 2), st.booleans()
    ),
    max_size=60,
)
KINDS = [
    Algorithm.TOKEN_BUCKET,
    Algorithm.FIXED_WINDOW,
    Algorithm.SLIDING_LOG,
    Algorithm.SLIDING_COUNTER,
]


async def spent(limit: Limit, made: list[Step], *, batch: int, lease_us: int) -> list[tuple[int, int]]:
    world = World()
    instances = [world.instance(limit, batch=batch, lease_us=lease_us) for _ in range(3)]
    told = []
    for step, number, cost, is_landing in made:
        world.now_us += step
        if is_landing:
            await world.land()
        if await instances[number].take(cost):
            told.append((world.now_us, cost))
        purse = instances[number].purses.find(("rule", "k"))
        assert purse is not None
        assert purse.tokens + purse.next_tokens <= batch
    await world.land()
    assert all(task.done() for each in instances for task in each.renewing)
    return told


def most_beyond(limit: Limit, told: list[tuple[int, int]]) -> int:
    """How far beyond its promise the worst span of this limit went."""
    worst = 0
    for first, (begin, _) in enumerate(told):
        took = 0
        for at, cost in told[first:]:
            match limit.algorithm:
                case Algorithm.TOKEN_BUCKET:
                    allowed = limit.capacity + limit.amount * (at - begin) // limit.period_us
                case Algorithm.SLIDING_LOG if at - begin >= limit.period_us:
                    break
                case _ if (
                    limit.algorithm is not Algorithm.SLIDING_LOG
                    and at // limit.period_us != begin // limit.period_us
                ):
                    break
                case _:
                    allowed = limit.amount
            took += cost
            worst = max(worst, took - allowed)
    return worst


@given(st.sampled_from(KINDS), steps, st.integers(1, 6), st.sampled_from([300, 1000, 2500]))
def test_over_admission_stays_within_the_stated_bound(
    kind: Algorithm, made: list[Step], batch: int, lease_us: int
) -> None:
    limit = Limit(algorithm=kind, amount=6, period_us=1000)
    told = asyncio.run(spent(limit, made, batch=batch, lease_us=lease_us))
    bound = over_admission_max(limit, instances=3, batch=batch, lease_us=lease_us)
    # A call that costs more than a batch is charged when it is made, so it adds nothing.
    assert most_beyond(limit, told) <= bound


async def test_the_bound_is_reached_so_it_is_not_idle_talk() -> None:
    """Three instances hold a window's tokens over its end."""
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=6, period_us=1000), World()
    world.now_us = START_US + 999
    first, *others = instances = [world.instance(limit, batch=2, lease_us=500) for _ in range(3)]
    for each in instances:  # one token each is spent before the end of the window, one is held
        assert await each.take(1)
    world.now_us += 1
    assert [await each.take(1, ahead=False) for each in instances] == [True] * 3
    got = [await each.take(1, ahead=False) for each in (*instances, *instances, first)]
    assert sum(got) == limit.amount
    assert others
    # 3 held ones and 6 new ones; the bound says 3 * 2, of which one each was spent when it was charged.
    assert over_admission_max(limit, instances=3, batch=2, lease_us=500) == 6


async def test_decisions_are_made_in_memory_and_the_purse_is_full_before_it_is_empty() -> None:
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=100, period_us=1_000_000), World()
    one = world.instance(limit, batch=40, lease_us=1000)
    assert await one.take(1)
    for _ in range(28):
        assert await one.take(1)
    assert (world.grants, one.renewing) == (1, [])
    assert await one.take(1), "a quarter is left"
    assert (world.grants, len(one.renewing)) == (2, 1)
    assert await one.take(1), "meanwhile the rest is spent"
    await world.land()
    purse = one.purses.find(("rule", "k"))
    assert purse is not None
    # 10 were left when 30 were asked for.
    assert (purse.tokens, purse.next_tokens) == (9, 30)
    got = []
    for _ in range(200):
        got.append(await one.take(1))
        await world.land()
    assert sum(got) + 31 == 100
    assert world.grants <= 6, "and the refusal is remembered"


async def test_a_purse_whose_lease_ends_soon_is_renewed_and_the_new_part_outlives_it() -> None:
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=100, period_us=1_000_000), World()
    one = world.instance(limit, batch=10, lease_us=1000)
    assert await one.take(4)
    world.now_us += 750
    assert await one.take(1)
    await world.land()
    world.now_us += 250
    # The five that were left are forfeited; five came ahead of need.
    assert [await one.take(1, ahead=False) for _ in range(5)] == [True] * 5
    assert world.grants == 2


async def test_what_is_not_spent_in_time_is_forfeited() -> None:
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=10, period_us=1_000_000), World()
    one = world.instance(limit, batch=10, lease_us=1000)
    assert await one.take(1)
    world.now_us += 1000
    assert not await one.take(1)


async def test_a_smaller_call_still_gets_what_a_larger_one_could_not() -> None:
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=3, period_us=1_000_000), World()
    one = world.instance(limit, batch=1, lease_us=1000)
    assert not await one.take(4)
    assert await one.take(3)


async def test_refused_calls_take_nothing_from_those_that_are_allowed() -> None:
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=20, period_us=1_000_000), World()
    one = world.instance(limit, batch=5, lease_us=1000)
    for _ in range(20):
        assert await one.take(1, ahead=False)
        assert not await one.take(21, ahead=False)
    assert not await one.take(1, ahead=False)


async def test_what_a_refusal_gives_back_ends_with_its_lease_and_with_a_reset() -> None:
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=5, period_us=1_000_000), World()
    one = world.instance(limit, batch=5, lease_us=1000)
    purse = one.purses.open(("rule", "k"), KEY, one.limits, batch=5, lease_us=1000)
    assert await one.take(1, ahead=False)
    assert not await one.take(6, ahead=False)
    assert (purse.tokens, purse.ends_us) == (4, START_US + 1000)
    world.now_us += 1000
    assert not await one.take(1, ahead=False)
    world.book, world.now_us = Ledger(), world.now_us + 1000
    assert await one.take(1, ahead=False)
    AHEAD.set(True)
    asking = asyncio.create_task(one.purses.take(purse, 6))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (purse.tokens, purse.aside) == (0, 4)
    one.purses.forget(("rule", "k"))
    await world.land()
    await asking
    assert (purse.tokens, purse.aside) == (0, 0)


async def test_tokens_come_back_when_the_store_fails() -> None:
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=9, period_us=1_000_000), World()
    one = world.instance(limit, batch=5, lease_us=1000)
    assert await one.take(1, ahead=False)
    world.fails = True
    with pytest.raises(errors.NoMajority):
        await one.take(6, ahead=False)
    assert [await one.take(1, ahead=False) for _ in range(4)] == [True] * 4


async def test_a_refusal_is_remembered_for_a_lease_and_tells_when_the_limit_has_room() -> None:
    """Another instance may have reset the key."""
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=2, period_us=1_000_000), World()
    one = world.instance(limit, batch=2, lease_us=1000)
    assert [await one.take(1, ahead=False) for _ in range(3)] == [True, True, False]
    world.book, world.now_us, grants = Ledger(), world.now_us + 999, world.grants
    purse = one.purses.find(("rule", "k"))
    assert purse is not None
    told = purse.spend(1, world.now_us)
    assert told is not None
    assert (told.allowed, world.now_us + told.retry_after_us) == (False, START_US + 1_000_000)
    assert world.grants == grants
    world.now_us += 1
    assert await one.take(1, ahead=False)


async def test_other_limits_begin_with_an_empty_purse_that_never_was_refused() -> None:
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=2, period_us=1_000_000), World()
    one = world.instance(limit, batch=2, lease_us=1000)
    assert [await one.take(1, ahead=False) for _ in range(3)] == [True, True, False]
    old = one.purses.find(("rule", "k"))
    one.limits = (replace(limit, amount=9), replace(limit, amount=8))
    assert await one.take(1, ahead=False)
    purse = one.purses.find(("rule", "k"))
    assert purse is not None
    assert purse is not old
    assert len(purse.verdict(True, 0).decisions) == 2


@pytest.mark.e2e
@pytest.mark.slow
async def test_a_reload_decides_anew_and_tells_of_the_limits_there_are() -> None:
    day = Limit(algorithm=Algorithm.SLIDING_LOG, amount=2, period_us=86_400_000_000)
    rule = Rule(name="r", limits=(day,), mode=Mode.LOCAL, batch=2, lease_us=60_000_000)
    second = Limit(algorithm=Algorithm.TOKEN_BUCKET, amount=5, period_us=1_000_000)
    async with kvstore.local_cluster(nodes=1) as kv:
        limiter = Limiter(kv, {"r": rule}, timeout_s=20)
        assert [bool(await limiter.check("r", "k")) for _ in range(3)] == [True, True, False]
        limiter.rules = {"r": replace(rule, limits=(day, second))}
        refused = await limiter.check("r", "k")
        assert not refused
        assert dict(headers.headers_of(refused))["RateLimit"].count("r.") == 2
        limiter.rules = {"r": replace(rule, limits=(replace(day, amount=9), second))}
        allowed = await limiter.check("r", "k")
        assert allowed
        assert dict(headers.headers_of(allowed))["RateLimit"].count("r.") == 2
        await limiter.close()


@pytest.mark.e2e
@pytest.mark.slow
async def test_a_service_that_asks_the_store_beside_its_calls_alone_compares_its_clock() -> None:
    ahead = [0]
    clock = StoreClock(lambda: steady_us() + ahead[0])
    limit = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=1000, period_us=86_400_000_000)
    rule = Rule(name="r", limits=(limit,), mode=Mode.LOCAL, batch=100, lease_us=3_600_000_000)
    async with kvstore.local_cluster(nodes=1) as kv:
        limiter = Limiter(kv, {"r": rule}, clock=clock, timeout_s=20)
        assert await limiter.check("r", "k")
        ahead[0] += 3_000_000_000  # less than a quarter of the lease is left
        assert clock.moment().doubt_us > 2_000_000
        assert await limiter.check("r", "k")
        async with asyncio.timeout(20):
            while not limiter.counts.renewals["granted"]:
                await asyncio.sleep(0.005)
        assert clock.moment().doubt_us < 2_000_000
        await limiter.close()


@pytest.mark.parametrize(
    ("kind", "lease_us", "bound"),
    [
        (Algorithm.TOKEN_BUCKET, 1000, 6),  # what flows in during one lease
        (Algorithm.TOKEN_BUCKET, 100, 1),
        (Algorithm.TOKEN_BUCKET, 100_000, 20),  # what all instances hold
        (Algorithm.SLIDING_LOG, 100, 6),
        (Algorithm.FIXED_WINDOW, 2001, 18),
    ],
)
def test_the_bound_as_documented(kind: Algorithm, lease_us: int, bound: int) -> None:
    limit = Limit(algorithm=kind, amount=6, period_us=1000)
    assert over_admission_max(limit, instances=4, batch=5, lease_us=lease_us) == bound
