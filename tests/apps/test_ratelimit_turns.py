"""Calls of one key that wait together share a change, and are still decided one by one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import pytest

import kvstore
from kvstore import Change, errors
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.limit import Algorithm, Limit
from kvstore.apps.ratelimit.limiter import Limiter
from kvstore.apps.ratelimit.machine import Moment
from kvstore.apps.ratelimit.registers import Ledgers
from kvstore.apps.ratelimit.rules import Mode, Rule
from kvstore.apps.ratelimit.turns import Call, Pause, Steps, Turns
from kvstore.apps.ratelimit.windows import WindowCounters
from kvstore.client.caller import Caller

HOUR_US = 3_600_000_000
START_US = 1_700_000_000_000_000 // HOUR_US * HOUR_US


class HeldStore:
    """A store that says yes to every change, when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []
        """The keys of each request."""
        self.sizes: list[int] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.failing: list[errors.KVError] = []

    async def change_many(
        self, changes: Sequence[Change], *, timeout: float, on_outcome: Callable[[Change, Any], None]
    ) -> None:
        del timeout
        self.asked.append([change.key for change in changes])
        await self.may_answer.wait()
        await asyncio.sleep(0.001)
        if self.failing:
            raise self.failing.pop()
        for change in changes:
            on_outcome(change, True)


class Kept:
    """Turns over a held store, and who was in each."""

    def __init__(self, *, timeout_s: float = 5.0) -> None:
        self.store = HeldStore()
        self.taken: list[list[str]] = []
        self.names: dict[int, str] = {}
        """By call. Calls of another class would be none that a compiled build takes."""
        self.background = Background()
        self.turns: Turns[Call] = Turns(
            cast("kvstore.Client", self.store), self._turn, self.background, timeout_s=timeout_s
        )

    def _turn(self, key: bytes, calls: list[Call]) -> Steps:
        names = [self.names[id(call)] for call in calls]
        self.taken.append(names)
        came = yield Change(key, bytes(16), "incr", ())
        if isinstance(came, errors.KVError):
            raise came
        for call, name in zip(calls, names, strict=True):
            call.tell(name.upper())

    def call(self, name: str) -> Call:
        made = Call()
        self.names[id(made)] = name
        return made

    async def ask(self, name: str, key: bytes = b"k") -> None:
        assert await self.turns.ask(key, self.call(name)) == name.upper()

    async def close(self) -> None:
        await self.turns.close()
        await self.background.close()


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    made = Kept()
    yield made
    await made.close()


async def test_who_comes_during_a_turn_is_in_the_next_one(kept: Kept) -> None:
    kept.store.may_answer.clear()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kept.ask("a"))
        await asyncio.sleep(0.001)
        gone = asyncio.create_task(kept.ask("gone"))
        for name in "bcd":
            tasks.create_task(kept.ask(name))
        await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.sleep(0.001)
        kept.store.may_answer.set()
    assert kept.taken == [["a"], ["b", "c", "d"]]


async def test_keys_that_come_together_share_a_request(kept: Kept) -> None:
    async with asyncio.TaskGroup() as tasks:
        for key in (b"k1", b"k2", b"k3", b"k1"):
            tasks.create_task(kept.ask("a", key))
    assert kept.store.asked == [[b"k1", b"k2", b"k3"]]


async def test_what_comes_while_a_request_is_under_way_travels_together_after_it(kept: Kept) -> None:
    kept.store.may_answer.clear()
    async with asyncio.TaskGroup() as tasks:
        for key in (b"k1", b"k2", b"k3"):
            tasks.create_task(kept.ask("a", key))
            await asyncio.sleep(0.001)
        kept.store.may_answer.set()
    assert kept.store.asked == [[b"k1"], [b"k2", b"k3"]]


async def test_nobody_waits_behind_a_request_that_hangs(kept: Kept) -> None:
    kept.store.may_answer.clear()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kept.ask("a", b"k1"))
        await asyncio.sleep(0.001)
        tasks.create_task(kept.ask("a", b"k2"))
        while len(kept.store.asked) < 2:
            await asyncio.sleep(0.001)
        kept.store.may_answer.set()
    assert kept.store.asked == [[b"k1"], [b"k2"]]


async def test_callers_that_ask_again_at_once_stay_together(kept: Kept) -> None:
    """Else one part of them waits while the turn of the other part is taken, and each call for two turns."""

    async def caller() -> None:
        for _ in range(5):
            await kept.ask("a")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(caller())
        while not kept.taken:
            await asyncio.sleep(0)
        for _ in range(9):
            tasks.create_task(caller())
    assert list(map(len, kept.taken)) == [1, 10, 10, 10, 10, 9]


async def test_a_broken_turn_is_everybodys_error_and_the_next_one_works(kept: Kept) -> None:
    kept.store.failing.append(errors.NotReady(reason="starting"))
    told = await asyncio.gather(*(kept.ask("a") for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in told] == [errors.NotReady] * 3
    await kept.ask("a")


async def test_who_waits_too_long_is_told_so_and_closing_cancels_the_rest() -> None:
    kept = Kept(timeout_s=0.01)
    kept.store.may_answer.clear()
    with pytest.raises(errors.DeadlineExceeded):
        await kept.ask("a")
    with pytest.raises(errors.Contended):  # definite: its turn never came
        await kept.ask("b")
    waiting = asyncio.create_task(kept.ask("c"))
    await asyncio.sleep(0)
    await kept.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert kept.taken == [["a"]]


async def test_a_turn_for_which_nobody_waits_any_more_asks_for_nothing_more() -> None:
    kept = Kept(timeout_s=0.01)

    def twice(key: bytes, calls: list[Call]) -> Steps:
        yield Change(key, bytes(16), "incr", ())
        yield Change(key, bytes(16), "incr", ())
        for call in calls:
            call.tell(1)

    turns: Turns[Call] = Turns(cast("kvstore.Client", kept.store), twice, kept.background, timeout_s=0.01)
    kept.store.may_answer.clear()
    with pytest.raises(errors.DeadlineExceeded):
        await turns.ask(b"k", Call())
    kept.store.may_answer.set()
    await asyncio.sleep(0.01)
    assert kept.store.asked == [[b"k"]]
    await turns.close()
    await kept.close()


async def test_a_turn_that_pauses_goes_on_and_holds_nobody_else_up() -> None:
    kept = Kept()
    clock = asyncio.get_running_loop().time

    def slow(key: bytes, calls: list[Call]) -> Steps:
        if key == b"slow":
            yield Pause(50_000)
        yield Change(key, bytes(16), "incr", ())
        for call in calls:
            call.tell(clock())

    turns: Turns[Call] = Turns(cast("kvstore.Client", kept.store), slow, kept.background, timeout_s=5.0)
    began = clock()
    slow_at, quick_at = await asyncio.gather(turns.ask(b"slow", Call()), turns.ask(b"quick", Call()))
    assert slow_at - began >= 0.05
    assert quick_at < slow_at
    assert kept.store.asked == [[b"quick"], [b"slow"]]
    await turns.close()
    await kept.close()


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


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("kind", [Algorithm.FIXED_WINDOW, Algorithm.SLIDING_COUNTER])
async def test_around_the_end_of_a_window_a_call_waits_until_it_is_certain(
    kv: kvstore.Client, kind: Algorithm
) -> None:
    limit = Limit(algorithm=kind, amount=5, period_us=60_000_000)
    clock = asyncio.get_running_loop().time
    began = clock()

    def moments() -> Moment:
        """At first 30 ms before the end of a window, perhaps 90 later."""
        return Moment(START_US - 30_000 + round((clock() - began) * 1_000_000), 90_000)

    background = Background()
    more: dict[str, Any] = {"moments": moments, "timeout_s": 20.0, "background": background}
    if kind is Algorithm.FIXED_WINDOW:
        windows = WindowCounters(kv, **more)
        verdict = await windows.take(b"k", limit, 1)
        await windows.close()
    else:
        ledgers = Ledgers(kv, **more)
        verdict = await ledgers.take(b"k", [limit], 1)
        await ledgers.close()
    assert verdict.allowed
    assert clock() - began >= 0.03
    # It is counted in the window that begins then.
    assert verdict.reset_after_us - (60_000_000 if kind is Algorithm.SLIDING_COUNTER else 0) > 59_000_000
    await background.close()
