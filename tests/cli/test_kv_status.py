"""`kv status`: a table of nodes, and what that means for the keys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from kvstore.core.topology import NodeInfo, Topology
from kvstore.types import NodeId
from kvstore_cli import health
from kvstore_cli.health import NodeHealth
from kvstore_cli.status import in_bytes

if TYPE_CHECKING:
    from tests.cli.conftest import FakeCluster, RunKv


def topology(count: int, replicas: int = 3) -> Topology:
    """A cluster of this many nodes."""
    nodes = [NodeInfo(NodeId(n), f"{n:032x}", f"n{n}", "h", 7400 + n, 7500 + n) for n in range(1, count + 1)]
    return Topology.create("c" * 32, nodes, partitions=64, replicas=replicas)


def nodes_of(count: int, *down: int, **more: Any) -> list[NodeHealth]:
    """Their health."""
    return [
        NodeHealth(n, f"n{n}", f"h:{n}", {} if n in down else {"state": "ready", "epoch": 1, **more})
        for n in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("count", "down", "healthy", "said"),
    [
        (3, (), True, "3 of 3 nodes are ready, all at epoch 1; every key has its quorum"),
        (3, (2,), False, "2 of 3 nodes are ready; every key still has its quorum, so reads and writes go on"),
        (
            3,
            (1, 2),
            False,
            "1 of 3 nodes are ready; 64 of 64 partitions have no quorum: their reads and writes fail",
        ),
        (1, (), True, "1 of 1 nodes are ready, all at epoch 1; every key has its quorum"),
        (5, (1,), False, "4 of 5 nodes are ready; every key still has its quorum, so reads and writes go on"),
    ],
)
def test_the_verdict_counts_quorums_and_not_only_nodes(
    count: int, down: tuple[int, ...], healthy: bool, said: str
) -> None:
    verdict = health.verdict(topology(count), nodes_of(count, *down))
    assert (verdict.healthy, verdict.sentence) == (healthy, said)


def test_two_of_five_down_leaves_some_partitions_without_a_quorum() -> None:
    cluster = topology(5)
    short = sum(len({1, 2} & set(owners)) == 2 for owners in cluster.owners)
    assert 0 < short < 64
    assert f"{short} of 64 partitions have no quorum" in health.verdict(cluster, nodes_of(5, 1, 2)).sentence


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"clock_off_ms": 900}, "its clock is 900 ms off"),
        ({"storage": {"full": True}}, "its disk is full"),
        ({"storage": {"conflicts": 2}}, "2 records of equal version"),
        ({"peers": {"n2": {"up": False}, "n1": {"up": True}}}, "cannot reach n2"),
    ],
)
def test_a_node_that_is_ready_but_unwell_makes_the_cluster_unhealthy(more: dict[str, Any], said: str) -> None:
    nodes = nodes_of(3)
    nodes[0].status.update(more)
    verdict = health.verdict(topology(3), nodes)
    assert not verdict.healthy
    assert f"n1: {said}" in verdict.sentence


def test_that_a_down_node_cannot_be_reached_is_not_said_again_by_every_other() -> None:
    nodes = nodes_of(3, 2, peers={"n2": {"up": False}})
    assert health.verdict(topology(3), nodes).sentence.endswith("so reads and writes go on")


def test_different_epochs_are_told() -> None:
    nodes = nodes_of(3)
    nodes[2].status["epoch"] = 2
    verdict = health.verdict(topology(3), nodes)
    assert not verdict.healthy
    assert "different epochs (1, 2)" in verdict.sentence


def test_status_is_5_when_a_node_is_down(kv: RunKv, cluster: FakeCluster) -> None:
    assert kv("status").status == 0
    cluster.down = {2}
    result = kv("status", "-o", "json")
    assert result.status == 5
    told = json.loads(result.out)
    assert told["healthy"] is False
    assert [node["state"] for node in told["nodes"]] == ["ready", "down", "ready"]
    assert told["nodes"][1]["reason"] == "connection refused"
    assert told["nodes"][0]["reason"] == "cannot reach n2"


def test_people_see_sizes_and_times_with_units(kv: RunKv) -> None:
    lines = kv("status", "--color", "never", tty=True).text.splitlines()
    assert lines[0].split() == [
        "node",
        "state",
        "address",
        "keys",
        "disk",
        "memory",
        "epoch",
        "uptime",
        "version",
    ]
    assert lines[1].split() == [
        "n1",
        "ready",
        "127.0.0.1:7401",
        "7",
        "8.0",
        "KiB",
        "10",
        "B",
        "1",
        "00:01:15",
        "0.1.0",
    ]
    assert lines[-1].startswith("3 of 3 nodes are ready")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (35 << 20, "35 MiB"), (None, "")]
)
def test_sizes_are_short(count: int | None, text: str) -> None:
    assert in_bytes(count) == text


def test_watch_goes_on_until_ctrl_c(kv: RunKv, cluster: FakeCluster) -> None:
    asked = 0
    whole = cluster.topology

    async def topology_then_ctrl_c() -> Topology:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise KeyboardInterrupt
        return await whole()

    cluster.topology = topology_then_ctrl_c  # type: ignore[method-assign]
    result = kv("status", "--watch", "10ms")
    assert result.status == 130
    assert result.text.count("n1\tready") == 2
