"""Services whose clocks differ decide by the store's time."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial

import pytest

import kvstore
from kvstore import errors
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.clock import EVERY_US, StoreClock
from kvstore.apps.ratelimit.limit import Algorithm, Limit
from kvstore.apps.ratelimit.limiter import Limiter
from kvstore.apps.ratelimit.machine import wall_us
from kvstore.apps.ratelimit.rules import Rule


def _ahead(us: int) -> int:
    return wall_us() + us


def test_a_clock_moves_by_what_it_is_surely_wrong_by() -> None:
    clock = StoreClock(lambda: 0)
    clock.learn(1_000_000, sent_us=995_000, heard_us=1_005_000)
    assert clock.offset_us == 0, "it may be right"
    clock.learn(6_000_000, sent_us=990_000, heard_us=1_010_000)
    assert clock.offset_us == 4_989_000
    clock.learn(6_000_000, sent_us=995_000, heard_us=1_005_000)
    assert clock.offset_us == 4_994_000, "a quicker call tells more"
    clock.learn(6_000_000, sent_us=0, heard_us=2_000_000)
    assert clock.offset_us == 4_994_000, "and a slow one nothing"
    clock.learn(1_000_000, sent_us=990_000, heard_us=1_010_000)
    assert clock.offset_us == 11_000
    clock.learn(1_000_000, sent_us=2_000_000, heard_us=1_000_000)
    assert clock.offset_us == 11_000, "a clock that went back meanwhile tells nothing"


@pytest.mark.e2e
@pytest.mark.slow
async def test_services_with_clocks_apart_share_a_window() -> None:
    limit = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=10, period_us=3_600_000_000)
    rules = {"r": Rule(name="r", limits=(limit,))}
    while 3600 - time.time() % 3600 < 20:  # the window must not end under the test
        await asyncio.sleep(1)
    async with kvstore.local_cluster(nodes=3) as kv:
        clocks = [StoreClock(partial(_ahead, us)) for us in (0, 5_400_000_000, -(10**15))]
        services = [Limiter(kv, rules, clock=clock, timeout_s=20) for clock in clocks]
        told = [bool(await each.check("r", "k")) for _ in range(10) for each in services]
        assert sum(told) == 10
        assert all(abs(clock() - wall_us()) < 2_000_000 for clock in clocks)
        for each in services:
            await each.close()


@pytest.mark.e2e
@pytest.mark.slow
async def test_a_clock_is_compared_again_beside_the_decisions() -> None:
    now = [1_000_000]
    clock, background = StoreClock(lambda: now[0]), Background()
    dice = random.Random(1)
    async with kvstore.local_cluster(nodes=1) as kv:
        await clock.ready(kv, dice, background, timeout_s=20)
        first = clock.offset_us
        assert first > 10**15
        now[0] += EVERY_US + 1
        await clock.ready(kv, dice, background, timeout_s=20)
        assert clock.offset_us == first
        async with asyncio.timeout(20):
            while clock.offset_us == first:
                await asyncio.sleep(0.005)
    # And it goes on as it is while no node answers.
    now[0] += EVERY_US + 1
    await clock.ready(kv, dice, background, timeout_s=0.1)
    await asyncio.sleep(0.01)
    await background.close()
    with pytest.raises(errors.KVError):
        await StoreClock().ready(kv, dice, background, timeout_s=0.1)
