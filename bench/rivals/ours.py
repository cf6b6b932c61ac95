"""Our own nodes, asked as our client asks them: each key's first owner."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kvstore.client.connection import Connection
from kvstore.core.topology import Topology
from kvstore_cli.bench_load import OnReply
from kvstore_cli.bench_worker import ask


class RoutedChannel:
    """One connection to every node; a call goes to the first owner of its key."""

    def __init__(self, topology: Topology, connections: dict[int, Connection]) -> None:
        self._topology = topology
        self._connections = connections
        self._any = next(iter(connections.values()))

    def send(self, method: str, params: Sequence[Any], on_reply: OnReply) -> None:
        """Send to the owner; calls of many keys go to any node."""
        key = params[0]
        if not isinstance(key, bytes):
            self._any.send(method, params, on_reply)
            return
        self._connections[self._topology.preference(key)[0]].send(method, params, on_reply)

    def close(self) -> None:
        """Let go of them."""
        for connection in self._connections.values():
            connection.close()


async def connect_routed(address: str, token: str) -> RoutedChannel:
    """Learn the topology from one node and connect to all."""
    first = await Connection.open(address, token=token)
    topology = Topology.from_plain(await ask(first, "topology", ()))
    first.close()
    nodes = topology.nodes
    opened = await asyncio.gather(  # noqa: TID251  the first failure ends the generator
        *(Connection.open(f"{node.host}:{node.client_port}", token=token) for node in nodes)
    )
    return RoutedChannel(topology, {int(n.number): c for n, c in zip(nodes, opened, strict=True)})
