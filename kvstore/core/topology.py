"""Who is in the cluster and who owns what: an explicit, versioned, immutable value.

Nobody derives ownership from gossip or from a hash at run time; the table says it (DESIGN 4). A
change makes a new topology with the next epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kvstore import errors, limits
from kvstore.core import ring
from kvstore.core.hashing import slot_of
from kvstore.core.member import NodeInfo
from kvstore.core.placement import place
from kvstore.types import Epoch, NodeId, Partition

__all__ = ["NodeInfo", "Topology"]
VOTERS = 5


@dataclass(frozen=True, slots=True)
class Topology:
    """Members and owners at one epoch. `owners[p]` is the preference list of partition p."""

    cluster_id: str
    epoch: Epoch
    replicas: int
    nodes: tuple[NodeInfo, ...]
    owners: tuple[tuple[NodeId, ...], ...]
    voters: tuple[NodeId, ...]
    partitions: int = field(init=False)
    """Q, the number of partitions."""
    _by_number: Mapping[int, NodeInfo] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "partitions", len(self.owners))
        object.__setattr__(self, "_by_number", {node.number: node for node in self.nodes})

    @classmethod
    def create(
        cls,
        cluster_id: str,
        nodes: Sequence[NodeInfo],
        *,
        partitions: int = limits.PARTITIONS,
        replicas: int = limits.REPLICAS,
    ) -> Topology:
        """The first topology of a cluster. Raises errors.BadOption."""
        ring.check_partitions(partitions)
        members = tuple(sorted(nodes, key=lambda node: node.number))
        placed = place(members, partitions=partitions, replicas=replicas)
        voters = tuple(node.number for node in members[:VOTERS])
        return cls(cluster_id, Epoch(1), replicas, members, placed.owners, voters)

    @property
    def copies(self) -> int:
        """Replicas a key really has: `replicas`, or as many as there are nodes."""
        return min(self.replicas, len(self.nodes))

    def partition(self, key: bytes) -> Partition:
        """The partition that holds a key."""
        return Partition(slot_of(key) * self.partitions >> 14)

    def preference(self, key: bytes) -> tuple[NodeId, ...]:
        """The key's owners, in order."""
        return self.owners[slot_of(key) * self.partitions >> 14]

    def owners_of(self, partition: int) -> tuple[NodeId, ...]:
        """A partition's owners, in order."""
        return self.owners[partition]

    def node(self, number: int) -> NodeInfo:
        """A member by its number. Raises KeyError."""
        return self._by_number[number]

    def with_addresses(self, addresses: Mapping[NodeId, tuple[str, int, int]]) -> Topology:
        """The same cluster at other addresses: (host, client port, peer port). Owners stay."""
        moved = tuple(
            replace(node, host=at[0], client_port=at[1], peer_port=at[2])
            if (at := addresses.get(node.number))
            else node
            for node in self.nodes
        )
        return Topology(
            self.cluster_id, Epoch(self.epoch + 1), self.replicas, moved, self.owners, self.voters
        )

    def to_plain(self) -> dict[str, Any]:
        """As maps and lists, for JSON and MessagePack."""
        return {
            "cluster_id": self.cluster_id,
            "epoch": self.epoch,
            "replicas": self.replicas,
            "nodes": [asdict(node) for node in self.nodes],
            "owners": [list(owners) for owners in self.owners],
            "voters": list(self.voters),
        }

    @classmethod
    def from_plain(cls, plain: Any) -> Topology:
        """Back from maps and lists. Raises errors.Malformed for anything that is not a whole topology."""
        try:
            nodes = tuple(
                NodeInfo(
                    NodeId(_int(node["number"], 0, limits.NODES_MAX - 1)),
                    _text(node["uuid"]),
                    _text(node["name"]),
                    _text(node["host"]),
                    _int(node["client_port"], 0, 65_535),
                    _int(node["peer_port"], 0, 65_535),
                    _text(node.get("zone", "")),
                    _int(node.get("weight", 1), 1, 1_000),
                )
                for node in plain["nodes"]
            )
            numbers = {node.number for node in nodes}
            owners = tuple(
                tuple(NodeId(_int(n, 0, limits.NODES_MAX - 1)) for n in row) for row in plain["owners"]
            )
            ring.check_partitions(len(owners))
            whole = len(numbers) == len(nodes) and all(
                row and len(set(row)) == len(row) and numbers.issuperset(row) for row in owners
            )
            voters = tuple(NodeId(_int(n, 0, limits.NODES_MAX - 1)) for n in plain["voters"])
            if not whole or not numbers.issuperset(voters):
                raise ValueError("it names a node twice, or one that it does not list")  # noqa: TRY301
            replicas = _int(plain["replicas"], 1, limits.REPLICAS_MAX)
            return cls(
                _text(plain["cluster_id"]),
                Epoch(_int(plain["epoch"], 1, 1 << 62)),
                replicas,
                nodes,
                owners,
                voters,
            )
        except (KeyError, TypeError, ValueError, AttributeError, errors.BadOption) as error:
            raise errors.Malformed(reason=f"not a topology: {error}") from None


def _int(value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{value!r} is not a number from {low} to {high}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
