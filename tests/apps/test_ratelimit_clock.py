"""Services whose clocks differ decide by the store's time."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kvstore
from kvstore import errors
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.clock import DRIFT_PPM, EVERY_US, STALE_US, StoreClock
from kvstore.apps.ratelimit.limit import Algorithm, Limit
from kvstore.apps.ratelimit.limiter import Limiter
from kvstore.apps.ratelimit.machine import steady_us, wall_us
from kvstore.apps.ratelimit.rules import Rule


def _ahead(us: int) -> int:
    return steady_us() + us


def moment_of(clock: StoreClock) -> tuple[int, int]:
    """The earliest and the latest that it can be."""
    now = clock.moment()
    assert now.us == clock()
    return now.us, now.us + now.doubt_us


def test_a_clock_knows_the_time_but_for_the_length_of_a_call() -> None:
    now = [2_010_000]
    clock = StoreClock(lambda: now[0])
    clock.learn(9_000_000, sent_us=1_990_000, heard_us=2_010_000)
    assert moment_of(clock) == (8_999_000, 9_021_000)
    clock.learn(9_000_000, sent_us=2_006_000, heard_us=2_010_000)
    assert moment_of(clock) == (8_999_000, 9_005_000), "a quicker call tells more"
    clock.learn(9_000_000, sent_us=1_000_000, heard_us=3_000_000)
    assert moment_of(clock)[0] >= 8_998_000, "and a slow one nothing"
    clock.learn(9_000_000, sent_us=3_000_000, heard_us=1_000_000)
    assert moment_of(clock)[0] >= 8_998_000, "nor one that ended before it began"


def test_a_clock_knows_less_as_time_goes_by() -> None:
    now = [1_000_000]
    clock = StoreClock(lambda: now[0])
    clock.learn(9_000_000, sent_us=1_000_000, heard_us=1_000_000)
    assert moment_of(clock) == (8_999_000, 9_001_000)
    now[0] += 10_000_000
    assert moment_of(clock) == (18_994_000, 19_006_000)


def test_a_clock_follows_the_nodes_to_another_time() -> None:
    clock = StoreClock(lambda: 1_000_000)
    for told_us in (9_000_000, 5_000_000):
        clock.learn(told_us, sent_us=1_000_000, heard_us=1_000_000)
        assert moment_of(clock) == (told_us - 1000, told_us + 1000)


@example(253, [(245_683, 9_235, 0.0, 1_999)])
@settings(max_examples=200)
@given(
    st.integers(-400, 400),
    st.lists(
        st.tuples(st.integers(0, 5_000_000), st.integers(0, 50_000), st.floats(0, 1), st.integers(0, 10**6)),
        min_size=1,
        max_size=10,
    ),
)
def test_what_a_clock_says_holds_the_true_time(ppm: int, calls: list[tuple[int, int, float, int]]) -> None:
    """Our quartz is off by `ppm`; a node tells the time at some moment of each call, in milliseconds."""
    ahead_us, now = 1_700_000_000_000_000, [1_000_000]
    clock = StoreClock(lambda: now[0])

    def true(steady_us: int) -> int:
        return ahead_us + steady_us + steady_us * ppm // 1_000_000

    for pause_us, length_us, part, after_us in calls:
        sent_us = now[0] + pause_us
        now[0] = sent_us + length_us
        told_us = true(sent_us + int(length_us * part)) // 1000 * 1000
        clock.learn(told_us, sent_us=sent_us, heard_us=now[0])
        for later_us in (0, after_us):
            now[0] += later_us
            earliest, latest = moment_of(clock)
            assert earliest <= true(now[0]) <= latest


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
        assert all(clock.moment().doubt_us < 1_000_000 for clock in clocks)
        for each in services:
            await each.close()


@pytest.mark.e2e
@pytest.mark.slow
async def test_a_clock_is_compared_again_beside_the_decisions() -> None:
    now = [1_000_000]
    clock, background = StoreClock(lambda: now[0]), Background()
    async with kvstore.local_cluster(nodes=1) as kv:
        await clock.ready(kv, background, timeout_s=20)
        first = clock()
        assert first > 10**15
        now[0] += EVERY_US + 1
        await clock.ready(kv, background, timeout_s=20)
        guessed = clock.moment()
        assert guessed.doubt_us > 2 * EVERY_US * DRIFT_PPM // 1_000_000
        async with asyncio.timeout(20):
            while clock.moment() == guessed:
                await asyncio.sleep(0.005)
        # Who has decided nothing for long waits for the comparison.
        now[0] += STALE_US
        stale = clock.moment()
        await clock.ready(kv, background, timeout_s=20)
        assert clock.moment() != stale
    # Beside the decisions it goes on as it is while no node answers, and knows less.
    now[0] += EVERY_US + 1
    await clock.ready(kv, background, timeout_s=0.1)
    await asyncio.sleep(0.01)
    await background.close()
    now[0] += STALE_US
    for each in (clock, StoreClock()):
        with pytest.raises(errors.KVError):
            await each.ready(kv, background, timeout_s=0.1)
