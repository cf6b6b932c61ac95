"""Put a node on this machine: its directory, its threads, its loop, its signals.

open_node     one node over real files, threads and clocks
serve         run it until it is told to stop
run_server    a whole process that is a node: what `kv server` does
LocalNodes    several nodes in this process, for `kvstore.local_cluster` and tests
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from kvstore import errors
from kvstore.config import NodeConfig, load
from kvstore.core.topology import NodeInfo, Topology
from kvstore.founding import advertised, find_cluster
from kvstore.io.clock import SystemClock
from kvstore.io.disk import SystemFiles
from kvstore.io.entropy import system_dice
from kvstore.io.log import node_log
from kvstore.io.loop import new_event_loop, tune_for_serving
from kvstore.io.net import free_ports
from kvstore.io.worker import ThreadWorker
from kvstore.node.node import Node
from kvstore.node.parts import World
from kvstore.ports import Clock
from kvstore.storage import identity as identities
from kvstore.storage.engine import Engine
from kvstore.storage.lmdb_engine import LmdbEngine
from kvstore.storage.memory_engine import MemoryEngine
from kvstore.storage.store import Store
from kvstore.types import Durability, NodeId

FIRST = NodeId(1)
"""The number of a node that starts a cluster by itself."""


def first_start(config: NodeConfig) -> None:
    """Make the data directory a cluster of one node, unless it already belongs to a cluster.

    Raises DataDirForeign when the configuration names another cluster than the directory's.
    """
    files, dice, directory = SystemFiles(), system_dice(), config.node.data_dir
    if config.cluster.cluster_nodes > 1:
        raise errors.ConfigInvalid(
            where="cluster_nodes",
            problem=f"{config.cluster.cluster_nodes} nodes found the cluster; nothing says where they are",
            hint="set seeds to their host names, or to one DNS name that has the addresses of all",
        )
    identity = identities.load_or_create(
        files,
        directory,
        dice=dice,
        cluster_id=config.node.cluster_id or None,
        node=None if identities.load(files, directory) is not None else FIRST,
    )
    if not identity.cluster_id:
        raise errors.DataDirUnusable(path=directory, reason="its node waits for its cluster: set seeds again")
    known = identities.load_topology(files, directory)
    if known is not None and len(known.nodes) == 1:
        # Alone, we are where we listen; in a company the table says where.
        me = known.node(identity.node)
        here = (advertised(config), config.listen.client_port, config.listen.peer_port)
        if (me.host, me.client_port, me.peer_port) != here:
            identities.save_topology(files, directory, known.with_addresses({identity.node: here}))
    if known is None:
        me = NodeInfo(
            identity.node,
            identity.node_uuid,
            config.node.name or f"n{identity.node}",
            advertised(config),
            config.listen.client_port,
            config.listen.peer_port,
            config.cluster.zone,
        )
        topology = Topology.create(
            identity.cluster_id,
            [me],
            partitions=config.cluster.partitions,
            replicas=config.cluster.replicas,
        )
        identities.save_topology(files, directory, topology)


def open_node(
    config: NodeConfig, *, log: Any, loop: asyncio.AbstractEventLoop, clock: Clock | None = None
) -> Node:
    """Recover a node's directory and put the node together. Blocks. `clock`: another than the machine's.

    Raises the StartError family: DataDirInUse, DataDirForeign, DataDirFormat, DataDirUnusable, CorruptLog.
    """
    files, dice, clock = SystemFiles(), system_dice(), clock or SystemClock()
    directory = config.node.data_dir
    identity = identities.load(files, directory)
    topology = identities.load_topology(files, directory)
    if identity is None or topology is None:
        raise errors.DataDirUnusable(path=directory, reason="it holds no node yet")
    if identity.cluster_id != topology.cluster_id:
        raise errors.DataDirForeign(
            path=directory, expected=f"cluster {identity.cluster_id}", found=f"cluster {topology.cluster_id}"
        )
    engine: Engine = (
        MemoryEngine()
        if config.storage.engine == "memory"
        else LmdbEngine(f"{directory}/{identities.BASE_DIR}")
    )
    failures: list[BaseException] = []
    listeners: list[Node] = []

    def on_failure(failure: BaseException) -> None:
        failures.append(failure)
        for node in listeners:
            node.storage_failed(failure)

    store = Store.open(
        files=files,
        worker=ThreadWorker(loop, name="kvstore-log"),
        flusher=ThreadWorker(loop, name="kvstore-flush"),
        engine=engine,
        directory=directory,
        identity=identity,
        options=config.store_options(),
        on_failure=on_failure,
        clock=clock,
    )
    node = Node(
        topology=topology,
        number=identity.node,
        store=store,
        world=World(clock=clock, dice=dice, log=log),
        options=config.node_options(),
        # The memory engine forgets what it has flushed, so no log makes its answers durable.
        durability=Durability.MEMORY
        if config.storage.engine == "memory"
        else config.store_options().durability,
        loop=loop,
    )
    listeners.append(node)
    for failure in failures:
        node.storage_failed(failure)
    return node


def on_signal(stop: Callable[[], None]) -> None:
    """Call `stop` at SIGTERM or SIGINT. A second signal changes nothing."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


async def serve(node: Node) -> None:
    """Run a node until SIGTERM or SIGINT, then let it end in order."""
    on_signal(node.stop)
    await node.serve()


def run_server(config: NodeConfig) -> int:
    """Be a node. Returns the exit status: 0 after an orderly end. Raises the StartError family, Crashed."""
    if not __debug__:
        raise errors.ConfigInvalid(
            where="python -O",
            problem="assertions are switched off",
            hint="start without -O and PYTHONOPTIMIZE",
        )
    tune_for_serving()
    if not config.cluster.seeds:
        first_start(config)

    async def main() -> None:
        log = node_log(form=config.log.log_format, level=config.log.log_level)
        # From here on: in a container we are process 1, whom a signal that nobody handles does not end.
        stopping = asyncio.Event()
        on_signal(stopping.set)
        if config.cluster.seeds and not await find_cluster(config, log=log, stopping=stopping):
            return
        node = open_node(config, log=log, loop=asyncio.get_running_loop())
        await asyncio.sleep(0)  # a signal of the meantime is heard now
        if stopping.is_set():
            node.stop()
        await serve(node)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
    return 0


_LOOK_AGAIN_S = 0.005


class LocalNodes:
    """Real nodes in this process, on loopback, each with its directory; one by one stoppable."""

    def __init__(self, directory: Path, topology: Topology, tasks: asyncio.TaskGroup, log_level: str) -> None:
        self._directory = directory
        self._tasks = tasks
        self._log_level = log_level
        self._running: dict[NodeId, asyncio.Task[None]] = {}
        self.topology = topology
        self.nodes: dict[NodeId, Node] = {}

    @property
    def urls(self) -> list[str]:
        """One for each member."""
        return [f"kv://{node.host}:{node.client_port}" for node in self.topology.nodes]

    def open(self, number: NodeId, *, clock: Clock | None = None, **options: Any) -> Node:
        """Recover a member without starting it. `options` go by their configuration names."""
        info = self.topology.node(number)
        return open_node(
            load(
                flags={
                    "data_dir": str(self._directory / info.name),
                    "listen_host": info.host,
                    "client_port": info.client_port,
                    "peer_port": info.peer_port,
                    **options,
                }
            ),
            log=node_log(level=self._log_level, node=info.name),
            loop=asyncio.get_running_loop(),
            clock=clock,
        )

    async def start(self, number: NodeId, *, clock: Clock | None = None, **options: Any) -> Node:
        """Start a member that does not run."""
        node = self.open(number, clock=clock, **options)
        self.nodes[number] = node
        self._running[number] = self._tasks.create_task(node.serve())
        await node.started.wait()
        return node

    async def until_linked(self, seconds: float) -> None:
        """Wait until all that run reach each other, so that the first call may ask for every one of them.

        No longer than `seconds`: whom nobody lets in (another node's directory) is not waited for.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(  # noqa: ASYNC110  for some milliseconds of a start; links tell nobody
                    peer["up"] for node in self.nodes.values() for peer in node.status()["peers"].values()
                ):
                    await asyncio.sleep(_LOOK_AGAIN_S)

    async def stop(self, number: NodeId) -> None:
        """Stop a member in order."""
        self.nodes.pop(number).stop()
        await self._running.pop(number)

    async def stop_all(self) -> None:
        """Stop whoever runs."""
        for number in sorted(self.nodes):
            await self.stop(number)


def found_cluster(
    directory: Path, ports: Sequence[int], *, cluster_id: str, replicas: int, partitions: int
) -> Topology:
    """Write the directories n1, n2, ... of a new cluster on this machine.

    An existing one moves to the ports and keeps everything else. `ports` holds a client and a peer port
    for each node, in turn.
    """
    files, dice = SystemFiles(), system_dice()
    count = len(ports) // 2
    places = [str(directory / f"n{number}") for number in range(1, count + 1)]
    old = identities.load_topology(files, places[0]) if Path(places[0]).exists() else None
    if old is None:
        known = [
            identities.load_or_create(files, place, dice=dice, cluster_id=cluster_id, node=NodeId(number))
            for number, place in enumerate(places, 1)
        ]
        members = [
            NodeInfo(
                identity.node, identity.node_uuid, f"n{at + 1}", "127.0.0.1", ports[2 * at], ports[2 * at + 1]
            )
            for at, identity in enumerate(known)
        ]
        topology = Topology.create(cluster_id, members, partitions=partitions, replicas=replicas)
    else:
        topology = old.with_addresses(
            {NodeId(at + 1): ("127.0.0.1", ports[2 * at], ports[2 * at + 1]) for at in range(count)}
        )
    for place in places:
        identities.save_topology(files, place, topology)
    return topology


_PORT_TRIES = 3
_LINKED_S = 5.0


@asynccontextmanager
async def local_nodes(
    directory: Path,
    *,
    count: int,
    cluster_id: str,
    replicas: int = 3,
    partitions: int = 256,
    log_level: str = "error",
) -> AsyncIterator[LocalNodes]:
    """Run `count` nodes in this process, which know each other, until the block ends."""
    for tries_left in reversed(range(_PORT_TRIES)):
        topology = found_cluster(
            directory, free_ports(2 * count), cluster_id=cluster_id, replicas=replicas, partitions=partitions
        )
        started = False
        try:
            async with asyncio.TaskGroup() as tasks:
                local = LocalNodes(directory, topology, tasks, log_level)
                try:
                    for member in topology.nodes:
                        await local.start(member.number)
                    started = True
                    await local.until_linked(_LINKED_S)
                    yield local
                finally:
                    await local.stop_all()
            return
        except* errors.PortInUse:
            # Somebody took one between our look and our use of it: they are looked for anew.
            if started or not tries_left:
                raise
