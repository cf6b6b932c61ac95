"""Strict mode on real nodes: exactly the limit, exactly once, and what happens without the store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import errors
from kvstore.apps.ratelimit.breaker import Breaker, Circuit
from kvstore.apps.ratelimit.limit import Algorithm, Limit
from kvstore.apps.ratelimit.limiter import Limiter, Outcome, Source, UnknownRule
from kvstore.apps.ratelimit.rules import Mode, OnFailure, Rule, Rules
from kvstore.client.caller import Caller
from kvstore.core.changes import Request
from kvstore.node.proposers import OnSettled, Settled
from kvstore.node.registers import Registers
from kvstore.server import local_nodes

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
Client = kvstore.Client
HOUR_US = 3_600_000_000
START_US = 1_700_000_000_000_000 // HOUR_US * HOUR_US


class ManualClock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.us = START_US

    def __call__(self) -> int:
        return self.us


def limit(algorithm: Algorithm, amount: int, period_us: int = HOUR_US) -> Limit:
    return Limit(algorithm=algorithm, amount=amount, period_us=period_us)


def rules(*each: Rule) -> Rules:
    return {rule.name: rule for rule in each}


BY_ALGORITHM = rules(*(Rule(name=kind.value, limits=(limit(kind, 10),)) for kind in Algorithm))


@pytest.fixture
async def kv() -> AsyncIterator[Client]:
    async with kvstore.local_cluster(nodes=3) as client:
        yield client


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def limiter_of(kv: Client, table: Rules, clock: ManualClock, **more: Any) -> Limiter:
    return Limiter(kv, table, clock=clock, dice=random.Random(7), **{"timeout_s": 20.0, **more})


async def test_many_instances_at_one_key_admit_exactly_the_limit(kv: Client, clock: ManualClock) -> None:
    instances = [
        Limiter(kv, BY_ALGORITHM, clock=clock, dice=random.Random(n), timeout_s=20.0) for n in range(3)
    ]
    for rule in BY_ALGORITHM:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each.check(rule, "hot")) for each in instances for _ in range(8)]
        outcomes = [task.result() for task in tasks]
        assert sum(map(bool, outcomes)) == 10, rule
        assert {each.source for each in outcomes} == {Source.STRICT}


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every first answer to a change is lost on its way to the client; the list counts them."""
    lost: list[str] = []
    honest = Caller._try

    async def forgetful(self: Caller, address: str, method: str, *rest: Any) -> Any:
        answer = await honest(self, address, method, *rest)
        if method == "change_many" and rest[-1] == 1:
            lost.append(method)
            raise errors.ConnectionLost(address=address, reason="the test dropped exactly this answer")
        return answer

    monkeypatch.setattr(Caller, "_try", forgetful)
    return lost


@pytest.mark.patches
@pytest.mark.parametrize("rule", BY_ALGORITHM)
async def test_a_lost_answer_charges_once(
    kv: Client, clock: ManualClock, dropped: list[str], rule: str
) -> None:
    limiter = limiter_of(kv, BY_ALGORITHM, clock)
    for used in (1, 2, 3):
        assert await limiter.check(rule, "k")
        assert (await limiter.peek(rule, "k")).verdict.remaining == 10 - used
    assert len(dropped) == 3


@pytest.mark.patches
@pytest.mark.parametrize("rule", ["token_bucket", "fixed_window"])
async def test_what_nobody_could_tell_is_resolved_and_charged_once(
    kv: Client, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    honest = Registers.start
    silenced: list[str] = []

    def silent(self: Registers, key: bytes, request: Request, deadline: float, done: OnSettled) -> None:
        def told(settled: Settled | None, error: errors.KVError | None) -> None:
            if request.name in ("incr_in", "cas_version"):
                silenced.append(request.name)
                settled = None
                error = errors.QuorumTimeout(operation=request.name, needed=2, acked=1, missing="n9")
            done(settled, error)

        honest(self, key, request, deadline, told)

    monkeypatch.setattr(Registers, "start", silent)
    limiter = limiter_of(kv, BY_ALGORITHM, clock, timeout_s=2.0)
    assert (await limiter.check(rule, "k")).source is Source.STRICT
    assert silenced
    assert (await limiter.peek(rule, "k")).verdict.remaining == 9


async def test_several_limits_are_decided_together(kv: Client, clock: ManualClock) -> None:
    table = rules(
        Rule(
            name="api",
            limits=(limit(Algorithm.TOKEN_BUCKET, 2, 1_000_000), limit(Algorithm.SLIDING_LOG, 3)),
            overrides={"vip": (limit(Algorithm.FIXED_WINDOW, 50),)},
        )
    )
    limiter = limiter_of(kv, table, clock)
    assert [bool(await limiter.check("api", "k")) for _ in range(3)] == [True, True, False]
    clock.us += 1_000_000
    # The second is over: two more by the bucket, but one by the hour.
    assert not await limiter.check("api", "k", 2)
    assert await limiter.check("api", "k")
    refused = await limiter.check("api", "k")
    assert [each.allowed for each in refused.verdict.decisions] == [True, False]
    assert refused.retry_after_s == 3599
    assert (await limiter.check("api", "vip", 50)).allowed
    assert not (await limiter.check("api", "vip")).allowed
    for key in ("k", "vip"):
        await limiter.reset("api", key)
        assert await limiter.check("api", key)


async def test_leases_are_given_back(kv: Client, clock: ManualClock) -> None:
    limiter = limiter_of(kv, rules(Rule(name="jobs", limits=(limit(Algorithm.CONCURRENCY, 1),))), clock)
    async with limiter.held("jobs", "k") as one:
        assert one.lease
        assert not await limiter.check("jobs", "k")
        assert await limiter.check("jobs", "k", lease=one.lease), "a renewal"
    async with limiter.held("jobs", "k") as two:
        assert two
    with pytest.raises(errors.BadOption):
        await limiter.check("jobs", "k", lease="not hex")


async def test_local_mode_asks_the_store_once_a_batch(
    kv: Client, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rules(Rule(name="api", limits=(limit(Algorithm.TOKEN_BUCKET, 30),), mode=Mode.LOCAL, batch=10))
    one, two = (limiter_of(kv, table, clock) for _ in range(2))
    changes: list[str] = []
    honest = Caller.call

    async def counted(self: Caller, method: str, *rest: Any, **more: Any) -> Any:
        changes.append(method)
        return await honest(self, method, *rest, **more)

    monkeypatch.setattr(Caller, "call", counted)
    told = [await each.check("api", "k") for _ in range(20) for each in (one, two)]
    assert sum(map(bool, told)) == 30
    assert {each.source for each in told} == {Source.LOCAL}
    # Three batches and the refusal of each; what the other has changed since costs one more each time.
    assert len(changes) <= 10


@pytest.mark.parametrize("mode", [OnFailure.OPEN, OnFailure.CLOSED])
async def test_without_the_store_the_rule_decides_and_the_circuit_opens(
    tmp_path: Path, clock: ManualClock, mode: OnFailure
) -> None:
    table = rules(Rule(name="api", limits=(limit(Algorithm.TOKEN_BUCKET, 9),), on_failure=mode))
    async with local_nodes(tmp_path, count=1, cluster_id="e" * 32, replicas=1) as nodes:
        kv = await kvstore.connect(nodes.urls)
        async with kv:
            limiter = limiter_of(kv, table, clock, timeout_s=0.2, breaker=Breaker(failures_max=2))
            await nodes.stop_all()
            told: list[Outcome] = [await limiter.check("api", "k") for _ in range(3)]
            assert {(each.allowed, each.source) for each in told} == {
                (mode is OnFailure.OPEN, Source(f"failed-{mode.value}"))
            }
            assert limiter.breaker.circuit is Circuit.OPEN


async def test_a_circuit_asks_again_after_its_pause() -> None:
    breaker = Breaker(failures_max=2, pause_us=100)
    breaker.failed(0)
    assert breaker.admits(0)
    breaker.failed(0)
    assert not breaker.admits(99)
    assert breaker.admits(100), "the probe"
    assert not breaker.admits(101), "one at a time"
    breaker.failed(101)
    assert not breaker.admits(200)
    assert breaker.admits(201)
    breaker.succeeded()
    assert breaker.admits(202)
    assert breaker.circuit is Circuit.CLOSED


async def test_callers_mistakes_are_errors_and_open_no_circuit(kv: Client, clock: ManualClock) -> None:
    limiter = limiter_of(kv, BY_ALGORITHM, clock, breaker=Breaker(failures_max=1))
    with pytest.raises(UnknownRule):
        await limiter.check("none", "k")
    with pytest.raises(errors.BadOption):
        await limiter.check("fixed_window", "k", 0)
    assert await limiter.check("fixed_window", "\u00e9" * 5000), "a long key is hashed"
    refused = await limiter.check("fixed_window", "k", 11)
    assert (refused.allowed, refused.retry_after_s) == (False, None)
    assert limiter.breaker.circuit is Circuit.CLOSED
