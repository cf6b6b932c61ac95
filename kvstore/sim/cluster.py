"""Production nodes and clients on imagined machines."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from kvstore import errors
from kvstore.client.client import Client
from kvstore.core.topology import NodeInfo, Topology
from kvstore.node.node import Node
from kvstore.node.options import NodeOptions
from kvstore.node.parts import World
from kvstore.sim.disk import SimFiles, SimWorker
from kvstore.sim.faults import CLIENTS
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

CLIENT_CLOCKS_MS = (0.0, 0.0, 250.0, -5_000.0, 3_600_000.0, -86_400_000.0)
"""How wrong a client's clock may be: nothing depends on it."""
DIRECTORY = "/data"
_CLUSTER = "51" * 16


def address(number: int) -> str:
    """Of a node's machine, or of a client's."""
    return f"10.0.0.{number}" if number < CLIENTS else f"10.1.0.{number - CLIENTS}"


class Machine:
    """What outlives a process: address, clock, disk; and the process that runs now."""

    def __init__(self, number: int, loop: SimLoop, dice: random.Random) -> None:
        self.number = NodeId(number)
        self.host = address(number)
        self.offset_ms, self.drift = dice.uniform(-100, 100), dice.uniform(-1e-5, 1e-5)
        """What its clock is off by in good times."""
        self.clock = SimClock(loop.time, offset_ms=self.offset_ms, drift=self.drift)
        self.files = SimFiles(random.Random(dice.getrandbits(64)))
        self.backing = Backing()
        self.slowness = [1.0]
        self.workers: list[SimWorker] = []
        self.incarnation: Incarnation | None = None
        self.node: Node | None = None
        self.refused: errors.StartError | None = None
        """Why the last start was refused, if it was."""

    @property
    def runs(self) -> bool:
        """Whether a process runs here (a paused one does)."""
        return self.incarnation is not None and not self.incarnation.dead

    def set_clock_right(self) -> None:
        """As right as it is in good times: as if somebody had asked a time server."""
        self.clock.drift = self.drift
        self.clock.offset_ms = self.offset_ms


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
        self.network.speak(machine.host)
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

        def worker(name: str) -> SimWorker:
            return SimWorker(
                self.loop,
                dice,
                machine.files,
                on_power_cut=power_cut,
                on_done=lambda: self.trace("disk", machine.host, name),
                slowness=machine.slowness,
            )

        machine.workers = [worker("log"), worker("flush")]
        holder: list[Node] = []

        def on_failure(failure: BaseException) -> None:
            for node in holder:
                node.storage_failed(failure)

        store = Store.open(
            files=machine.files,
            worker=machine.workers[0],
            flusher=machine.workers[1],
            engine=MemoryEngine(machine.backing),
            directory=DIRECTORY,
            identity=Identity(_CLUSTER, f"{machine.number:032x}", machine.number, "5a" * 16),
            options=StoreOptions(segment_bytes=1 << 16, memtable_bytes=1 << 14),
            on_failure=on_failure,
            clock=machine.clock,
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
        except errors.Crashed as error:
            self.trace("ended", incarnation.host, error.message)
        except BaseException as error:
            self.failures.append(error)
            raise
        finally:
            if not incarnation.dead:
                incarnation.dead = True
                self.network.crash(incarnation, silent=False)
                self.machines[node.number].files.crash(power=False)

    def stop(self, number: int) -> None:
        """Ask a process to end in order, as with SIGTERM."""
        machine = self.machines[number]
        if machine.runs and machine.node is not None:
            self.trace("stop", machine.host)
            machine.node.stop()

    def kill(self, number: int) -> None:
        """The process is gone, as with SIGKILL; the machine keeps what it had written, synced or not."""
        machine = self.machines[number]
        if machine.runs and machine.incarnation is not None:
            self.trace("kill", machine.host)
            machine.incarnation.dead = True
            machine.incarnation.held.clear()
            self.network.crash(machine.incarnation, silent=False)
            machine.files.crash(power=False)
            machine.node = None

    def crash(self, number: int) -> None:
        """The machine loses power: the process is gone, and what was not synced may be."""
        machine = self.machines[number]
        if not machine.runs:
            return
        assert machine.incarnation is not None
        self.trace("crash", machine.host)
        machine.incarnation.dead = True
        machine.incarnation.held.clear()
        self.network.crash(machine.incarnation, silent=self.dice.random() < 0.5)
        for worker in machine.workers:
            worker.power_lost()
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

    def heal(self) -> None:
        """Everything as it should be: links, clocks, disks, processes."""
        self.trace("heal")
        self.network.cuts.clear()
        self.network.slow.clear()
        self.network.kick()
        for number, machine in self.machines.items():
            machine.set_clock_right()
            machine.files.refuse_writes = machine.files.fail_syncs = False
            machine.files.fuse = 0
            machine.slowness[0] = 1.0
            self.resume(number)
            if not machine.runs:
                self.start(number)

    async def client(self, number: int, url: str | None = None, **options: Any) -> Client:
        """A client on machine `CLIENTS + number`."""
        return await Client.connect(
            url or self.urls,
            clock=SimClock(self.loop.time, offset_ms=self.dice.choice(CLIENT_CLOCKS_MS)),
            dice=random.Random(self.dice.getrandbits(64)),
            local_addr=(address(CLIENTS + number), 0),
            **options,
        )

    def end(self) -> None:
        """No process runs any more; nothing of theirs is cleaned up in order."""
        for machine in self.machines.values():
            if machine.incarnation is not None:
                machine.incarnation.dead = True
                machine.incarnation.held.clear()
