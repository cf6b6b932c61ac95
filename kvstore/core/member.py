"""One member of a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.types import NodeId


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One member. `uuid` is who it is, the addresses are where it is now."""

    number: NodeId
    uuid: str
    name: str
    host: str
    client_port: int
    peer_port: int
    zone: str = ""
    weight: int = 1
