"""A cluster's folder: made once, moved to other ports, and removed with nothing else."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore import errors
from kvstore.io.disk import SystemFiles
from kvstore.storage import identity
from kvstore_cli import local_cluster
from kvstore_cli.local_cluster import LocalCluster
from kvstore_cli.problems import NoCluster, UsageProblem


def make(directory: Path, *, count: int = 3, base_port: int = 7401) -> LocalCluster:
    """A new cluster."""
    return local_cluster.found(directory, count=count, base_port=base_port, replicas=3, partitions=64)


def test_every_node_knows_all_others_before_any_starts(tmp_path: Path) -> None:
    cluster = make(tmp_path)
    files = SystemFiles()
    held = [identity.load_topology(files, str(cluster.folder(m))) for m in cluster.members]
    known = [identity.load(files, str(cluster.folder(m))) for m in cluster.members]
    first = held[0]
    assert first is not None
    assert held == [first] * 3
    assert (first.epoch, first.replicas, first.partitions, first.cluster_id) == (1, 3, 64, cluster.cluster_id)
    for number, (node, own) in enumerate(zip(first.nodes, known, strict=True), 1):
        assert own is not None
        assert (own.cluster_id, own.node_uuid, own.node) == (cluster.cluster_id, node.uuid, number)
        assert (node.name, node.client_port, node.peer_port) == (f"n{number}", 7400 + number, 7500 + number)


def test_what_was_made_is_loaded(tmp_path: Path) -> None:
    cluster = make(tmp_path, count=5, base_port=9001)
    assert local_cluster.load_cluster(tmp_path) == cluster


def test_a_start_that_was_interrupted_is_picked_up(tmp_path: Path) -> None:
    first = make(tmp_path)
    (tmp_path / "cluster.json").unlink()
    (tmp_path / "n3" / "topology.json").unlink()
    assert make(tmp_path).cluster_id == first.cluster_id


def test_other_ports_are_a_new_epoch_for_all(tmp_path: Path) -> None:
    cluster = make(tmp_path)
    files = SystemFiles()
    # One node missed an earlier change; the newest topology is what goes on.
    newer = identity.load_topology(files, str(tmp_path / "n2"))
    assert newer is not None
    identity.save_topology(files, str(tmp_path / "n2"), newer.with_addresses({}))
    moved = local_cluster.moved(cluster, 9001)
    held = [identity.load_topology(files, str(moved.folder(m))) for m in moved.members]
    first = held[0]
    assert first is not None
    assert held == [first] * 3
    assert (first.epoch, first.owners) == (3, newer.owners)
    assert [(n.client_port, n.peer_port) for n in first.nodes] == [(9001, 9101), (9002, 9102), (9003, 9103)]
    assert local_cluster.load_cluster(tmp_path) == moved
    assert moved.cluster_id == cluster.cluster_id


def test_erasing_removes_only_what_is_ours(tmp_path: Path) -> None:
    cluster = make(tmp_path)
    (tmp_path / "n4").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    local_cluster.erase(cluster)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n4", "notes.txt"]


def test_no_cluster_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NoCluster):
        local_cluster.load_cluster(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{", errors.DataDirUnusable),
        ("{}", errors.DataDirUnusable),
        (
            '{"format": 1, "cluster": "c", "base_port": "x", "replicas": 3, "nodes": []}',
            errors.DataDirUnusable,
        ),
        ('{"format": 2}', errors.DataDirFormat),
    ],
)
def test_a_damaged_cluster_file_is_told(tmp_path: Path, text: str, kind: type[errors.KVError]) -> None:
    (tmp_path / "cluster.json").write_text(text)
    with pytest.raises(kind):
        local_cluster.load_cluster(tmp_path)


def test_a_taken_port_is_named(tmp_path: Path, free_base_port: Callable[[int], int]) -> None:
    base = free_base_port(3)
    cluster = make(tmp_path, base_port=base)
    local_cluster.check_ports(cluster.members)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", base + 101))
        taken.listen()
        with pytest.raises(errors.PortInUse, match=f"127.0.0.1:{base + 101} is taken"):
            local_cluster.check_ports(cluster.members)


@pytest.mark.parametrize(("base_port", "count"), [(65_434, 3), (7_401, 101)])
def test_ports_that_do_not_exist_are_refused(base_port: int, count: int) -> None:
    with pytest.raises(UsageProblem):
        local_cluster.members_at(base_port, count)


def test_the_file_is_what_the_url_is_made_of(tmp_path: Path) -> None:
    cluster = make(tmp_path)
    plain = json.loads((tmp_path / "cluster.json").read_bytes())
    assert [node["client_port"] for node in plain["nodes"]] == [7401, 7402, 7403]
    assert cluster.url == "kv://127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"
    assert cluster.copies == 3
    assert make(tmp_path / "one", count=1).copies == 1
