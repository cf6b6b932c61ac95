"""A node's parts, made and joined: everything between its sockets and its store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from kvstore.core.skew import ClockGuard
from kvstore.core.topology import Topology
from kvstore.core.version import HybridClock
from kvstore.core.witness import Witness
from kvstore.node.acceptor import Acceptor
from kvstore.node.batches import Batches
from kvstore.node.ceiling import Ceiling
from kvstore.node.coordinator import Coordinator
from kvstore.node.deadlines import Deadlines
from kvstore.node.linear import Linear
from kvstore.node.link import Link
from kvstore.node.metrics import Counters
from kvstore.node.options import NodeOptions
from kvstore.node.peer_service import PeerService
from kvstore.node.proposers import Proposers
from kvstore.node.registers import Registers
from kvstore.node.replica import Replica
from kvstore.node.scanning import Scanner
from kvstore.node.service import Service
from kvstore.node.turn import Turn
from kvstore.node.verbs import Verbs
from kvstore.ports import Clock, Dice
from kvstore.storage.store import Store
from kvstore.types import Durability, NodeId, Version


@dataclass(slots=True)
class World:
    """What the node is handed: see `kvstore.ports`."""

    clock: Clock
    dice: Dice
    log: Any
    """A structlog-style logger: `log.info("event", field=...)`."""


@dataclass(frozen=True, slots=True)
class Ways:
    """What the parts ask of the node they belong to."""

    spawn: Callable[[Coroutine[Any, Any, None]], None]
    bug: Callable[[str, Exception], None]
    greeting: Callable[[], dict[str, Any]]
    peer_greeting: Callable[[], dict[str, Any]]
    status: Callable[[], dict[str, Any]]


class Parts:
    """One of each. The node runs them."""

    def __init__(
        self,
        *,
        topology: Topology,
        number: NodeId,
        store: Store,
        world: World,
        options: NodeOptions,
        durability: Durability,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        ways: Ways,
    ) -> None:
        self._number = number
        self._store = store
        self._world = world
        self._options = options
        self._loop = loop
        self._counters = counters
        self._ways = ways
        self._turn = Turn(loop)
        self.deadlines = Deadlines(loop.time())
        self.witness = Witness()
        self.guard = ClockGuard(options.drift_ms_max, nodes=len(topology.nodes))
        self.guard.reading(world.clock.wall_ms(), world.clock.monotonic())
        last = Version(max(store.highest_version, store.ceiling))
        self.versions = HybridClock(number, drift_ms_max=options.drift_ms_max, last=last)
        self.replica = Replica(
            number=number,
            store=store,
            clock=self.versions,
            turn=self._turn,
            counters=counters,
            durability=durability,
            life=_life(world.clock),
        )
        self.links = {
            peer.number: Link(info=peer, turn=self._turn, loop=loop)
            for peer in topology.nodes
            if peer.number != number
        }
        self._ceiling = Ceiling(store=store, turn=self._turn)
        self.coordinator = self._new_coordinator(topology)
        self._acceptor = Acceptor(
            number=number,
            store=store,
            replica=self.replica,
            versions_clock=self.versions,
            counters=counters,
            durable=durability is Durability.ALWAYS or options.unsafe_registers,
        )
        self.proposers = self._new_proposers()
        self._registers = self._new_registers()
        self.service = self._new_service()
        self.peer_service = self._new_peer_service(topology)

    def _new_coordinator(self, topology: Topology) -> Coordinator:
        coordinator = Coordinator(
            number=self._number,
            topology=topology,
            replica=self.replica,
            links=self.links,
            versions_clock=self.versions,
            ceiling=self._ceiling,
            guard=self.guard,
            clock=self._world.clock,
            deadlines=self.deadlines,
            dice=self._world.dice,
            loop=self._loop,
            counters=self._counters,
            options=self._options,
        )
        coordinator.refusing = "it is starting"
        return coordinator

    def _new_proposers(self) -> Proposers:
        return Proposers(
            number=self._number,
            topology=lambda: self.coordinator.topology,
            links=self.links,
            acceptor=self._acceptor,
            versions_clock=self.versions,
            ceiling=self._ceiling,
            trusted_now=self.coordinator.trusted_now,
            deadlines=self.deadlines,
            dice=self._world.dice,
            loop=self._loop,
            counters=self._counters,
            bug=self._ways.bug,
        )

    def _new_registers(self) -> Registers:
        return Registers(
            number=self._number,
            topology=lambda: self.coordinator.topology,
            links=self.links,
            proposers=self.proposers,
            spawn=self._ways.spawn,
            dice=self._world.dice,
            loop=self._loop,
            counters=self._counters,
        )

    def _new_service(self) -> Service:
        scanner = Scanner(
            number=self._number, store=self._store, links=self.links, now=self.coordinator.trusted_now
        )
        linear = Linear(
            number=self._number,
            coordinator=self.coordinator,
            registers=self._registers,
            acceptor=self._acceptor,
            links=self.links,
            deadlines=self.deadlines,
            spawn=self._ways.spawn,
            loop=self._loop,
            drift_ms_max=self._options.drift_ms_max,
        )
        verbs = Verbs(
            number=self._number,
            coordinator=self.coordinator,
            scanner=scanner,
            linear=linear,
            spawn=self._ways.spawn,
            options=self._options,
            bug=self._ways.bug,
        )
        return Service(
            coordinator=self.coordinator,
            verbs=verbs,
            batches=Batches(coordinator=self.coordinator, linear=linear, verbs=verbs, options=self._options),
            greeting=self._ways.greeting,
            status=self._ways.status,
            clock=self._world.clock,
            turn=self._turn,
            loop=self._loop,
            counters=self._counters,
            options=self._options,
            log=self._world.log,
        )

    def _new_peer_service(self, topology: Topology) -> PeerService:
        return PeerService(
            topology=topology,
            greeting=self._ways.peer_greeting,
            witness=self.witness,
            replica=self.replica,
            store=self._store,
            acceptor=self._acceptor,
            proposers=self.proposers,
            clock=self._world.clock,
            turn=self._turn,
            loop=self._loop,
            counters=self._counters,
            options=self._options,
            log=self._world.log,
        )


def _life(clock: Clock) -> int:
    """A number that the process before us did not have."""
    return clock.wall_ms() << 16 | int(clock.monotonic() * 1000) & 0xFFFF
