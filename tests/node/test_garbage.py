"""Requests leave no cycles behind: what they made is gone when they are answered.

Else it waits for the collector, which stops the process, and all callers at once.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest

import kvstore
from kvstore.apps.ratelimit import Algorithm, Limit, Limiter, Rule

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
LINEAR = "linearizable"
CALLS = 40
Call = Callable[[kvstore.Client, int], Awaitable[object]]
VERBS: dict[str, Call] = {
    "put": lambda kv, n: kv.put(f"k{n}", b"v"),
    "put that ends": lambda kv, n: kv.put(f"e{n}", b"v", ttl=60),
    "get": lambda kv, n: kv.get(f"k{n}"),
    "delete": lambda kv, n: kv.delete(f"k{n}"),
    "counter_add": lambda kv, n: kv.counter_add(f"c{n}", 1),
    "counter_get": lambda kv, n: kv.counter_get(f"c{n}"),
    "linearizable put": lambda kv, n: kv.put(f"r{n}", b"v", consistency=LINEAR),
    "linearizable get": lambda kv, n: kv.get(f"r{n}", consistency=LINEAR),
    "incr": lambda kv, n: kv.incr(f"i{n}"),
    "cas that is refused": lambda kv, n: kv.cas(f"i{n}", new=b"v", expected_version=1),
    "put_many": lambda kv, n: kv.put_many({f"m{n}.{each}": b"v" for each in range(4)}),
    "get_many": lambda kv, n: kv.get_many([f"m{n}.{each}" for each in range(4)]),
    "linearizable put_many": lambda kv, n: kv.put_many(
        {f"l{n}.{e}": b"v" for e in range(4)}, consistency=LINEAR
    ),
    "delete_many": lambda kv, n: kv.delete_many([f"m{n}.{each}" for each in range(4)]),
    "change_many": lambda kv, n: kv.change_many(
        [kv.change.incr(f"a{n}.{each}") for each in range(4)], on_outcome=lambda _change, _outcome: None
    ),
}


@pytest.fixture
async def kv() -> AsyncIterator[kvstore.Client]:
    """Nodes and client in this process, so that both are looked at."""
    async with kvstore.local_cluster(nodes=3) as client:
        yield client


async def cycles(call: Callable[[int], Awaitable[object]]) -> list[tuple[str, int]]:
    """What the collector finds after `CALLS` calls, by type; nothing when it is less than one each."""
    for number in range(5):
        await call(number)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for number in range(CALLS):
            await call(number)
        gc.collect()
        found = Counter(type(each).__name__ for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    return found.most_common(9) if found.total() >= CALLS else []


async def test_a_call_leaves_no_cycles(kv: kvstore.Client) -> None:
    found = {name: await cycles(partial(verb, kv)) for name, verb in VERBS.items()}
    assert {name: some for name, some in found.items() if some} == {}


async def test_a_decision_leaves_no_cycles(kv: kvstore.Client) -> None:
    limits = {each.value: Limit(algorithm=each, amount=1000, period_us=1_000_000) for each in Algorithm}
    limiter = Limiter(kv, {name: Rule(name=name, limits=(limit,)) for name, limit in limits.items()})
    try:
        found = {name: await cycles(partial(_decide, limiter, name)) for name in limits}
    finally:
        await limiter.close()
    assert {name: some for name, some in found.items() if some} == {}


async def _decide(limiter: Limiter, rule: str, number: int) -> None:
    await limiter.check(rule, f"key {number}")
