"""A change that was held up on its way to an owner is done by another one, and never twice."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from raw_nodes import Nodes

from kvstore.core import window
from kvstore.core.changes import Request
from kvstore.node.link import Link
from kvstore.node.registers import FORWARD_S_MIN
from kvstore.ports import Clock
from kvstore.types import NodeId, OperationId

pytestmark = pytest.mark.slow
AHEAD_S = 1_000.0


def named(number: int) -> OperationId:
    """A name as clients make it: the time, then what makes it unique."""
    return OperationId(int(time.time() * 1000).to_bytes(6, "big") + number.to_bytes(10, "big"))


async def add(three: Nodes, number: NodeId, operation: OperationId) -> int:
    """Have one node see to it that one is added to `k`; returns the sum."""
    request = Request(operation, True, "incr", (1, 0, None, None, 0))
    registers = three.local.nodes[number]._service._verbs._linear._registers
    outcome, _ = await registers.change(b"k", request, asyncio.get_running_loop().time() + 3)
    assert outcome.value is not None
    return int(outcome.value)


@pytest.mark.patches
async def test_one_that_arrives_after_the_register_forgot_it_is_void(
    three: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found with networks of containers unplugged: TCP delivers for minutes, a window holds 128 outcomes."""
    first, second, _ = three.local.topology.preference(b"k")
    sent = Link.call
    held: list[tuple[Any, ...]] = []

    def call(link: Link, method: str, params: list[Any], on_reply: Any) -> None:
        if method == "change" and not held:
            held.append((link, method, params, lambda *told: answers.put_nowait(told)))
        else:
            sent(link, method, params, on_reply)

    answers: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()
    monkeypatch.setattr(Link, "call", call)
    began = asyncio.get_running_loop().time()
    assert await add(three, second, named(1)) == 1, "the next owner does it"
    assert asyncio.get_running_loop().time() - began > FORWARD_S_MIN
    totals = [await add(three, first, named(2 + number)) for number in range(window.ENTRIES_MAX + 2)]
    total = totals[-1]
    assert total == window.ENTRIES_MAX + 3
    await asyncio.sleep(1.5)  # its time is over
    sent(*held[0])
    error, _ = await answers.get()
    assert error[0] == "too_late"
    assert await add(three, first, named(1_000)) == total + 1
    assert three.local.nodes[first].counters.deadline_drops == 1


class Ahead:
    """A machine that has been up for longer."""

    def __init__(self, clock: Clock) -> None:
        self.wall_ms = clock.wall_ms
        self._monotonic = clock.monotonic

    def monotonic(self) -> float:
        return self._monotonic() + AHEAD_S


async def test_instants_are_told_by_the_steady_clock_of_the_peer(three: Nodes) -> None:
    loop = asyncio.get_running_loop()
    first, second, _ = three.local.topology.preference(b"k")
    node, link = three.local.nodes[first], three.local.nodes[second]._links[first]
    node._peer_service._clock = Ahead(node._peer_service._clock)
    async with asyncio.timeout(20):  # a slow round trip is corrected by the next ping
        while abs(link.clock.instant_ms(loop.time()) / 1000 - loop.time() - AHEAD_S) > 0.1:
            await asyncio.sleep(0.2)
    assert await add(three, second, named(1)) == 1
    assert node.counters.register_rounds == 1, "it was in time by the clock of the owner"
    assert node.counters.deadline_drops == 0
