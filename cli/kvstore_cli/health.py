"""How the nodes of a cluster are, one by one and together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvstore import errors

if TYPE_CHECKING:
    from kvstore.client.client import Client
    from kvstore.core.topology import Topology

READY = "ready"
DOWN = "down"


@dataclass(slots=True)
class NodeHealth:
    """One node, as it answered or did not."""

    number: int
    name: str
    address: str
    status: dict[str, Any] = field(default_factory=dict[str, Any])
    reason: str = ""

    @property
    def state(self) -> str:
        """starting, ready, draining, failed, or down when it does not answer."""
        return str(self.status.get("state", DOWN))

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return self.state == READY

    def row(self) -> dict[str, Any]:
        """What `kv status` shows."""
        storage = self.status.get("storage", {})
        disk = sum(storage.get(name) or 0 for name in ("wal_bytes", "base_bytes"))
        return {
            "node": self.name,
            "state": self.state,
            "address": self.address,
            "keys": storage.get("keys"),
            "disk_bytes": disk if storage else None,
            "memory_bytes": storage.get("memtable_bytes"),
            "epoch": self.status.get("epoch"),
            "connections": self.status.get("connections"),
            "uptime_s": self.status.get("uptime_s"),
            "version": str(self.status.get("server", "")).removeprefix("kvstore/") or None,
            "reason": self.reason or _complaint(self.status),
        }


def _complaint(status: dict[str, Any], known_down: frozenset[str] = frozenset()) -> str:
    """What a node that answers is not happy with, beyond what is known anyway."""
    said = []
    if status.get("clock_off_ms") is not None:
        said.append(f"its clock is {status['clock_off_ms']} ms off, writes through it are refused")
    storage = status.get("storage", {})
    if storage.get("full"):
        said.append("its disk is full, client writes are refused")
    if storage.get("conflicts"):
        said.append(f"{storage['conflicts']} records of equal version and different content")
    peers = status.get("peers") or {}
    lost = sorted(name for name, peer in peers.items() if not peer.get("up") and name not in known_down)
    if lost:
        said.append(f"cannot reach {', '.join(lost)}")
    return "; ".join(said)


async def examine(kv: Client, topology: Topology, *, timeout_s: float) -> list[NodeHealth]:
    """Ask every node, all at once."""
    found = [NodeHealth(node.number, node.name, f"{node.host}:{node.client_port}") for node in topology.nodes]

    async def ask(one: NodeHealth) -> None:
        try:
            one.status = await kv.status(one.address, timeout=timeout_s)
        except errors.KVError as error:
            one.reason = str(error.fields.get("reason") or error.message)

    async with asyncio.TaskGroup() as group:
        for one in found:
            group.create_task(ask(one))
    return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """The cluster as a whole."""

    healthy: bool
    sentence: str


def verdict(topology: Topology, nodes: Sequence[NodeHealth]) -> Verdict:
    """Whether all is well; if not, whether every key still has its quorum."""
    ready = {node.number for node in nodes if node.is_ready}
    down = frozenset(node.name for node in nodes if not node.is_ready)
    epochs = {node.status.get("epoch") for node in nodes if node.is_ready}
    majority = topology.copies // 2 + 1
    short = sum(sum(number in ready for number in owners) < majority for owners in topology.owners)
    head = f"{len(ready)} of {len(nodes)} nodes are ready"
    complaints = [
        f"{node.name}: {text}" for node in nodes if node.is_ready and (text := _complaint(node.status, down))
    ]
    if len(ready) == len(nodes) and len(epochs) == 1 and not complaints:
        return Verdict(
            healthy=True, sentence=f"{head}, all at epoch {topology.epoch}; every key has its quorum"
        )
    if short == 0:
        keys = "every key still has its quorum, so reads and writes go on"
    else:
        keys = f"{short} of {len(topology.owners)} partitions have no quorum: their reads and writes fail"
    parts = [head, keys]
    if len(epochs) > 1:
        parts.append(f"they are at different epochs ({', '.join(str(e) for e in sorted(map(str, epochs)))})")
    return Verdict(healthy=False, sentence="; ".join([*parts, *complaints]))
