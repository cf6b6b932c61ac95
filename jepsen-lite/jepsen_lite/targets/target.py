"""What a run needs of the place it happens in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jepsen_lite.nemesis import Fault

ABOUT: Mapping[str, str] = {
    "sim": "the whole cluster in one process on simulated time; the seed decides everything",
    "processes": "node processes on loopback addresses of their own, links cut by nftables or a proxy",
    "docker": "containers with a network each, cut inside of them; without an engine as netns, and says so",
    "netns": "node processes with a network namespace each: the faults of docker, without an engine",
}

CLIENT_PORT, PEER_PORT = 7401, 7501
BUGS = ("Traceback (most recent call last)", "AssertionError", "Task exception was never retrieved")
"""What no log may say."""


class TargetError(Exception):
    """A target that cannot be used here: one line that says why, and what to do."""


@dataclass(frozen=True, slots=True)
class NodeAt:
    """One node, and where clients find it."""

    number: int
    name: str
    host: str
    """Where it listens, and where its links to others leave from."""
    client_port: int
    peer_port: int
    advertised: str
    """What all others are told to connect to: the node, or the proxy in front of it."""

    @property
    def url(self) -> str:
        """For clients."""
        return f"kv://{self.advertised}:{self.client_port}"


class Cluster(Protocol):
    """A running cluster, and the faults that can be done to it."""

    @property
    def nodes(self) -> tuple[NodeAt, ...]:
        """All of them, by number."""
        ...

    @property
    def client_host(self) -> str:
        """Where clients connect from."""
        ...

    @property
    def missing(self) -> Mapping[str, str]:
        """Kinds of faults that cannot be done here, each with why and what to do."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report says of the place."""
        ...

    async def do(self, fault: Fault) -> None:
        """Begin a fault."""
        ...

    async def undo(self, fault: Fault) -> None:
        """End it."""
        ...

    async def heal(self) -> None:
        """End all faults; start what does not run."""
        ...

    async def stop(self) -> None:
        """End all nodes in order; their logs are whole then."""
        ...

    def complaints(self) -> list[str]:
        """What is wrong with the nodes that no fault explains: ended by themselves, bugs in their logs."""
        ...

    def log(self, node: NodeAt) -> Path:
        """The node's output."""
        ...
