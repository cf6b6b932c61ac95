"""Counters on real nodes: concurrent, retried, deleted, cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import errors
from kvstore.client.caller import Caller
from kvstore.server import LocalNodes, local_nodes
from kvstore.types import NodeId


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalNodes]:
    async with local_nodes(tmp_path, count=3, cluster_id="c2" * 16, log_level="critical") as nodes:
        yield nodes


async def test_many_adders_lose_nothing(local: LocalNodes) -> None:
    async with await kvstore.connect(local.urls) as one, await kvstore.connect(local.urls) as two:
        async with asyncio.TaskGroup() as tasks:
            for n in range(40):
                tasks.create_task(one.counter_add("c", n))
                tasks.create_task(two.counter_add("c", -1))
        assert await one.counter_get("c") == sum(range(40)) - 40
        found = await two.get("c")
        assert found is not None
        assert found.value == b"740"


@pytest.mark.patches
async def test_a_lost_answer_counts_once(local: LocalNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Caller._try
    lost: list[str] = []

    async def forgetful(self: Caller, address: str, method: str, *rest: Any) -> Any:
        answer = await honest(self, address, method, *rest)
        if method == "counter_add" and len(lost) < 3:
            lost.append(address)
            raise errors.ConnectionLost(address=address, reason="the test dropped exactly this answer")
        return answer

    monkeypatch.setattr(Caller, "_try", forgetful)
    async with await kvstore.connect(local.urls) as kv:
        await kv.counter_add("c", 5)
        assert len(lost) == 3
        assert await kv.counter_get("c") == 5


async def test_an_unresolved_addition_counts_with_the_next_and_a_refused_one_never(
    local: LocalNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Caller.call
    failures: list[errors.KVError] = [
        errors.QuorumTimeout(operation="put", needed=2, acked=1, missing="n3"),
        errors.Overloaded(what="requests", maximum=1, retry_after_ms=1),
    ]

    async def failing(self: Caller, method: str, *rest: Any, **more: Any) -> Any:
        if method == "counter_add" and failures:
            raise failures.pop(0)
        return await honest(self, method, *rest, **more)

    async with await kvstore.connect(local.urls) as kv:
        await kv.counter_add("c", 1)
        monkeypatch.setattr(Caller, "call", failing)
        with pytest.raises(errors.Unresolved):
            await kv.counter_add("c", 10)
        with pytest.raises(errors.Refused):
            await kv.counter_add("c", 100)
        await kv.counter_add("c", 1_000)
        assert await kv.counter_get("c") == 1_011


async def test_what_was_never_sent_is_refused_not_unresolved(
    local: LocalNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first addition to a key reads how the counter stands; when that fails, nothing has been added."""
    honest = Caller.call
    failures: list[BaseException] = [
        errors.QuorumTimeout(operation="counter_get", needed=2, acked=1, missing="n3"),
        TimeoutError(),
    ]

    async def failing(self: Caller, method: str, *rest: Any, **more: Any) -> Any:
        if method == "counter_get" and failures:
            raise failures.pop(0)
        return await honest(self, method, *rest, **more)

    async with await kvstore.connect(local.urls) as kv:
        monkeypatch.setattr(Caller, "call", failing)
        for _ in range(2):
            with pytest.raises(errors.NoMajority, match="nothing was changed"):
                await kv.counter_add("c", 5)
        await kv.counter_add("c", 1)
        assert await kv.counter_get("c") == 1


async def test_who_waits_too_long_for_its_turn_has_added_nothing(
    local: LocalNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Caller.call
    stuck = asyncio.Event()

    async def hanging(self: Caller, method: str, *rest: Any, **more: Any) -> Any:
        if method == "counter_add":
            await stuck.wait()
        return await honest(self, method, *rest, **more)

    async with await kvstore.connect(local.urls) as kv:
        monkeypatch.setattr(Caller, "call", hanging)
        first = asyncio.create_task(kv.counter_add("c", 1))
        await asyncio.sleep(0.1)
        with pytest.raises(errors.NoMajority):
            await kv.counter_add("c", 10, timeout=0.1)
        stuck.set()
        await first
        assert await kv.counter_get("c") == 1


async def test_deleting_begins_anew_for_everybody(local: LocalNodes) -> None:
    async with await kvstore.connect(local.urls) as one, await kvstore.connect(local.urls) as two:
        await one.counter_add("c", 5)
        await two.counter_add("c", 5)
        await one.delete("c")
        assert await two.counter_get("c") == 0
        await two.counter_add("c", 2)
        await one.counter_add("c", 1)
        assert await one.counter_get("c") == 3


async def test_a_value_and_a_register_are_no_counters(local: LocalNodes) -> None:
    async with await kvstore.connect(local.urls) as kv:
        await kv.put("v", b"x")
        with pytest.raises(errors.NotACounter):
            await kv.counter_add("v")
        with pytest.raises(errors.NotACounter):
            await kv.counter_get("v")
        await kv.counter_add("c", 4)
        assert (await kv.incr("c")).value == 5, "a register takes the counter over"
        with pytest.raises(errors.NeedsRegister):
            await kv.counter_add("c")
        for level in ("linearizable",):
            with pytest.raises(errors.Unsupported):
                await kv.counter_add("v2", consistency=level)
            with pytest.raises(errors.Unsupported):
                await kv.counter_get("v2", consistency=level)
        for wrong in (1.5, True, 1 << 64, "1"):
            with pytest.raises(errors.BadOption):
                await kv.counter_add("c", wrong)  # type: ignore[arg-type]


async def test_it_counts_while_nodes_are_away_and_meets_again(local: LocalNodes) -> None:
    async with await kvstore.connect(local.urls, timeout=3) as kv:
        await kv.counter_add("c", 1)
        await local.stop(NodeId(3))
        for _ in range(5):
            await kv.counter_add("c", 1)
        await local.start(NodeId(3))
        await local.stop(NodeId(1))
        for _ in range(5):
            await kv.counter_add("c", 1, timeout=5)
        assert await kv.counter_get("c", timeout=5) == 11


async def test_a_counter_is_given_no_end(local: LocalNodes) -> None:
    """Its copies merge: an end that came nearer was undone by any of them, and tried until the deadline."""
    async with await kvstore.connect(local.urls) as kv:
        await kv.counter_add("c", 5)
        for refused in (kv.touch("c", ttl=60), kv.persist("c")):
            with pytest.raises(errors.Unsupported, match="counter") as caught:
                await refused
            assert caught.value.definite
        await kv.counter_add("c", 1)
        found = await kv.get("c")
        assert found is not None
        assert (found.value, found.expires_at) == (b"6", None)
