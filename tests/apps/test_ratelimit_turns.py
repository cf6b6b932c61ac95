"""Calls of one key that wait together share a change, and are still decided one by one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

import kvstore
from kvstore import errors
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.limit import Algorithm, Limit
from kvstore.apps.ratelimit.limiter import Limiter
from kvstore.apps.ratelimit.rules import Mode, Rule
from kvstore.apps.ratelimit.turns import Turns, tell
from kvstore.client.caller import Caller

HOUR_US = 3_600_000_000
START_US = 1_700_000_000_000_000 // HOUR_US * HOUR_US


class Call:
    """Somebody who waits."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: asyncio.Future[object] = asyncio.get_running_loop().create_future()


async def test_who_comes_during_a_turn_is_in_the_next_one() -> None:
    turns_taken: list[list[str]] = []
    go_on = asyncio.Event()

    async def turn(_key: bytes, calls: list[Call]) -> None:
        turns_taken.append([call.name for call in calls])
        await go_on.wait()
        for call in calls:
            tell(call, call.name.upper())

    background = Background()
    turns = Turns(turn, background)
    async with asyncio.TaskGroup() as tasks:

        async def ask(name: str, key: bytes = b"k") -> None:
            assert await turns.ask(key, Call(name), timeout_s=5) == name.upper()

        tasks.create_task(ask("a"))
        await asyncio.sleep(0)
        gone = asyncio.create_task(ask("gone"))
        for name in "bcd":
            tasks.create_task(ask(name))
        tasks.create_task(ask("other", b"k2"))
        await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.sleep(0.001)
        go_on.set()
    assert turns_taken == [["a"], ["other"], ["b", "c", "d"]]
    await background.close()


async def test_callers_that_ask_again_at_once_stay_together() -> None:
    """Else one part of them waits while the turn of the other part is taken, and each call for two turns."""
    sizes: list[int] = []

    async def turn(_key: bytes, calls: list[Call]) -> None:
        sizes.append(len(calls))
        await asyncio.sleep(0.001)
        for call in calls:
            tell(call, 1)

    background = Background()
    turns = Turns(turn, background)

    async def caller() -> None:
        for _ in range(5):
            await turns.ask(b"k", Call("a"), timeout_s=5)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(caller())
        while not sizes:
            await asyncio.sleep(0)
        for _ in range(9):
            tasks.create_task(caller())
    assert sizes == [1, 10, 10, 10, 10, 9]
    await background.close()


async def test_a_broken_turn_is_everybodys_error_and_the_next_one_works() -> None:
    broken = [True]

    async def turn(_key: bytes, calls: list[Call]) -> None:
        if broken.pop():
            raise errors.NotReady(node="n1", state="starting")
        for call in calls:
            tell(call, 1)

    broken.insert(0, False)
    turns = Turns(turn, Background())
    told = await asyncio.gather(
        *(turns.ask(b"k", Call("a"), timeout_s=5) for _ in range(3)), return_exceptions=True
    )
    assert [type(each) for each in told] == [errors.NotReady] * 3
    broken.append(False)
    assert await turns.ask(b"k", Call("a"), timeout_s=5) == 1


async def test_who_waits_too_long_is_told_so_and_closing_cancels_the_rest() -> None:
    async def never(_key: bytes, _calls: list[Call]) -> None:
        await asyncio.Event().wait()

    background = Background()
    turns = Turns(never, background)
    with pytest.raises(errors.DeadlineExceeded):
        await turns.ask(b"k", Call("a"), timeout_s=0.01)
    with pytest.raises(errors.Contended):  # definite: its turn never came
        await turns.ask(b"k", Call("b"), timeout_s=0.01)
    waiting = asyncio.create_task(turns.ask(b"k", Call("c"), timeout_s=60))
    await asyncio.sleep(0)
    await background.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


# --- with nodes --------------------------------------------------------------------------


@pytest.fixture
async def kv() -> AsyncIterator[kvstore.Client]:
    async with kvstore.local_cluster(nodes=3) as client:
        yield client


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every change that is asked of the store."""
    made: list[str] = []
    honest = Caller.call

    async def counted(self: Caller, method: str, *rest: Any, **more: Any) -> Any:
        made.append(method)
        return await honest(self, method, *rest, **more)

    monkeypatch.setattr(Caller, "call", counted)
    return made


def limiter_of(kv: kvstore.Client, *rules: Rule, seed: int = 7) -> Limiter:
    table = {rule.name: rule for rule in rules}
    return Limiter(kv, table, clock=lambda: START_US, dice=random.Random(seed), timeout_s=20.0)


def rule(algorithm: Algorithm, amount: int, **more: Any) -> Rule:
    limit = Limit(algorithm=algorithm, amount=amount, period_us=HOUR_US)
    return Rule(name=algorithm.value, limits=(limit,), **more)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("kind", [Algorithm.FIXED_WINDOW, Algorithm.TOKEN_BUCKET, Algorithm.SLIDING_LOG])
async def test_a_hot_key_needs_few_changes_and_admits_exactly_the_limit(
    kv: kvstore.Client, changes: list[str], kind: Algorithm
) -> None:
    limiter = limiter_of(kv, rule(kind, 150))
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(limiter.check(kind.value, "hot")) for _ in range(200)]
    outcomes = [task.result() for task in asked]
    assert sum(map(bool, outcomes)) == 150
    assert [each.verdict.remaining for each in outcomes[:3]] == [149, 148, 147]
    assert len(changes) <= 6
    await limiter.close()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("kind", [Algorithm.FIXED_WINDOW, Algorithm.TOKEN_BUCKET])
async def test_two_services_with_calls_of_all_sizes_never_exceed_a_limit_nor_waste_it(
    kv: kvstore.Client, kind: Algorithm
) -> None:
    dice = random.Random(3)
    services = [limiter_of(kv, rule(kind, 100), seed=seed) for seed in (1, 2)]
    costs = [dice.choice((1, 2, 3, 40, 101)) for _ in range(60)]
    async with asyncio.TaskGroup() as tasks:
        asked = [
            (cost, tasks.create_task(services[at % 2].check(kind.value, "hot", cost)))
            for at, cost in enumerate(costs)
        ]
    admitted = sum(cost for cost, task in asked if task.result().allowed)
    refused = [cost for cost, task in asked if not task.result().allowed]
    assert admitted <= 100
    left = (await services[0].peek(kind.value, "hot")).verdict.remaining
    assert left == 100 - admitted
    assert all(cost > left for cost in refused)
    for service in services:
        await service.close()


@pytest.mark.e2e
@pytest.mark.slow
async def test_a_purse_is_renewed_in_the_background(kv: kvstore.Client) -> None:
    limiter = limiter_of(kv, rule(Algorithm.TOKEN_BUCKET, 1000, mode=Mode.LOCAL, batch=8))
    for _ in range(200):
        assert await limiter.check("token_bucket", "k")
        await asyncio.sleep(0)
    assert limiter.counts.renewals["granted"] >= 10
    await limiter.close()
