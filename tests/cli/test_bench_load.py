"""The load generator against stores whose behaviour is known, so that its figures can be checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kvstore import errors
from kvstore_cli.bench_load import OnReply, Requests, Run, Tally
from kvstore_cli.bench_workload import GET, MIXES, PUT, Workload


class Store:
    """Answers each request after `delay(number)` seconds; counts what is outstanding."""

    def __init__(self, delay: Callable[[int], float], error: Exception | None = None) -> None:
        self.delay = delay
        self.error = error
        self.calls: list[tuple[str, Sequence[Any]]] = []
        self.outstanding = 0
        self.outstanding_max = 0

    def send(self, method: str, params: Sequence[Any], on_reply: OnReply) -> None:
        self.calls.append((method, params))
        self.outstanding += 1
        self.outstanding_max = max(self.outstanding_max, self.outstanding)
        asyncio.get_running_loop().call_later(self.delay(len(self.calls)), self._answer, on_reply)

    def _answer(self, on_reply: OnReply) -> None:
        self.outstanding -= 1
        on_reply(self.error, None)

    def close(self) -> None:
        pass


def requests(mix: str = "a") -> Requests:
    workload = Workload(MIXES[mix], keys=100, zipfian=False, seed=1)
    return Requests(workload, value=b"v", options={}, operation_prefix=bytes(12))


async def measured(store: Store, **options: Any) -> tuple[Run, Tally]:
    settings: dict[str, Any] = {"depth": 1, "warmup_s": 0.0, "duration_s": 0.2} | options
    run = Run([store], requests().draw, **settings)
    await run.drive(grace_s=0.1)
    return run, run.take()


async def test_a_closed_loop_keeps_exactly_depth_requests_outstanding() -> None:
    store = Store(lambda _: 0.002)
    await measured(store, depth=3)
    assert store.outstanding_max == 3
    assert len(store.calls) > 30


async def test_a_run_by_count_sends_exactly_that_many() -> None:
    store = Store(lambda _: 0.001)
    run, tally = await measured(store, depth=4, count=25)
    assert len(store.calls) == 25
    assert tally.inside == 25
    assert 0.006 < run.window_s < 5.0


async def test_throughput_and_latency_are_those_of_the_store() -> None:
    """One requester: what it gets a second is one over its mean latency, on however slow a machine."""
    run, tally = await measured(Store(lambda _: 0.005), duration_s=0.25)
    both = tally.latency[GET]
    both.add(tally.latency[PUT])
    assert tally.inside / run.window_s == pytest.approx(1_000_000 / both.mean, rel=0.15)
    assert both.quantile(0.0) >= 3_900, "uvloop's timers count whole milliseconds"


async def test_what_began_during_warm_up_is_not_counted() -> None:
    store = Store(lambda number: 0.2 if number == 1 else 0.001)
    _, tally = await measured(store, warmup_s=0.05, duration_s=0.25)
    assert 0 < tally.latency[GET].total + tally.latency[PUT].total < len(store.calls)
    assert max(tally.latency[GET].maximum, tally.latency[PUT].maximum) < 190_000


async def test_an_open_loop_sends_at_its_rate() -> None:
    store = Store(lambda _: 0.001)
    _, tally = await measured(store, depth=10, rate=500.0, duration_s=0.2)
    assert len(store.calls) == pytest.approx(100, abs=15)
    assert not tally.errors


async def test_an_open_loop_counts_the_wait_of_requests_that_could_not_leave() -> None:
    """One stall of 100 ms at 200 requests a second delays twenty requests, and all of them must show it."""
    store = Store(lambda number: 0.1 if number == 5 else 0.0)
    _, tally = await measured(store, rate=200.0, duration_s=0.24)
    both = tally.latency[GET]
    both.add(tally.latency[PUT])
    assert both.quantile(0.75) > 20_000


async def test_a_closed_loop_would_have_hidden_that_stall() -> None:
    """The negative control of the test above: with the wait left out, one slow request of many shows."""
    store = Store(lambda number: 0.1 if number == 5 else 0.001)
    _, tally = await measured(store, duration_s=0.24)
    both = tally.latency[GET]
    both.add(tally.latency[PUT])
    assert both.quantile(0.75) < 20_000


async def test_what_an_overloaded_open_loop_never_sent_is_reported() -> None:
    _, tally = await measured(Store(lambda _: 0.05), rate=1_000.0, duration_s=0.1)
    assert tally.errors["never_sent"] > 50


async def test_refusals_are_counted_by_name_and_do_not_spin() -> None:
    refusal = errors.Overloaded(what="requests", maximum=1, retry_after_ms=1)
    store = Store(lambda _: 0.0, error=refusal)
    run, tally = await measured(store, duration_s=0.1)
    assert tally.inside == 0
    assert 1 <= tally.errors["overloaded"] <= 15
    assert run.turns_lost == 0


async def test_a_lost_connection_ends_its_turns_and_the_run() -> None:
    store = Store(lambda _: 0.0, error=errors.ConnectionLost(address="a", reason="b"))
    run, tally = await measured(store, depth=2, duration_s=60.0)
    assert run.turns_lost == 2
    assert tally.errors["connection_lost"] == 2


async def test_answers_that_never_come_are_reported() -> None:
    _, tally = await measured(Store(lambda _: 60.0), duration_s=0.05)
    assert tally.errors["no_answer"] == 1


def test_every_put_has_its_own_operation_id() -> None:
    source = requests("put")
    ids = [source.draw()[2][2] for _ in range(100)]
    assert len(set(ids)) == 100
    assert {len(each) for each in ids} == {16}


def test_a_tally_survives_the_way_to_the_parent_process() -> None:
    tally = Tally()
    tally.latency[GET].record(17)
    tally.errors["overloaded"] += 2
    tally.inside = 1
    back = Tally.from_plain(tally.to_plain())
    back.add(tally)
    assert (back.latency[GET].total, back.errors["overloaded"], back.inside) == (2, 4, 2)
