"""Production nodes and clients on imagined machines."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from kvstore import errors
from kvstore.client.client import Client
from kvstore.core.topology import NodeInfo, Topology
from kvstore.node.node import Node, World
from kvstore.node.options import NodeOptions
from kvstore.sim.disk import SimFiles, SimWorker
from kvstore.sim.host import Incarnation, SimClock
from kvstore.sim.loop import SimLoop
from kvstore.sim.network import Network
from kvstore.sim.trace import Trace, TraceLog
from kvstore.storage.identity import Identity
from kvstore.storage.memory_engine import Backing, MemoryEngine
from kvstore.storage.options import StoreOptions
from kvstore.storage.store import Store
from kvstore.types import NodeId

CLIENT_PORT, PEER_PORT = 7401, 7501
DIRECTORY = "/data"
_CLUSTER = "51" * 16


class Machine:
    """What outlives a process: address, clock, disk; and the process that runs now."""

    def __init__(self, number: int, loop: SimLoop, dice: random.Random) -> None:
        self.number = NodeId(number)
        self.host = f"10.0.0.{number}"
        self.clock = SimClock(loop.time, offset_ms=dice.uniform(-100, 100), drift=dice.uniform(-1e-5, 1e-5))
        self.files = SimFiles(random.Random(dice.getrandbits(64)))
        self.backing = Backing()
        self.slowness = [1.0]
        self.incarnation: Incarnation | None = None
        self.node: Node | None = None
        self.refused: errors.StartError | None = None
        """Why the last start was refused, if it was."""

    @property
    def runs(self) -> bool:
        """Whether a process runs here (a paused one does)."""
        return self.incarnation is not None and not self.incarnation.dead


class Cluster:
    """Machines 1..n, each with a node, and the network between them."""

    def __init__(self, loop: SimLoop, seed: int, *, nodes: int, replicas: int, keep_trace: bool) -> None:
        self.loop = loop
        self.dice = random.Random(seed)
        self.trace = Trace(loop.time, keep=keep_trace)
        self.network = Network(loop, random.Random(self.dice.getrandbits(64)), self.trace)
        loop.network = self.network
        self.machines = {number: Machine(number, loop, self.dice) for number in range(1, nodes + 1)}
        members = [
            NodeInfo(m.number, f"{m.number:032x}", f"n{m.number}", m.host, CLIENT_PORT, PEER_PORT)
            for m in self.machines.values()
        ]
        self.topology = Topology.create(_CLUSTER, members, partitions=16, replicas=replicas)
        self._tasks: list[asyncio.Task[None]] = []
        """Kept to the end: a crashed process's coroutines must not be collected and so cleaned up."""
        self.failures: list[BaseException] = []
        """What ended a node that nobody crashed."""

    @property
    def urls(self) -> list[str]:
        """Where clients connect."""
        return [f"kv://{machine.host}:{CLIENT_PORT}" for machine in self.machines.values()]

    def start(self, number: int) -> None:
        """Start a process on a machine. A refusal (a damaged log) is kept in `refused`."""
        machine = self.machines[number]
        assert not machine.runs
        machine.incarnation = incarnation = Incarnation(machine.host)
        self.trace("start", machine.host)
        try:
            node = incarnation.context.run(self._open, machine)
        except errors.StartError as error:
            incarnation.dead = True
            machine.refused = error
            machine.files.crash()
            self.trace("refused", machine.host, error.message)
            return
        machine.node = node
        self._tasks.append(self.loop.create_task(self._serve(node, incarnation), context=incarnation.context))

    def _open(self, machine: Machine) -> Node:
        dice = random.Random(self.dice.getrandbits(64))

        def power_cut() -> None:
            self.crash(int(machine.number))

        def worker() -> SimWorker:
            return SimWorker(self.loop, dice, on_power_cut=power_cut, slowness=machine.slowness)

        holder: list[Node] = []

        def on_failure(failure: BaseException) -> None:
            for node in holder:
                node.storage_failed(failure)

        store = Store.open(
            files=machine.files,
            worker=worker(),
            flusher=worker(),
            engine=MemoryEngine(machine.backing),
            directory=DIRECTORY,
            identity=Identity(_CLUSTER, f"{machine.number:032x}", machine.number, "5a" * 16),
            options=StoreOptions(segment_bytes=1 << 16, memtable_bytes=1 << 14),
            on_failure=on_failure,
        )
        node = Node(
            topology=self.topology,
            number=machine.number,
            store=store,
            world=World(clock=machine.clock, dice=dice, log=TraceLog(self.trace, machine.host)),
            options=NodeOptions(
                listen_host=machine.host, client_port=CLIENT_PORT, peer_port=PEER_PORT, read_repair_chance=0.5
            ),
            durability=StoreOptions().durability,
            loop=self.loop,
        )
        holder.append(node)
        return node

    async def _serve(self, node: Node, incarnation: Incarnation) -> None:
        try:
            await node.serve()
        except errors.Crashed:
            self.trace("ended", incarnation.host)
        except BaseException as error:
            self.failures.append(error)
            raise
        finally:
            incarnation.dead = True

    def crash(self, number: int) -> None:
        """The machine loses power: the process is gone, and what was not synced may be."""
        machine = self.machines[number]
        if not machine.runs:
            return
        assert machine.incarnation is not None
        self.trace("crash", machine.host)
        machine.incarnation.dead = True
        machine.incarnation.held.clear()
        self.network.crash(machine.incarnation)
        machine.files.crash()
        machine.node = None

    def pause(self, number: int) -> None:
        """The process stands still, as under SIGSTOP; its clock goes on."""
        machine = self.machines[number]
        if machine.runs and machine.incarnation is not None:
            self.trace("pause", machine.host)
            machine.incarnation.paused = True

    def resume(self, number: int) -> None:
        """It goes on."""
        machine = self.machines[number]
        if machine.runs and machine.incarnation is not None and machine.incarnation.paused:
            self.trace("resume", machine.host)
            self.loop.resume(machine.incarnation)

    def cut(self, pairs: list[tuple[int, int]]) -> None:
        """Cut directed links between machines."""
        for src, dst in pairs:
            self.trace("cut", src, dst)
            self.network.cuts.add((self.machines[src].host, self.machines[dst].host))

    def heal(self) -> None:
        """Everything as it should be: links, clocks, disks, processes."""
        self.trace("heal")
        self.network.heal()
        for number, machine in self.machines.items():
            machine.clock.offset_ms = max(min(machine.clock.offset_ms, 100), -100)
            machine.files.refuse_writes = False
            machine.files.fuse = 0
            machine.slowness[0] = 1.0
            self.resume(number)
            if not machine.runs:
                self.start(number)

    async def client(self, number: int, url: str | None = None, **options: Any) -> Client:
        """A client on a machine of its own, 10.1.0.`number`."""
        return await Client.connect(
            url or self.urls,
            clock=SimClock(self.loop.time),
            dice=random.Random(self.dice.getrandbits(64)),
            local_addr=(f"10.1.0.{number}", 0),
            **options,
        )

    def end(self) -> None:
        """No process runs any more; nothing of theirs is cleaned up in order."""
        for machine in self.machines.values():
            if machine.incarnation is not None:
                machine.incarnation.dead = True
                machine.incarnation.held.clear()
