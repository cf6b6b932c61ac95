"""One node: its parts put together, its life from first start to orderly end.

    open (recover the log; blocks) -> serve: listen, dial the peers, READY -> stop: drain, flush, close

The node runs unchanged in a process of its own, beside others in one process
(`kvstore.local_cluster`) and in the simulator; all it knows of the world are the ports it is
handed and the running loop.

Rules kept here:
- a node whose log failed fails everything unanswered as unresolved and ends: it never goes on;
- after a restart no request is served before the clock is past everything this node may have issued
  (waited for at most a second; a clock gone back further refuses writes instead, and says so);
- a stopping node refuses new work definitely, finishes what it has begun, then flushes.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from kvstore import errors, limits
from kvstore.core import version as versions
from kvstore.core.skew import ClockGuard
from kvstore.core.topology import Topology
from kvstore.core.version import HybridClock
from kvstore.node.ceiling import STEP_MS, Ceiling
from kvstore.node.coordinator import Coordinator
from kvstore.node.deadlines import STEP_S, Deadlines
from kvstore.node.keeper import Keeper
from kvstore.node.link import Link
from kvstore.node.metrics import Counters
from kvstore.node.options import NodeOptions
from kvstore.node.peer_service import PeerService
from kvstore.node.replica import Replica
from kvstore.node.scanning import Scanner
from kvstore.node.service import Service
from kvstore.node.turn import Turn
from kvstore.node.verbs import Verbs
from kvstore.ports import Clock, Dice
from kvstore.storage.store import Store
from kvstore.types import Durability, NodeId, Version

SERVER = "kvstore/0.1.0"
PROTOCOL = 1
_IN_USE = (errno.EADDRINUSE, errno.EACCES)
EXPIRY_INTERVAL_S = 0.1
SWEEP_INTERVAL_S = 1.0


class State(Enum):
    """Where in its life a node is."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(slots=True)
class World:
    """What the node is handed: see `kvstore.ports`."""

    clock: Clock
    dice: Dice
    log: Any
    """A structlog-style logger: `log.info("event", field=...)`."""


class Node:
    """A whole node. Make it, then run `serve()` until it returns."""

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
    ) -> None:
        self.info = topology.node(number)
        self.number = number
        self.options = options
        self.state = State.STARTING
        self.counters = Counters()
        self.started = asyncio.Event()
        """Set when the node listens and serves."""
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self._world = world
        self._log = world.log
        self._store = store
        self._loop = loop
        self._tasks: asyncio.TaskGroup | None = None
        self._begun_at = loop.time()
        self._turn = Turn(loop)
        self._deadlines = Deadlines(loop.time())
        self._guard = ClockGuard(options.drift_ms_max)
        self._guard.reading(world.clock.wall_ms(), world.clock.monotonic())
        last = Version(max(store.highest_version, store.ceiling))
        self._versions = HybridClock(number, drift_ms_max=options.drift_ms_max, last=last)
        self._replica = Replica(
            number=number,
            store=store,
            clock=self._versions,
            turn=self._turn,
            counters=self.counters,
            durability=durability,
        )
        self._links = {
            peer.number: Link(info=peer, turn=self._turn, loop=loop)
            for peer in topology.nodes
            if peer.number != number
        }
        self._coordinator = self._new_coordinator(topology)
        self._service = self._new_service()
        self._peer_service = PeerService(
            topology=topology,
            greeting=self._greeting,
            replica=self._replica,
            store=store,
            clock=world.clock,
            turn=self._turn,
            loop=loop,
            counters=self.counters,
            options=options,
            log=world.log,
        )
        self._adopt(topology)

    def _new_coordinator(self, topology: Topology) -> Coordinator:
        coordinator = Coordinator(
            number=self.number,
            topology=topology,
            replica=self._replica,
            links=self._links,
            versions_clock=self._versions,
            ceiling=Ceiling(store=self._store, turn=self._turn),
            guard=self._guard,
            clock=self._world.clock,
            deadlines=self._deadlines,
            dice=self._world.dice,
            loop=self._loop,
            counters=self.counters,
            options=self.options,
        )
        coordinator.refusing = "it is starting"
        return coordinator

    def _new_service(self) -> Service:
        scanner = Scanner(
            number=self.number, store=self._store, links=self._links, now=self._coordinator.trusted_now
        )
        verbs = Verbs(
            number=self.number,
            coordinator=self._coordinator,
            scanner=scanner,
            clock=self._world.clock,
            spawn=self._spawn,
            options=self.options,
            bug=self._bug,
        )
        return Service(
            coordinator=self._coordinator,
            verbs=verbs,
            greeting=self._greeting,
            status=self.status,
            clock=self._world.clock,
            turn=self._turn,
            loop=self._loop,
            counters=self.counters,
            options=self.options,
            log=self._log,
        )

    # --- life ---------------------------------------------------------------------------

    async def serve(self) -> None:
        """Run until `stop` is called or the log fails. Raises errors.PortInUse, errors.Crashed."""
        servers: list[asyncio.Server] = []
        try:
            servers = await self._listen()
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                standing = [tasks.create_task(part) for part in self._standing_parts()]
                await self._until_clock_is_past()
                self.state = State.READY
                self._coordinator.refusing = ""
                self._log.info("ready", client=self.info.client_port, peer=self.info.peer_port)
                self.started.set()
                await self._stopping.wait()
                if self._failure is None:
                    await self._drain(servers)
                for part in standing:
                    part.cancel()
        finally:
            self._tasks = None
            for server in servers:
                server.close()
            for stream in [*self._service.streams.values(), *self._peer_service.streams.values()]:
                stream.close()
            for link in self._links.values():
                link.shut("this node stops")
            if self._failure is None:
                self._store.close()
        if self._failure is not None:
            raise errors.Crashed(reason=f"the log cannot be written: {self._failure}")
        self._log.info("stopped")

    def stop(self) -> None:
        """Begin the orderly end; `serve` returns when it is done."""
        self._stopping.set()

    def storage_failed(self, failure: BaseException) -> None:
        """The store calls this when its log failed: nothing may be acknowledged from now on."""
        self._failure = failure
        self.state = State.FAILED
        self._coordinator.refusing = "its log failed"
        self._log.critical("log_failed", error=str(failure))
        self._stopping.set()

    def _standing_parts(self) -> list[Coroutine[Any, Any, None]]:
        keepers = [
            Keeper(
                link=link,
                hello=self._peer_hello,
                expected_uuid=link.info.uuid,
                cluster_id=self._coordinator.topology.cluster_id,
                local_host=self.options.listen_host,
                clock=self._world.clock,
                guard=self._guard,
                dice=self._world.dice,
                on_epoch=self._on_peer_epoch,
                log=self._log,
            ).keep()
            for link in self._links.values()
        ]
        return [*keepers, self._keep_deadlines(), self._keep_expiry(), self._keep_sweeping()]

    async def _listen(self) -> list[asyncio.Server]:
        servers: list[asyncio.Server] = []
        host = self.options.listen_host
        for protocol, port in (
            (self._service.protocol, self.options.client_port),
            (self._peer_service.protocol, self.options.peer_port),
        ):
            try:
                servers.append(await self._loop.create_server(protocol, host, port))
            except OSError as error:
                for server in servers:
                    server.close()
                if error.errno in _IN_USE:
                    raise errors.PortInUse(address=f"{host}:{port}") from None
                raise errors.ConfigInvalid(
                    where=f"listen address {host}:{port}",
                    problem=error.strerror or str(error),
                    hint="listen_host must be an address of this machine",
                ) from None
        return servers

    async def _until_clock_is_past(self) -> None:
        """Wait until versions can be issued above everything issued before the restart."""
        drift = self.options.drift_ms_max
        for _ in range(STEP_MS // 10):
            if versions.millis_of(self._versions.last) <= self._world.clock.wall_ms() + drift:
                return
            await asyncio.sleep(0.01)
        self._log.warning(
            "clock_behind_log",
            behind_ms=versions.millis_of(self._versions.last) - self._world.clock.wall_ms(),
            effect="writes through this node are refused until the clock has caught up",
        )

    async def _drain(self, servers: list[asyncio.Server]) -> None:
        self.state = State.DRAINING
        self._coordinator.refusing = "it is stopping"
        self._log.info("draining", in_flight=self._coordinator.in_flight)
        for server in servers:
            server.close()
        until = self._loop.time() + self.options.drain_ms / 1000
        while self._coordinator.in_flight and self._loop.time() < until:  # noqa: ASYNC110  once in a life
            await asyncio.sleep(STEP_S)
        await asyncio.sleep(0)  # the last answers leave with the turn

    async def _keep_deadlines(self) -> None:
        while True:
            await asyncio.sleep(STEP_S)
            self._deadlines.advance(self._loop.time())

    async def _keep_expiry(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL_S)
            now_ms = self._world.clock.wall_ms()
            self._guard.reading(now_ms, self._world.clock.monotonic())
            # A clock a day ahead would drop what is still alive: such a node only syncs and flushes.
            trusted = self._guard.verdict() is None and (not self._links or self._guard.knows_peers)
            self.counters.expired += self._store.tick(now_ms, expire=trusted)

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self._guard.reading(self._world.clock.wall_ms(), self._world.clock.monotonic())
            now = self._loop.time()
            for stream in [*self._service.streams.values(), *self._peer_service.streams.values()]:
                if stream.overdue(now):
                    stream.close("no hello, or half a message, for too long")

    def _spawn(self, steps: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            steps.close()
            return
        self._tasks.create_task(steps)

    def _bug(self, where: str, error: Exception) -> None:
        self._log.error("bug", where=where, exc_info=error)

    # --- topology -----------------------------------------------------------------------

    def _adopt(self, topology: Topology) -> None:
        self._replica.adopt(topology)
        self._coordinator.topology = topology
        self._peer_service.adopt(topology)
        for link in self._links.values():
            link.epoch = topology.epoch
            link.info = topology.node(link.number)

    def _on_peer_epoch(self, link: Link, epoch: int) -> None:
        """A peer knows a newer topology: it was changed while we were away. Fetch it."""
        if epoch <= self._coordinator.topology.epoch:
            return

        def replied(error: Any, result: Any) -> None:
            if error is None:
                newer = Topology.from_plain(result)
                ours = self._coordinator.topology
                if newer.cluster_id == ours.cluster_id and newer.epoch > ours.epoch:
                    self._log.info("topology_adopted", epoch=newer.epoch, source=link.info.name)
                    self._adopt(newer)

        link.call("topology", [], replied)

    # --- what we say of ourselves -------------------------------------------------------

    def _greeting(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "cluster": self._coordinator.topology.cluster_id,
            "node": self.number,
            "uuid": self.info.uuid,
            "name": self.info.name,
            "epoch": self._coordinator.topology.epoch,
            "server": SERVER,
            "features": [],
            "wall_ms": self._world.clock.wall_ms(),
            "limits": {
                "value_bytes_max": self.options.value_bytes_max,
                "key_bytes_max": limits.KEY_BYTES_MAX,
                "batch_keys_max": limits.BATCH_KEYS_MAX,
                "scan_limit_max": limits.SCAN_LIMIT_MAX,
            },
        }

    def _peer_hello(self) -> dict[str, Any]:
        return {
            "protocol": [PROTOCOL, PROTOCOL],
            "cluster": self._coordinator.topology.cluster_id,
            "node": self.number,
            "uuid": self.info.uuid,
            "epoch": self._coordinator.topology.epoch,
            "token": self.options.peer_token,
            "wall_ms": self._world.clock.wall_ms(),
        }

    def status(self) -> dict[str, Any]:
        """Everything `kv status` shows of this node."""
        stats = self._store.stats()
        return {
            "node": self.number,
            "name": self.info.name,
            "server": SERVER,
            "state": self.state.value,
            "epoch": self._coordinator.topology.epoch,
            "cluster": self._coordinator.topology.cluster_id,
            "uptime_s": round(self._loop.time() - self._begun_at, 3),
            "wall_ms": self._world.clock.wall_ms(),
            "clock_off_ms": self._guard.verdict(),
            "connections": len(self._service.streams),
            "in_flight": self._coordinator.in_flight,
            "peers": {
                link.info.name: {"up": link.up, "reason": link.reason} for link in self._links.values()
            },
            "storage": asdict(stats),
            "counters": self.counters.plain(),
        }
