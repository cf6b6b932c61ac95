"""Whose data directory this is, and that only one node uses it.

    DIR/lock            held by the node that runs
    DIR/identity.json   {"format": 1, "cluster": ..., "uuid": ..., "node": ..., "secret": ...}
    DIR/topology.json   the last topology the node adopted
    DIR/wal/            the log
    DIR/base/           the base store

Rules kept here:
- a directory belongs to one node of one cluster for ever; another one is refused, not adopted;
- a format that this version does not know is refused before anything is touched;
- what the operating system says about a directory that cannot be used reaches the user as one
  sentence with the path in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kvstore import errors, limits
from kvstore.core.topology import Topology
from kvstore.ports import Dice, Files
from kvstore.types import NodeId

FORMAT = 1
_HEX = re.compile("([0-9a-f]{2})*")
IDENTITY_FILE = "identity.json"
TOPOLOGY_FILE = "topology.json"
LOCK_FILE = "lock"
WAL_DIR = "wal"
BASE_DIR = "base"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is. Made once, at its first start."""

    cluster_id: str
    node_uuid: str
    node: NodeId
    secret: str = ""
    """Hex; the salts of the log are made of it, so that no client can foresee them. Stays here."""

    def __str__(self) -> str:
        return f"node {self.node} ({self.node_uuid}) of cluster {self.cluster_id}"


@contextmanager
def usable(directory: str) -> Iterator[None]:
    """Turn what the operating system objects into DataDirUnusable."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        path = error.filename if isinstance(error.filename, str) else directory
        raise errors.DataDirUnusable(path=path, reason=reason[:1].lower() + reason[1:]) from error


def lock(files: Files, directory: str) -> Callable[[], None]:
    """Make the directory if needed and take it; returns its release. Raises DataDirInUse."""
    with usable(directory):
        files.make_dir(directory)
        release = files.lock(f"{directory}/{LOCK_FILE}")
    if release is None:
        raise errors.DataDirInUse(path=directory)
    return release


def load(files: Files, directory: str) -> Identity | None:
    """The identity kept in a directory; None when there is none yet."""
    path = f"{directory}/{IDENTITY_FILE}"
    with usable(directory):
        if not files.exists(path):
            return None
        data = files.read(path)
    try:
        plain = json.loads(data)
        written = plain["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise errors.DataDirUnusable(path=path, reason="it is not an identity file") from error
    if written != FORMAT:
        raise errors.DataDirFormat(path=directory, found=written, supported=FORMAT)
    return _from_plain(path, plain)


def _from_plain(path: str, plain: dict[str, Any]) -> Identity:
    match plain:
        case {"cluster": str(cluster), "uuid": str(uuid), "node": int(node), "secret": str(secret)} if (
            0 <= node < limits.NODES_MAX and _HEX.fullmatch(secret)
        ):
            return Identity(cluster, uuid, NodeId(node), secret)
        case _:
            raise errors.DataDirUnusable(path=path, reason="a field of the identity is missing or wrong")


def save(files: Files, directory: str, identity: Identity) -> None:
    """Write the identity of a new directory."""
    plain = {
        "format": FORMAT,
        "cluster": identity.cluster_id,
        "uuid": identity.node_uuid,
        "node": identity.node,
        "secret": identity.secret,
    }
    with usable(directory):
        files.write_atomic(f"{directory}/{IDENTITY_FILE}", json.dumps(plain, indent=1).encode() + b"\n")


def load_or_create(
    files: Files, directory: str, *, dice: Dice, cluster_id: str | None = None, node: NodeId | None = None
) -> Identity:
    """The directory's identity, made now if there is none.

    `cluster_id` and `node`, where given, must be the directory's. A new directory without them gets
    a new cluster's id and number 0. Raises DataDirInUse, DataDirForeign, DataDirFormat, DataDirUnusable.
    """
    release = lock(files, directory)
    try:
        found = load(files, directory)
        if found is None:
            found = Identity(
                cluster_id if cluster_id is not None else dice.randbytes(16).hex(),
                dice.randbytes(16).hex(),
                node if node is not None else NodeId(0),
                dice.randbytes(16).hex(),
            )
            save(files, directory, found)
            return found
    finally:
        release()
    expected = (
        cluster_id if cluster_id is not None else found.cluster_id,
        node if node is not None else found.node,
    )
    if expected != (found.cluster_id, found.node):
        raise errors.DataDirForeign(
            path=directory, expected=f"node {expected[1]} of cluster {expected[0]}", found=str(found)
        )
    return found


def check(files: Files, directory: str, identity: Identity) -> Identity:
    """The identity as the directory has it, if it is this one; a new directory takes it on."""
    found = load(files, directory)
    if found is None:
        save(files, directory, identity)
        return identity
    theirs = (found.cluster_id, found.node_uuid, found.node)
    if theirs != (identity.cluster_id, identity.node_uuid, identity.node):
        raise errors.DataDirForeign(path=directory, expected=str(identity), found=str(found))
    return found


def save_topology(files: Files, directory: str, topology: Topology) -> None:
    """Keep the topology for the next start."""
    with usable(directory):
        data = json.dumps(topology.to_plain(), separators=(",", ":")).encode()
        files.write_atomic(f"{directory}/{TOPOLOGY_FILE}", data)


def load_topology(files: Files, directory: str) -> Topology | None:
    """The topology kept by `save_topology`; None when there is none."""
    path = f"{directory}/{TOPOLOGY_FILE}"
    with usable(directory):
        if not files.exists(path):
            return None
        data = files.read(path)
    try:
        return Topology.from_plain(json.loads(data))
    except (ValueError, errors.Malformed) as error:
        raise errors.DataDirUnusable(path=path, reason=f"it is not a topology: {error}") from error
