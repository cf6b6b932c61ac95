"""The storage for the `limits` package, through its strategies, against real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import storage_from_string
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)

from kvstore.apps.ratelimit import limits_storage
from kvstore.apps.ratelimit.limits_storage import KvstoreStorage
from kvstore.server import local_nodes

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
    ready: Future[list[str]] = Future()
    stop: Future[None] = Future()

    async def serve() -> None:
        async with local_nodes(tmp_path_factory.mktemp("nodes"), count=3, cluster_id="c" * 32) as local:
            ready.set_result(local.urls)
            await asyncio.wrap_future(stop)

    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(asyncio.run, serve())
        try:
            yield "kvstore://" + ",".join(url.removeprefix("kv://") for url in ready.result(timeout=30))
        finally:
            stop.set_result(None)
            served.result(timeout=30)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FrozenClock:
    frozen = FrozenClock()
    monkeypatch.setattr(limits_storage, "wall_us", frozen)
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
