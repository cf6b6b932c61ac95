"""The storage for the `limits` package, through its strategies, against real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute, RateLimitItemPerYear
from limits.aio import strategies as asynchronous
from limits.errors import StorageError
from limits.storage import storage_from_string
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)
from nodes_in_thread import nodes_in_thread

from kvstore.apps.ratelimit import limits_registers
from kvstore.apps.ratelimit.limit import Algorithm, Limit
from kvstore.apps.ratelimit.limits_storage import AsyncKvstoreStorage, KvstoreStorage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
STRATEGIES = (FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter)
TEN = RateLimitItemPerHour(10)


class FrozenClock:
    """Time that stands, so that no window ends under a test."""

    def __init__(self) -> None:
        self.us = 1_700_000_000_000_000 // 3_600_000_000 * 3_600_000_000

    def __call__(self) -> int:
        return self.us


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The uri of three nodes in a thread."""
    with nodes_in_thread(tmp_path_factory.mktemp("nodes")) as urls:
        yield "kvstore://" + ",".join(url.removeprefix("kv://") for url in urls)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FrozenClock:
    frozen = FrozenClock()
    monkeypatch.setattr(limits_registers, "wall_us", frozen)
    return frozen


@pytest.fixture
def storage(nodes: str, clock: FrozenClock) -> Iterator[KvstoreStorage]:
    del clock
    made = storage_from_string(nodes, timeout=20)
    assert isinstance(made, KvstoreStorage)
    yield made
    made.reset()
    made.close()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_many_threads_get_exactly_the_limit(storage: KvstoreStorage, strategy: type[RateLimiter]) -> None:
    limiter = strategy(storage)
    with ThreadPoolExecutor(5) as threads:
        told = list(threads.map(lambda _: limiter.hit(TEN, "hot"), range(20)))
    assert sum(told) == 10
    assert not limiter.test(TEN, "hot")
    assert limiter.test(TEN, "cold")
    limiter.clear(TEN, "hot")
    assert limiter.hit(TEN, "hot")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_costs_and_what_remains(storage: KvstoreStorage, strategy: type[RateLimiter]) -> None:
    limiter = strategy(storage)
    assert limiter.get_window_stats(TEN, "k").remaining == 10
    assert limiter.hit(TEN, "k", cost=4)
    assert limiter.get_window_stats(TEN, "k").remaining == 6
    assert not limiter.hit(TEN, "k", cost=7)


def test_a_moving_window_moves(storage: KvstoreStorage, clock: FrozenClock) -> None:
    limiter, minute = MovingWindowRateLimiter(storage), RateLimitItemPerMinute(2)
    assert limiter.hit(minute)
    clock.us += 20_000_000
    assert limiter.hit(minute)
    assert not limiter.hit(minute)
    assert limiter.get_window_stats(minute).reset_time == (clock.us + 40_000_000) / 1_000_000
    clock.us += 40_000_000
    assert limiter.hit(minute)
    assert not limiter.hit(minute)


def test_a_sliding_window_weighs_the_one_before(storage: KvstoreStorage, clock: FrozenClock) -> None:
    limiter = SlidingWindowCounterRateLimiter(storage)
    minute: RateLimitItem = RateLimitItemPerMinute(10)
    assert limiter.hit(minute, cost=10)
    clock.us += 75_000_000  # a quarter of the next: 7.5 of the 10 count, 7 rounded down
    assert limiter.get_window_stats(minute).remaining == 3
    assert limiter.hit(minute, cost=3)
    assert not limiter.hit(minute)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("years", [2, 100])
def test_windows_of_years_are_kept(storage: KvstoreStorage, strategy: type[RateLimiter], years: int) -> None:
    limiter, item = strategy(storage), RateLimitItemPerYear(2, years)
    assert [limiter.hit(item) for _ in range(3)] == [True, True, False]
    assert limiter.get_window_stats(item).remaining == 0


def test_states_are_found_under_the_names_that_limits_of_one_have() -> None:
    limit = Limit(algorithm=Algorithm.SLIDING_LOG, amount=1, period_us=60_000_000)
    assert limits_registers._log(60).fingerprint == limit.fingerprint


def test_a_counter_ends_and_reset_counts(storage: KvstoreStorage, clock: FrozenClock) -> None:
    assert storage.get_expiry("k") == clock.us / 1_000_000
    assert storage.incr("k", 60, 5) == 5
    assert 55 < storage.get_expiry("k") - clock.us / 1_000_000 <= 60
    assert (storage.check(), storage.get("k"), storage.reset(), storage.get("k")) == (True, 5, 1, 0)


def test_errors_are_wrapped_as_the_package_has_it(nodes: str) -> None:
    storage = storage_from_string(nodes, wrap_exceptions=True)
    assert isinstance(storage, KvstoreStorage)
    try:
        with pytest.raises(StorageError):
            storage.incr("k", -1)
    finally:
        storage.close()


# --- limits.aio --------------------------------------------------------------------------


@pytest.fixture
async def waiting(nodes: str, clock: FrozenClock) -> AsyncIterator[AsyncKvstoreStorage]:
    del clock
    made = storage_from_string(f"async+{nodes}", timeout=20)
    assert isinstance(made, AsyncKvstoreStorage)
    yield made
    await made.reset()
    await made.close()


@pytest.mark.parametrize("name", [each.__name__ for each in STRATEGIES])
async def test_many_tasks_get_exactly_the_limit(waiting: AsyncKvstoreStorage, name: str) -> None:
    limiter = getattr(asynchronous, name)(waiting)
    assert sum(await asyncio.gather(*(limiter.hit(TEN, "hot") for _ in range(20)))) == 10
    assert not await limiter.test(TEN, "hot")
    assert (await limiter.get_window_stats(TEN, "hot")).remaining == 0
    assert await limiter.hit(TEN, "cold", cost=4)
    assert (await limiter.get_window_stats(TEN, "cold")).remaining == 6
    await limiter.clear(TEN, "hot")
    assert await limiter.hit(TEN, "hot")


async def test_counters_of_both_storages_are_the_same(
    waiting: AsyncKvstoreStorage, storage: KvstoreStorage, clock: FrozenClock
) -> None:
    assert await waiting.incr("k", 60, 5) == 5
    assert await asyncio.to_thread(storage.incr, "k", 60) == 6
    assert 55 < await waiting.get_expiry("k") - clock.us / 1_000_000 <= 60
    assert (await waiting.check(), await waiting.get("k")) == (True, 6)
    assert (await waiting.reset(), await waiting.get("k")) == (1, 0)


def test_a_storage_made_before_any_loop_serves_one_after_another(nodes: str) -> None:
    storage = storage_from_string(f"async+{nodes}", prefix="loops:")
    assert isinstance(storage, AsyncKvstoreStorage)

    async def count() -> list[int]:
        counted = []
        for _ in range(2):
            counted.append(await storage.incr("k", 60))
            await storage.close()
        return counted

    assert [asyncio.run(count()), asyncio.run(count())] == [[1, 2], [3, 4]]


async def test_who_cannot_reach_the_store_hears_it_as_the_package_has_it() -> None:
    storage = storage_from_string("async+kvstore://127.0.0.1:1", wrap_exceptions=True, timeout=0.3)
    assert isinstance(storage, AsyncKvstoreStorage)
    assert not await storage.check()
    with pytest.raises(StorageError):
        await storage.incr("k", 60)
