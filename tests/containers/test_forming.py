"""Nodes that only know each other's addresses become one cluster: once, and nobody takes another's place."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from kvstore import errors
from kvstore.client.connection import Connection
from kvstore.config import NodeConfig, load
from kvstore.core.forming import Newcomer, founders, place_in, pledged
from kvstore.core.topology import NodeInfo, Topology
from kvstore.founding import find_cluster, load_pledge, save_pledge
from kvstore.io.disk import SystemFiles
from kvstore.io.entropy import system_dice
from kvstore.io.log import node_log
from kvstore.server import first_start
from kvstore.storage import identity as identities
from kvstore.types import NodeId
from kvstore.wire import results


def newcomer(name: str, uuid: str = "", pledge: str = "") -> Newcomer:
    return Newcomer(NodeInfo(NodeId(0), uuid or f"uuid-{name}", name, name, 7401, 7501), pledge)


def talk(nodes: list[Newcomer], expected: int, dice: random.Random) -> tuple[list[Newcomer], list[list[str]]]:
    """Let nodes look at random parts of each other; who may found, founds. The nodes, and the clusters."""
    clusters: dict[str, list[str]] = {}
    for _ in range(400):
        at = dice.randrange(len(nodes))
        seen = [each for i, each in enumerate(nodes) if i != at and dice.random() < 0.7]
        if len(seen) >= expected:
            continue  # it would refuse: one too many
        members = founders(nodes[at], seen, expected)
        if members is not None:
            clusters[nodes[at].info.uuid] = [each.name for each in members]
        nodes[at] = pledged(nodes[at], seen, expected)
    return nodes, list(clusters.values())


@pytest.mark.parametrize("seed", range(30))
def test_three_nodes_found_one_cluster_however_they_meet(seed: int) -> None:
    _, clusters = talk([newcomer(name) for name in ("kv1", "kv2", "kv3")], 3, random.Random(seed))
    assert clusters == [["kv1", "kv2", "kv3"]]


@pytest.mark.parametrize("seed", range(60))
def test_one_node_too_many_never_makes_two_clusters_that_share_a_node(seed: int) -> None:
    _, clusters = talk([newcomer(f"kv{n}") for n in range(1, 5)], 3, random.Random(seed))
    names = [name for cluster in clusters for name in cluster]
    assert len(names) == len(set(names))


def test_without_pledges_two_clusters_would_share_nodes() -> None:
    """The negative control: who simply founds with the first three it sees, founds twice."""
    a, b, c, d = (newcomer(name) for name in ("a", "b", "c", "d"))
    first = pledged(a, [c, d], 3)
    second = pledged(b, [c, d], 3)
    assert (first.pledge, second.pledge) == ("uuid-a", "uuid-b")
    assert founders(first, [c, d], 3) is None


@pytest.mark.parametrize("order", list(permutations(("kv-2", "kv-10", "kv-1"))))
def test_members_are_numbered_by_name_whoever_is_seen_first(order: tuple[str, ...]) -> None:
    everybody = [newcomer(name, pledge="uuid-kv-1") for name in order]
    me = next(each for each in everybody if each.info.name == "kv-1")
    members = founders(me, [each for each in everybody if each is not me], 3)
    assert members is not None
    assert [(each.number, each.name) for each in members] == [(1, "kv-1"), (2, "kv-2"), (3, "kv-10")]


def test_a_pledge_is_kept() -> None:
    assert pledged(newcomer("b", pledge="uuid-b"), [newcomer("a")], 2).pledge == "uuid-b"


def test_two_new_nodes_of_one_name_are_refused() -> None:
    with pytest.raises(errors.ConfigInvalid, match="two new nodes are called kv1"):
        pledged(newcomer("kv1"), [newcomer("kv1", uuid="other")], 3)


def test_more_nodes_than_expected_are_refused() -> None:
    with pytest.raises(errors.ConfigInvalid, match=r"3 new nodes .* want to found a cluster of 2"):
        pledged(newcomer("a"), [newcomer("b"), newcomer("c")], 2)


def test_a_node_without_its_data_is_not_the_old_node() -> None:
    topology = Topology.create("c" * 32, [replace(newcomer("kv1").info, number=NodeId(1))])
    assert place_in(topology, newcomer("moved", uuid="uuid-kv1").info, "/data").name == "kv1"
    with pytest.raises(errors.DataDirForeign, match=r"this node is kv1, node 1 .* whose data is not here"):
        place_in(topology, newcomer("kv1", uuid="new").info, "/data")
    with pytest.raises(errors.ConfigInvalid, match=r"has its members \(kv1\); kv9 is none of them"):
        place_in(topology, newcomer("kv9").info, "/data")


@pytest.mark.parametrize("plain", [None, {}, {"info": {}, "pledge": ""}, {"info": {"uuid": 3}, "pledge": ""}])
def test_a_greeting_of_something_else_is_malformed(plain: Any) -> None:
    with pytest.raises(errors.Malformed):
        Newcomer.from_plain(plain)


def test_a_newcomer_survives_the_wire() -> None:
    me = newcomer("kv1", pledge="uuid-kv2")
    assert Newcomer.from_plain(me.to_plain()) == me


# --- over real sockets ------------------------------------------------------------------


def config_of(folder: Path, ports: list[int], at: int, **flags: Any) -> NodeConfig:
    return load(
        flags={
            "name": f"n{at}",
            "data_dir": str(folder / f"n{at}"),
            "client_port": ports[2 * at],
            "peer_port": ports[2 * at + 1],
            "seeds": ",".join(f"127.0.0.1:{port}" for port in ports[:6:2]),
            **flags,
        }
    )


async def find(config: NodeConfig, stopping: asyncio.Event | None = None) -> bool:
    log = node_log(level="error")
    return await find_cluster(config, log=log, stopping=stopping or asyncio.Event())


def told(config: NodeConfig, name: str) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((Path(config.node.data_dir) / name).read_text())
    return plain


async def greeting(address: str) -> Connection:
    for _ in range(100):
        try:
            return await Connection.open(address)
        except errors.CannotConnect:
            await asyncio.sleep(0.02)
    raise AssertionError


@pytest.mark.slow
async def test_a_forming_node_says_what_it_waits_for_and_stops_when_told(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    config = config_of(tmp_path, [free_port() for _ in range(6)], 0)
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        finding = tasks.create_task(find(config, stopping))
        connection = await greeting(f"127.0.0.1:{config.listen.client_port}")
        async with asyncio.timeout(5):
            while "2 more nodes" not in (status := await connection.call("status", ()))["waits_for"]:
                await asyncio.sleep(0.02)
        assert status["state"] == "forming"
        assert results.clocks_of(await connection.call("ping", ())) is not None
        with pytest.raises(errors.NotReady, match="it has no cluster yet and waits for 2 more nodes"):
            await connection.call("topology", ())
        connection.close()
        stopping.set()
    assert finding.result() is False
    with pytest.raises(errors.DataDirUnusable, match="waits for its cluster"):
        first_start(config_of(tmp_path, [free_port() for _ in range(6)], 0, seeds=""))


@pytest.mark.slow
async def test_a_token_is_asked_for_while_forming(tmp_path: Path, free_port: Callable[[], int]) -> None:
    config = config_of(tmp_path, [free_port() for _ in range(6)], 0, client_token="a", peer_token="b")
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(find(config, stopping))
        with pytest.raises(errors.AuthFailed):
            await greeting(f"127.0.0.1:{config.listen.client_port}")
        stopping.set()


def test_cluster_nodes_without_seeds_is_refused(tmp_path: Path) -> None:
    config = load(flags={"data_dir": str(tmp_path / "d"), "cluster_nodes": 3})
    with pytest.raises(errors.ConfigInvalid, match="nothing says where they are"):
        first_start(config)
    assert not (tmp_path / "d").exists()


async def test_an_identity_without_its_topology_is_refused(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    ports = [free_port() for _ in range(6)]
    alone = config_of(tmp_path, ports, 0, seeds="")
    first_start(alone)
    assert await find(config_of(tmp_path, ports, 0)) is True
    (tmp_path / "n0" / "topology.json").unlink()
    with pytest.raises(errors.DataDirUnusable, match=r"topology\.json is missing"):
        await find(config_of(tmp_path, ports, 0))


def planted(config: NodeConfig, *, pledge: str = "") -> str:
    """A node that was interrupted before it had a cluster; its uuid."""
    found = identities.load_or_create(
        SystemFiles(), config.node.data_dir, dice=system_dice(), cluster_id="", node=NodeId(0)
    )
    if pledge:
        save_pledge(SystemFiles(), config.node.data_dir, pledge)
    return found.node_uuid


@pytest.mark.slow
async def test_a_pledge_is_on_the_disk_before_it_is_told_and_outlives_a_restart(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """The others of its first cluster are gone; it does not take part in a second one."""
    ports = [free_port() for _ in range(6)]
    first = config_of(tmp_path, ports, 0)
    planted(first, pledge="somebody else")
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        finding = [tasks.create_task(find(config_of(tmp_path, ports, at), stopping)) for at in range(3)]
        connection = await greeting(f"127.0.0.1:{ports[0]}")
        assert connection.hello["forming"]["pledge"] == "somebody else"
        async with asyncio.timeout(10):
            while "not here" not in (await connection.call("status", ()))["waits_for"]:
                await asyncio.sleep(0.02)
            while not (tmp_path / "n1" / "pledge").exists() or not (tmp_path / "n2" / "pledge").exists():
                await asyncio.sleep(0.02)
        connection.close()
        stopping.set()
    assert [task.result() for task in finding] == [False] * 3
    uuid = told(first, "identity.json")["uuid"]
    assert [load_pledge(SystemFiles(), str(tmp_path / f"n{at}")) for at in (1, 2)] == [uuid, uuid]


async def test_a_founder_that_died_between_topology_and_identity_goes_on(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    ports = [free_port() for _ in range(6)]
    config = config_of(tmp_path, ports, 0)
    info = NodeInfo(NodeId(3), planted(config), "n0", "127.0.0.1", ports[0], ports[1])
    topology = Topology.create("c" * 32, [info])
    identities.save_topology(SystemFiles(), config.node.data_dir, topology)
    with pytest.raises(errors.DataDirForeign, match="cluster d"):
        await find(config_of(tmp_path, ports, 0, cluster_id="d" * 32))
    assert told(config, "identity.json")["cluster"] == ""
    assert await find(config) is True
    assert (told(config, "identity.json")["cluster"], told(config, "identity.json")["node"]) == ("c" * 32, 3)
    with pytest.raises(errors.DataDirForeign, match="cluster d"):
        await find(config_of(tmp_path, ports, 0, cluster_id="d" * 32))


async def test_a_topology_whose_identity_is_gone_is_refused(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    ports = [free_port() for _ in range(6)]
    first_start(config_of(tmp_path, ports, 0, seeds=""))
    (tmp_path / "n0" / "identity.json").unlink()
    with pytest.raises(errors.DataDirForeign, match="whose data is not here"):
        await find(config_of(tmp_path, ports, 0))


async def test_a_port_that_is_taken_is_named(tmp_path: Path, free_port: Callable[[], int]) -> None:
    config = config_of(tmp_path, [free_port() for _ in range(6)], 0)
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", config.listen.client_port)
    async with taken:
        with pytest.raises(errors.PortInUse):
            await find(config)
