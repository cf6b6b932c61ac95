"""Rounds of one owner when something is wrong: its peers say nothing, its clock is behind, it made a mistake.

Whatever it is: each change is told once, by its deadline, nothing is left behind, and the key goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import sim_play

from kvstore import errors
from kvstore.core.changes import Request
from kvstore.core.ring import storage_key
from kvstore.node.node import Node
from kvstore.node.proposers import Proposers, awaited
from kvstore.sim.cluster import Cluster, Machine
from kvstore.types import NodeId, OperationId

pytestmark = pytest.mark.sim
KEY = b"k"
ROUND_S = 0.05
"""More than a round takes that nothing is in the way of."""


class Scene:
    """Three nodes, seen from the owners of one key."""

    def __init__(self, cluster: Cluster) -> None:
        self.loop = asyncio.get_running_loop()
        self.cluster = cluster
        self.first, *self.others = self.cluster.topology.preference(KEY)
        self._names = 0

    def machine(self, number: NodeId) -> Machine:
        return self.cluster.machines[number]

    def node(self, number: NodeId) -> Node:
        node = self.machine(number).node
        assert node is not None
        return node

    def proposers(self, number: NodeId) -> Proposers:
        return self.node(number)._service._verbs._linear._registers._proposers

    async def add(self, number: NodeId, *, within: float = 3.0, name: str = "incr") -> Any:
        """One more, by a round of one owner: the sum, or the error it is told."""
        self._names += 1
        operation = OperationId(self._names.to_bytes(16, "big"))
        request = Request(operation, True, name, (1, 0, None, None, 0))
        try:
            outcome, _ = await awaited(self.proposers(number).submit, KEY, request, self.loop.time() + within)
        except errors.KVError as error:
            return error
        return outcome.value

    def asking(self, number: NodeId, *, within: float = 3.0) -> asyncio.Task[Any]:
        """`add`, under way."""
        return self.loop.create_task(self.add(number, within=within))

    def pause(self, *numbers: NodeId) -> None:
        for number in numbers:
            self.cluster.pause(number)

    def resume(self, *numbers: NodeId) -> None:
        for number in numbers:
            self.cluster.resume(number)

    def cut(self, number: NodeId) -> None:
        """Nothing passes between an owner and the others."""
        network, host = self.cluster.network, self.machine(number).host
        for other in self.cluster.machines.values():
            if other.host != host:
                network.cuts |= {(host, other.host), (other.host, host)}

    def heal(self) -> None:
        self.cluster.network.cuts.clear()
        self.cluster.network.kick()

    def slow_down(self, source: NodeId, destination: NodeId) -> None:
        """What one owner tells another takes longer than what anybody else tells."""
        hosts = self.machine(source).host, self.machine(destination).host
        self.cluster.network.slow[hosts] = 0.1

    def held(self, number: NodeId) -> bytes | None:
        """The record of the key."""
        partition = self.cluster.topology.partition(KEY)
        return self.node(number)._service._verbs._linear._acceptor.latest(storage_key(partition, KEY))

    def left(self, number: NodeId) -> tuple[int, int]:
        """Keys with rounds, and deadlines, that a node still knows of."""
        proposers = self.proposers(number)
        return len(proposers._queues), len(proposers._deadlines)


Play = Callable[[Scene], Coroutine[Any, Any, None]]


def played(play: Play, *, within_s: float = 60) -> None:
    """Run it as seen from the owners of a key of a cluster of its own."""
    sim_play.played(lambda cluster: play(Scene(cluster)), within_s=within_s)


def test_what_was_never_proposed_ends_as_refused() -> None:
    async def play(scene: Scene) -> None:
        scene.pause(*scene.others)
        began = scene.loop.time()
        asked = [scene.asking(scene.first, within=0.4) for _ in range(2)]
        told = [await each for each in asked]
        assert [type(error) for error in told] == [errors.NoMajority] * 2
        assert 0.4 <= scene.loop.time() - began < 0.45
        await asyncio.sleep(2)
        assert scene.left(scene.first) == (0, 0)
        scene.resume(*scene.others)
        await asyncio.sleep(2)
        assert await scene.add(scene.first) == b"1"

    played(play)


def test_what_was_proposed_ends_as_not_known() -> None:
    async def play(scene: Scene) -> None:
        assert await scene.add(scene.first) == b"1"
        scene.pause(*scene.others)
        began = scene.loop.time()
        asked = [scene.asking(scene.first, within=0.4) for _ in range(2)]
        told = [await each for each in asked]
        assert [type(error) for error in told] == [errors.QuorumTimeout, errors.NoMajority], (
            "the second one waited for the round of the first"
        )
        assert 0.4 <= scene.loop.time() - began < 0.45
        await asyncio.sleep(2)
        assert scene.left(scene.first) == (0, 0)
        scene.resume(*scene.others)
        await asyncio.sleep(2)
        assert await scene.add(scene.first) in {b"2", b"3"}

    played(play)


def test_a_round_that_nobody_waits_for_any_more_makes_way_for_the_next() -> None:
    async def play(scene: Scene) -> None:
        scene.pause(*scene.others)
        late = scene.asking(scene.first, within=0.2)
        await asyncio.sleep(0)
        waiting = scene.asking(scene.first)
        assert isinstance(await late, errors.NoMajority)
        began = scene.loop.time()
        scene.resume(*scene.others)
        assert await waiting == b"1"
        assert scene.loop.time() - began < ROUND_S

    played(play)


def test_a_mistake_in_a_round_ends_its_changes_and_no_others() -> None:
    async def play(scene: Scene) -> None:
        mistaken = scene.loop.create_task(scene.add(scene.first, name="no such change"))
        await asyncio.sleep(0)
        good, began = scene.asking(scene.first), scene.loop.time()
        told = await mistaken
        assert isinstance(told, errors.Unresolved)
        assert "log" in told.message
        assert await good == b"1"
        assert scene.loop.time() - began < ROUND_S
        assert scene.left(scene.first) == (0, 0)
        assert len(scene.cluster.trace.bugs) == 1, "its log has it"

    played(play)


def test_a_clock_that_is_behind_costs_one_round_more_not_the_time_it_is_behind() -> None:
    async def play(scene: Scene) -> None:
        first, second, third = scene.first, *scene.others
        scene.pause(first)
        for number in (second, third):
            scene.machine(number).clock.offset_ms = scene.machine(first).clock.offset_ms + 400
        assert await scene.add(second) == b"1"
        scene.resume(first)
        scene.cluster.network.kick()
        node, began = scene.node(first), scene.loop.time()
        assert await scene.add(first) == b"2"
        assert scene.loop.time() - began < ROUND_S
        assert node.counters.register_retries <= 1

    played(play)


@pytest.mark.parametrize("slow", [1, 2], ids=["it refuses in time", "it refuses late"])
def test_an_owner_that_promised_more_during_a_cut_is_not_left_behind(slow: int) -> None:
    """Two of three are enough for the leader, which so never asked what the third had promised."""

    async def play(scene: Scene) -> None:
        first, second, third = owners = scene.first, *scene.others
        assert await scene.add(first) == b"1"
        scene.cut(third)
        assert isinstance(await scene.add(third, within=0.4), errors.KVError)
        await asyncio.sleep(4)
        scene.heal()
        await asyncio.sleep(4)
        scene.slow_down(owners[slow], first)
        for total in range(2, 8):
            assert await scene.add(first) == b"%d" % total
            await asyncio.sleep(0.5)
        assert scene.held(third) == scene.held(first) == scene.held(second)
        prepares = scene.node(first).counters.register_prepares
        assert await scene.add(first) == b"8"
        assert scene.node(first).counters.register_prepares == prepares, "it leads again"

    played(play)


def test_disks_that_are_slower_than_a_phase_are_waited_for() -> None:
    """Asked anew each second, at another ballot, a majority whose syncs take longer never got one done."""

    async def play(scene: Scene) -> None:
        assert await scene.add(scene.first) == b"1"
        for machine in scene.cluster.machines.values():
            machine.slowness[0] = 4_000.0  # 0.8 to 3.2 s a sync
        for total in range(2, 5):
            assert await scene.add(scene.first, within=30) == b"%d" % total
        rounds = scene.node(scene.first).counters.register_rounds
        assert rounds <= 8, "one is not given up for another while it may still come to something"
        both = [scene.asking(scene.first, within=30), scene.asking(scene.first, within=30)]
        assert [await each for each in both] == [b"5", b"6"]

    played(play, within_s=180)
