"""A new cluster's folders: every node gets its identity and the topology before any starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jepsen_lite.targets.target import NodeAt
from kvstore.core.topology import NodeInfo, Topology
from kvstore.io.disk import SystemFiles
from kvstore.io.entropy import system_dice
from kvstore.storage import identity
from kvstore.types import NodeId

PARTITIONS = 64


def found(directory: Path, nodes: Sequence[NodeAt], *, replicas: int) -> None:
    """Write them. Raises the DataDir errors."""
    files, dice = SystemFiles(), system_dice()
    cluster = dice.randbytes(16).hex()
    known = [
        identity.load_or_create(
            files, str(directory / node.name), dice=dice, cluster_id=cluster, node=NodeId(node.number)
        )
        for node in nodes
    ]
    infos = [
        NodeInfo(each.node, each.node_uuid, node.name, node.advertised, node.client_port, node.peer_port)
        for each, node in zip(known, nodes, strict=True)
    ]
    topology = Topology.create(cluster, infos, partitions=PARTITIONS, replicas=min(replicas, len(nodes)))
    for node in nodes:
        identity.save_topology(files, str(directory / node.name), topology)
