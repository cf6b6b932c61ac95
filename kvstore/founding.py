"""Make a new directory a member of the cluster that its seeds are, or will be. `core.forming` has the rules.

    DIR/identity.json   made first, without a cluster: the uuid that others know us by
    DIR/pledge          whom we left the founding to, before anybody hears of it
    DIR/topology.json   the cluster, as founded by us or found
    DIR/identity.json   again, with the cluster: from here on the directory is a member's

Rules kept here:
- each step is on the disk before the next begins and before it is shown, so that a crash between any two is
  continued by the next start: nobody pledges, or founds, twice;
- whoever founds tells nobody until it is settled itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from kvstore import errors
from kvstore.client.seeds import ask_seeds
from kvstore.config import NodeConfig
from kvstore.config.sections import seeds_in
from kvstore.core.forming import Newcomer, look_around, place_in
from kvstore.core.topology import NodeInfo, Topology
from kvstore.io.clock import SystemClock
from kvstore.io.disk import SystemFiles
from kvstore.io.entropy import system_dice
from kvstore.io.net import host_name
from kvstore.node.newcomer import NewcomerService
from kvstore.ports import Files
from kvstore.storage import identity as identities
from kvstore.types import NodeId

PLEDGE_FILE = "pledge"
_ASK_AGAIN_S = 0.1


def advertised(config: NodeConfig) -> str:
    """What others are told to connect to."""
    return host_name() if config.advertised == "auto" else config.advertised


def load_pledge(files: Files, directory: str) -> str:
    """The uuid that a directory's node pledged itself to; empty: it has not yet."""
    path = f"{directory}/{PLEDGE_FILE}"
    with identities.usable(directory):
        return files.read(path).decode(errors="replace").strip() if files.exists(path) else ""


def save_pledge(files: Files, directory: str, pledge: str) -> None:
    """Keep it, for ever."""
    with identities.usable(directory):
        files.write_atomic(f"{directory}/{PLEDGE_FILE}", pledge.encode() + b"\n")


async def find_cluster(config: NodeConfig, *, log: Any, stopping: asyncio.Event) -> bool:
    """Wait until the directory belongs to the cluster of the seeds; at once when it does already.

    False when told to stop before. Raises the StartError family: DataDirForeign when our place is taken
    by a node whose data we do not have, or the cluster is not the configured one; ConfigInvalid, PortInUse.
    """
    files, directory = SystemFiles(), config.node.data_dir
    identity = identities.load(files, directory) or identities.load_or_create(
        files, directory, dice=system_dice(), cluster_id="", node=NodeId(0)
    )
    topology = identities.load_topology(files, directory)
    if topology is None and identity.cluster_id:
        raise errors.DataDirUnusable(path=directory, reason=f"{identities.TOPOLOGY_FILE} is missing")
    me = _newcomer(config, identity, load_pledge(files, directory))
    if topology is None:
        topology = await _formed(config, me, log=log, stopping=stopping)
    if topology is None:
        return False
    if config.node.cluster_id not in ("", topology.cluster_id):
        raise errors.DataDirForeign(
            path=directory,
            expected=f"cluster {config.node.cluster_id}",
            found=f"cluster {topology.cluster_id}",
        )
    if not identity.cluster_id:
        number = place_in(topology, me.info, directory).number
        # The identity last: as long as it names no cluster, the next start comes back here.
        identities.save_topology(files, directory, topology)
        identities.save(files, directory, replace(identity, cluster_id=topology.cluster_id, node=number))
        log.info("cluster_found", cluster=topology.cluster_id, nodes=len(topology.nodes))
    return True


def _newcomer(config: NodeConfig, identity: identities.Identity, pledge: str) -> Newcomer:
    host = advertised(config)
    name = config.node.name or host.partition(".")[0]
    ports = (config.listen.client_port, config.listen.peer_port)
    return Newcomer(NodeInfo(NodeId(0), identity.node_uuid, name, host, *ports, config.cluster.zone), pledge)


async def _formed(config: NodeConfig, me: Newcomer, *, log: Any, stopping: asyncio.Event) -> Topology | None:
    """The cluster's topology with us in it, founded by whoever has to; None when told to stop."""
    seeds = seeds_in(config.cluster.seeds)
    expected = config.cluster.cluster_nodes or len(seeds)
    loop = asyncio.get_running_loop()
    service = NewcomerService(me=me, clock=SystemClock(), loop=loop, options=config.node_options(), log=log)
    port = config.listen.client_port
    try:
        server = await loop.create_server(service.protocol, config.listen.listen_host, port)
    except OSError as error:
        raise errors.PortInUse(address=f"{config.listen.listen_host}:{port}") from error
    log.info("forming", node=me.info.name, seeds=",".join(seeds), expected=expected)
    try:
        while not stopping.is_set():
            found = await ask_seeds(seeds, port=port, token=config.security.client_token)
            topology = _look(config, service, found, expected)
            if topology is not None:
                return topology
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _ASK_AGAIN_S)
        return None
    finally:
        server.close()
        service.close()


def _look(
    config: NodeConfig, service: NewcomerService, found: Sequence[Newcomer | Topology], expected: int
) -> Topology | None:
    """Draw from one look around what follows: the cluster, or a pledge, or nothing yet."""
    match look_around(service.me, found, expected, config.node.data_dir):
        case Topology() as topology:
            return topology
        case Newcomer() as me:
            if me != service.me:
                # On the disk before anybody can hear of it.
                save_pledge(SystemFiles(), config.node.data_dir, me.pledge)
                service.me = me
            service.see([each for each in found if isinstance(each, Newcomer)], expected)
            return None
        case members:
            return Topology.create(
                config.node.cluster_id or system_dice().randbytes(16).hex(),
                members,
                partitions=config.cluster.partitions,
                replicas=config.cluster.replicas,
            )
