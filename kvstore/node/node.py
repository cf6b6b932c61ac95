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
from dataclasses import asdict
from enum import Enum
from typing import Any

from kvstore import errors, limits
from kvstore.core import version as versions
from kvstore.core.topology import Topology
from kvstore.node.ceiling import STEP_MS
from kvstore.node.clocks import steady_ms
from kvstore.node.deadlines import STEP_S
from kvstore.node.keeper import Keeper
from kvstore.node.link import Link
from kvstore.node.metrics import Counters
from kvstore.node.options import NodeOptions
from kvstore.node.parts import Parts, Ways, World
from kvstore.storage.store import Store
from kvstore.types import Durability, NodeId

SERVER = "kvstore/0.1.0"
PROTOCOL = 1
_IN_USE = (errno.EADDRINUSE, errno.EACCES)
COMPARE_S = 1.0
"""How long after a start the clock waits to be compared with a peer's; alone for longer, it is believed."""
EXPIRY_INTERVAL_S = 0.1
SWEEP_INTERVAL_S = 1.0


class State(Enum):
    """Where in its life a node is."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    """Its peers know of more than it does: it serves nothing (DESIGN 6)."""


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
        self._spawned: dict[asyncio.Task[None], None] = {}
        """Requests of several steps; in order, so that they end in order."""
        self._begun_at = loop.time()
        parts = Parts(
            topology=topology,
            number=number,
            store=store,
            world=world,
            options=options,
            durability=durability,
            loop=loop,
            counters=self.counters,
            ways=Ways(
                spawn=self._spawn,
                bug=self._bug,
                greeting=self._greeting,
                peer_greeting=lambda: {**self._greeting(), "told": self._replica.told()},
                status=self.status,
            ),
        )
        self._deadlines = parts.deadlines
        self._guard = parts.guard
        self._witness = parts.witness
        self._versions = parts.versions
        self._replica = parts.replica
        self._links = parts.links
        self._coordinator = parts.coordinator
        self._proposers = parts.proposers
        self._service = parts.service
        self._peer_service = parts.peer_service
        self._adopt(topology)

    # --- life ---------------------------------------------------------------------------

    async def serve(self) -> None:
        """Run until `stop` is called or the log fails. Raises errors.PortInUse, errors.Crashed."""
        servers: list[asyncio.Server] = []
        try:
            servers = await self._listen()
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                standing = [tasks.create_task(part) for part in self._standing_parts()]
                if self._links:
                    self._coordinator.compare_until = self._world.clock.monotonic() + COMPARE_S
                await self._until_clock_is_past()
                if self.state is State.STARTING:
                    self.state = State.READY
                    self._coordinator.refusing = ""
                    self._log.info("ready", client=self.info.client_port, peer=self.info.peer_port)
                self.started.set()
                await self._stopping.wait()
                if self._failure is None:
                    await self._drain(servers)
                for part in [*standing, *self._spawned]:
                    part.cancel()
        finally:
            self._tasks = None
            self._proposers.close()
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
                witness=self._witness,
                told=self._replica.told,
                dice=self._world.dice,
                on_epoch=self._on_peer_epoch,
                on_amnesia=self._on_amnesia,
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
                stream.sweep(now)

    def _spawn(self, steps: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            steps.close()
            return
        task = self._tasks.create_task(steps)
        self._spawned[task] = None
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._spawned.pop(task, None)

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

    def _on_amnesia(self, error: errors.Amnesiac) -> None:
        """A peer knows that our data is older than what we had told it: what we would say may be wrong."""
        if self.state in (State.STARTING, State.READY):
            self.state = State.QUARANTINED
            self._coordinator.refusing = error.message
            self._peer_service.quarantine = error
            self._log.critical("quarantined", reason=error.message, remedy=error.remedy)

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
            "steady_ms": steady_ms(self._world.clock),
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
            "told": self._replica.told(),
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
