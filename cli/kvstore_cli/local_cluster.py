"""A cluster on this machine: `cluster.json`, and a folder for each node.

    DIR/cluster.json      cluster id, ports, nodes
    DIR/up.lock           held by the `kv up` that looks after the nodes
    DIR/up.json           that process
    DIR/nK/               data of node K; node.log, node.json (its process)

Rules kept here:
- nothing is removed that `cluster.json` does not name;
- every node's folder gets its identity and topology before any node starts, so that all know each
  other from the first moment.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvstore import errors
from kvstore.core.topology import NodeInfo, Topology
from kvstore.io.disk import SystemFiles
from kvstore.io.entropy import system_dice
from kvstore.storage import identity as identities
from kvstore.types import NodeId
from kvstore_cli.problems import NoCluster, UsageProblem
from kvstore_cli.processes import ProcessMark, load_mark
from kvstore_cli.settings import CLUSTER_FILE

FORMAT = 1
PEER_PORT_SHIFT = 100
"""A node's port for peers is this far above the one for clients."""
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the cluster."""

    number: int
    name: str
    host: str
    client_port: int
    peer_port: int

    @property
    def address(self) -> str:
        """Where clients find it."""
        return f"{self.host}:{self.client_port}"


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """What `cluster.json` says."""

    directory: Path
    cluster_id: str
    base_port: int
    replicas: int
    members: tuple[Member, ...]

    @property
    def copies(self) -> int:
        """Nodes that hold each key."""
        return min(self.replicas, len(self.members))

    @property
    def url(self) -> str:
        """Of all nodes, so that any may be down."""
        return "kv://" + ",".join(member.address for member in self.members)

    def folder(self, member: Member) -> Path:
        """A node's data directory."""
        return self.directory / member.name

    def log(self, member: Member) -> Path:
        """Where a node's output goes."""
        return self.folder(member) / "node.log"

    def mark_file(self, member: Member) -> Path:
        """Where a node's process is noted."""
        return self.folder(member) / "node.json"

    def process(self, member: Member) -> ProcessMark | None:
        """The node's process, if it runs."""
        mark = load_mark(self.mark_file(member))
        return mark if mark is not None and mark.is_alive() else None

    def supervisor(self) -> ProcessMark | None:
        """The `kv up` that looks after the nodes, if one does."""
        mark = load_mark(self.directory / "up.json")
        return mark if mark is not None and mark.is_alive() else None

    def running(self) -> list[Member]:
        """The nodes that run."""
        return [member for member in self.members if self.process(member) is not None]

    def save(self) -> None:
        """Write `cluster.json`."""
        plain = {
            "format": FORMAT,
            "cluster": self.cluster_id,
            "base_port": self.base_port,
            "replicas": self.replicas,
            "nodes": [
                {
                    "number": m.number,
                    "name": m.name,
                    "host": m.host,
                    "client_port": m.client_port,
                    "peer_port": m.peer_port,
                }
                for m in self.members
            ],
        }
        text = json.dumps(plain, indent=2) + "\n"
        SystemFiles().write_atomic(str(self.directory / CLUSTER_FILE), text.encode())


def members_at(base_port: int, count: int) -> tuple[Member, ...]:
    """The nodes of a cluster on ports from `base_port` on. Raises UsageProblem."""
    last = base_port + count - 1 + PEER_PORT_SHIFT
    if count > PEER_PORT_SHIFT or base_port < 1 or last > 65_535:
        raise UsageProblem(
            problem=f"{count} nodes from port {base_port} would need ports up to {last}",
            hint="--base-port 7401",
        )
    return tuple(
        Member(i + 1, f"n{i + 1}", HOST, base_port + i, base_port + i + PEER_PORT_SHIFT) for i in range(count)
    )


def load_cluster(directory: Path) -> LocalCluster:
    """The cluster in a directory. Raises NoCluster, DataDirFormat, DataDirUnusable."""
    path = directory / CLUSTER_FILE
    try:
        plain = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NoCluster(directory=str(directory)) from None
    except OSError as error:
        raise errors.DataDirUnusable(path=str(path), reason=error.strerror or str(error)) from None
    except ValueError:
        raise errors.DataDirUnusable(path=str(path), reason="it is not JSON") from None
    try:
        if plain["format"] != FORMAT:
            raise errors.DataDirFormat(path=str(path), found=plain["format"], supported=FORMAT)
        return LocalCluster(
            directory,
            str(plain["cluster"]),
            int(plain["base_port"]),
            int(plain["replicas"]),
            tuple(_member(m) for m in plain["nodes"]),
        )
    except (KeyError, TypeError, ValueError):
        raise errors.DataDirUnusable(path=str(path), reason="a field is missing or wrong") from None


def _member(plain: dict[str, Any]) -> Member:
    return Member(
        int(plain["number"]),
        str(plain["name"]),
        str(plain["host"]),
        int(plain["client_port"]),
        int(plain["peer_port"]),
    )


def found(directory: Path, *, count: int, base_port: int, replicas: int, partitions: int) -> LocalCluster:
    """Make a new cluster: folders, identities and one topology for all.

    A start that was interrupted before `cluster.json` was written is picked up where it ended.
    Raises the DataDir errors.
    """
    members = members_at(base_port, count)
    files, dice = SystemFiles(), system_dice()
    with identities.usable(str(directory)):
        files.make_dir(str(directory))
    first = identities.load(files, str(directory / "n1")) if (directory / "n1").exists() else None
    cluster_id = first.cluster_id if first is not None else dice.randbytes(16).hex()
    known = [
        identities.load_or_create(
            files, str(directory / m.name), dice=dice, cluster_id=cluster_id, node=NodeId(m.number)
        )
        for m in members
    ]
    infos = [
        NodeInfo(identity.node, identity.node_uuid, m.name, m.host, m.client_port, m.peer_port)
        for identity, m in zip(known, members, strict=True)
    ]
    topology = Topology.create(cluster_id, infos, partitions=partitions, replicas=replicas)
    cluster = LocalCluster(directory, cluster_id, base_port, replicas, members)
    _spread(cluster, topology)
    cluster.save()
    return cluster


def moved(cluster: LocalCluster, base_port: int) -> LocalCluster:
    """The same cluster on other ports: a new epoch, written to every node before any starts."""
    members = members_at(base_port, len(cluster.members))
    newest = _newest_topology(cluster)
    topology = newest.with_addresses(
        {NodeId(m.number): (m.host, m.client_port, m.peer_port) for m in members}
    )
    other = replace(cluster, base_port=base_port, members=members)
    _spread(other, topology)
    other.save()
    return other


def _newest_topology(cluster: LocalCluster) -> Topology:
    files = SystemFiles()
    held = [identities.load_topology(files, str(cluster.folder(m))) for m in cluster.members]
    there = [topology for topology in held if topology is not None]
    if not there:
        folder = cluster.folder(cluster.members[0])
        raise errors.DataDirUnusable(path=str(folder), reason="it holds no topology")
    return max(there, key=lambda topology: topology.epoch)


def _spread(cluster: LocalCluster, topology: Topology) -> None:
    files = SystemFiles()
    for member in cluster.members:
        identities.save_topology(files, str(cluster.folder(member)), topology)


def erase(cluster: LocalCluster) -> None:
    """Remove the nodes' folders and `cluster.json`, and nothing else."""
    for member in cluster.members:
        if cluster.folder(member).is_dir():
            shutil.rmtree(cluster.folder(member))
    (cluster.directory / CLUSTER_FILE).unlink(missing_ok=True)


def check_ports(members: Sequence[Member]) -> None:
    """Raise errors.PortInUse for the first port that somebody else listens on."""
    for member in members:
        for port in (member.client_port, member.peer_port):
            with socket.socket() as probe:
                # As asyncio does: connections of the last run that still time out are no obstacle.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((member.host, port))
                    probe.listen(1)
                except OSError:
                    raise errors.PortInUse(address=f"{member.host}:{port}") from None
