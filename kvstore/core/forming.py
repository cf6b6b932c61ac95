"""Decide how nodes that know nothing but each other's addresses become one cluster.

Every new node lists who else is new (`seen`), pledges itself to the first of them once all are there, and
the first founds the cluster when everybody has pledged itself to it. Then the others find themselves in its
topology.

Rules kept here:
- nobody founds before the expected number of nodes is there, all new and all pledged to the same one;
- a pledge, once given, is kept, also over restarts: so two nodes cannot both have everybody's;
- who comes without data under the name of a member is not that member, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kvstore import errors
from kvstore.core.topology import NodeInfo, Topology
from kvstore.types import NodeId

FORMING = "forming"
"""Where a greeting has the newcomer; also the state of a node without a cluster."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A node without a cluster. `info.number` means nothing yet."""

    info: NodeInfo
    pledge: str = ""
    """The uuid of the node that may found its cluster; empty: undecided."""

    def to_plain(self) -> dict[str, Any]:
        """As maps, for the greeting."""
        return {"info": asdict(self.info), "pledge": self.pledge}

    @classmethod
    def from_plain(cls, plain: Any) -> Newcomer:
        """Back from maps. Raises errors.Malformed."""
        match plain:
            case {
                "info": {
                    "uuid": str(uuid),
                    "name": str(name),
                    "host": str(host),
                    "client_port": int(client_port),
                    "peer_port": int(peer_port),
                    "zone": str(zone),
                },
                "pledge": str(pledge),
            }:
                return cls(NodeInfo(NodeId(0), uuid, name, host, client_port, peer_port, zone), pledge)
            case _:
                raise errors.Malformed(reason="not a newcomer")


def _in_order(everybody: Mapping[str, Newcomer]) -> list[Newcomer]:
    """By name, kv-2 before kv-10."""
    return sorted(everybody.values(), key=lambda each: (len(each.info.name), each.info.name, each.info.uuid))


def everybody(me: Newcomer, seen: Sequence[Newcomer], expected: int) -> list[Newcomer]:
    """All newcomers, ourselves among them, in order. Raises errors.ConfigInvalid for one too many."""
    found = _in_order({each.info.uuid: each for each in (*seen, me)})
    names = [each.info.name for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise errors.ConfigInvalid(
            where="advertise_host",
            problem=f"two new nodes are called {twice[0]}",
            hint="give each machine its own host name; identical configuration needs nothing else",
        )
    if len(found) > expected:
        raise errors.ConfigInvalid(
            where="cluster_nodes",
            problem=f"{len(found)} new nodes ({', '.join(names)}) want to found a cluster of {expected}",
            hint=f"start {expected}, or set cluster_nodes = {len(found)} on all of them",
        )
    return found


def pledged(me: Newcomer, seen: Sequence[Newcomer], expected: int) -> Newcomer:
    """Ourselves, with a pledge as soon as everybody is there. Raises as `everybody`."""
    found = everybody(me, seen, expected)
    if me.pledge or len(found) < expected:
        return me
    return replace(me, pledge=found[0].info.uuid)


def founders(me: Newcomer, seen: Sequence[Newcomer], expected: int) -> list[NodeInfo] | None:
    """The members of the cluster that we have to found now, numbered; None: it is not, or not yet, for us."""
    found = everybody(me, seen, expected)
    if len(found) < expected or any(each.pledge != me.info.uuid for each in found):
        return None
    return [replace(each.info, number=NodeId(number)) for number, each in enumerate(found, 1)]


def look_around(
    me: Newcomer, found: Sequence[Newcomer | Topology], expected: int, directory: str
) -> Topology | list[NodeInfo] | Newcomer:
    """What follows from what is found: our cluster, members to found it with, or ourselves, perhaps pledged.

    Raises errors.ConfigInvalid, errors.DataDirForeign.
    """
    topology = the_cluster([each for each in found if isinstance(each, Topology)])
    if topology is not None:
        place_in(topology, me.info, directory)
        return topology
    seen = [each for each in found if isinstance(each, Newcomer)]
    members = founders(me, seen, expected)
    return pledged(me, seen, expected) if members is None else members


def waits_for(me: Newcomer, seen: Sequence[Newcomer], expected: int) -> str:
    """What has to happen next, for people. Raises as `everybody`."""
    there = everybody(me, seen, expected)
    missing = expected - len(there)
    if missing > 0:
        names = ", ".join(each.info.name for each in there)
        return f"{missing} more nodes ({names} of {expected} are here)"
    chosen = next((each.info.name for each in there if each.info.uuid == me.pledge), None)
    if chosen is None:
        return (
            f"node {me.pledge}, which it left the founding to and which is not here; if the data of that one "
            "is gone for good, empty this node's directory: it holds nothing yet"
        )
    return f"{chosen}, which founds the cluster when all of {expected} ask it to"


def the_cluster(found: Sequence[Topology]) -> Topology | None:
    """The cluster that the seeds are members of, as its newest member knows it; None: there is none yet.

    Raises errors.ConfigInvalid for more than one.
    """
    names = sorted({each.cluster_id for each in found})
    if len(names) > 1:
        raise errors.ConfigInvalid(
            where="seeds",
            problem=f"they are members of different clusters ({', '.join(names)})",
            hint="name nodes of one cluster",
        )
    return max(found, key=lambda each: each.epoch, default=None)


def place_in(topology: Topology, me: NodeInfo, directory: str) -> NodeInfo:
    """Which member of an existing cluster we are. Raises errors.DataDirForeign, errors.ConfigInvalid."""
    for node in topology.nodes:
        if node.uuid == me.uuid:
            return node
    for node in topology.nodes:
        if node.name == me.name or (node.host, node.client_port) == (me.host, me.client_port):
            raise errors.DataDirForeign(
                path=directory,
                found=f"a new node ({me.uuid})",
                expected=f"{node.name}, node {node.number} ({node.uuid}) of cluster {topology.cluster_id}, "
                "whose data is not here",
            )
    members = ", ".join(node.name for node in topology.nodes)
    raise errors.ConfigInvalid(
        where="seeds",
        problem=f"cluster {topology.cluster_id} has its members ({members}); {me.name} is none of them",
        hint="this version cannot add nodes: stop this one, or found a cluster of its own with other seeds",
    )
