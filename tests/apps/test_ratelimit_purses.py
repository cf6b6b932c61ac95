"""Local mode holds its stated bound whatever the instances do, and the bound is reached."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.apps.ratelimit import ledger
from kvstore.apps.ratelimit.ledger import Ledger, Verdict
from kvstore.apps.ratelimit.limit import Algorithm, Limit
from kvstore.apps.ratelimit.purses import Purses, over_admission_max

START_US = 1_700_000_000_000_000
KEY = b"k"


@dataclass
class World:
    """One ledger that all instances share, and the time they agree on."""

    now_us: int = START_US
    book: Ledger = field(default_factory=Ledger)
    grants: int = 0

    async def grant(
        self, key: bytes, limits: Sequence[Limit], *, least: int, most: int
    ) -> tuple[int, Verdict]:
        assert key == KEY
        self.grants += 1
        got, verdict, self.book = ledger.grant(limits, self.book, now_us=self.now_us, least=least, most=most)
        return got, verdict

    def instance(self) -> Purses:
        return Purses(self, clock=lambda: self.now_us)


Step = tuple[int, int, int]
"""Microseconds since the one before, the instance, the cost."""
steps = st.lists(
    st.tuples(st.sampled_from([0, 0, 1, 200, 450, 1000]), st.integers(0, 2), st.integers(1, 2)), max_size=60
)
KINDS = [
    Algorithm.TOKEN_BUCKET,
    Algorithm.FIXED_WINDOW,
    Algorithm.SLIDING_LOG,
    Algorithm.SLIDING_COUNTER,
]


async def spent(limit: Limit, made: list[Step], *, batch: int, lease_us: int) -> list[tuple[int, int]]:
    world = World()
    instances = [world.instance() for _ in range(3)]
    told = []
    for step, number, cost in made:
        world.now_us += step
        if await take(instances[number], limit, cost, batch=batch, lease_us=lease_us):
            told.append((world.now_us, cost))
    return told


async def take(purses: Purses, limit: Limit, cost: int, *, batch: int, lease_us: int) -> bool:
    return (await purses.take(KEY, [limit], cost, batch=batch, lease_us=lease_us)).allowed


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
    first, *others = instances = [world.instance() for _ in range(3)]
    for each in instances:  # one token each is spent before the end of the window, one is held
        assert await take(each, limit, 1, batch=2, lease_us=500)
    world.now_us += 1
    assert [await take(each, limit, 1, batch=2, lease_us=500) for each in instances] == [True] * 3
    got = [await take(each, limit, 1, batch=2, lease_us=500) for each in (*instances, *instances, first)]
    assert sum(got) == limit.amount
    assert others
    # 3 held ones and 6 new ones; the bound says 3 * 2, of which one each was spent when it was charged.
    assert over_admission_max(limit, instances=3, batch=2, lease_us=500) == 6


async def test_decisions_are_made_in_memory() -> None:
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=100, period_us=1_000_000), World()
    one = world.instance()
    got = [await take(one, limit, 1, batch=50, lease_us=1000) for _ in range(300)]
    assert sum(got) == 100
    # Two batches, and the refusal, which is remembered until the window ends.
    assert world.grants == 3


async def test_what_is_not_spent_in_time_is_forfeited() -> None:
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=10, period_us=1_000_000), World()
    one = world.instance()
    assert await take(one, limit, 1, batch=10, lease_us=1000)
    world.now_us += 1000
    assert not await take(one, limit, 1, batch=10, lease_us=1000)


async def test_a_smaller_call_still_gets_what_a_larger_one_could_not() -> None:
    limit, world = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=3, period_us=1_000_000), World()
    one = world.instance()
    assert not await take(one, limit, 4, batch=1, lease_us=1000)
    assert await take(one, limit, 3, batch=1, lease_us=1000)


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
