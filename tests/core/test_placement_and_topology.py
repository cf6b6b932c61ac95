"""Owners: balanced, spread, deterministic, and hardly moved by a change."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore import errors
from kvstore.core import ring
from kvstore.core.placement import Placement, place
from kvstore.core.topology import NodeInfo, Topology
from kvstore.types import NodeId

Q = 256


def node(number: int, *, zone: str = "", weight: int = 1, host: str = "127.0.0.1") -> NodeInfo:
    return NodeInfo(
        NodeId(number), f"{number:032x}", f"n{number}", host, 7400 + number, 7500 + number, zone, weight
    )


def shares(placement: Placement) -> Counter[int]:
    return Counter(number for row in placement.owners for number in row)


def check_rows(placement: Placement, nodes: list[NodeInfo], replicas: int) -> None:
    copies = min(replicas, len(nodes))
    known = {one.number for one in nodes}
    for row in placement.owners:
        assert len(row) == len(set(row)) == copies
        assert known.issuperset(row)


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("replicas", [1, 3])
def test_every_node_owns_k_or_k_plus_one_and_leads_its_part(count: int, replicas: int) -> None:
    nodes = [node(n) for n in range(1, count + 1)]
    placement = place(nodes, partitions=Q, replicas=replicas)
    check_rows(placement, nodes, replicas)
    owned = shares(placement).values()
    assert max(owned) - min(owned) <= 1
    first = Counter(row[0] for row in placement.owners)
    assert max(first.values()) - min(first[n.number] for n in nodes) <= 2
    assert placement == place(list(reversed(nodes)), partitions=Q, replicas=replicas), (
        "the order given is nothing"
    )
    assert [v.what for v in placement.violations] == (["replicas"] if count < replicas else [])


CHANGES = st.lists(st.sampled_from(["join", "leave", "leave two", "replace"]), min_size=1, max_size=6)


@settings(max_examples=40)
@given(st.integers(3, 7), CHANGES)
def test_a_change_moves_hardly_more_than_it_must(count: int, changes: list[str]) -> None:
    """What must move: what the leavers owned, or the newcomer's share; whichever is more."""
    nodes = [node(n) for n in range(1, count + 1)]
    placement = place(nodes, partitions=Q, replicas=3)
    number = count
    for change in changes:
        before, old = placement.owners, shares(placement)
        gone = {"leave": 1, "leave two": 2, "replace": 1}.get(change, 0)
        if len(nodes) - gone < 3:
            continue
        lost = sum(old[one.number] for one in nodes[:gone])
        nodes = nodes[gone:]
        if change in ("join", "replace"):
            number += 1
            nodes = [*nodes, node(number)]
        placement = place(nodes, partitions=Q, replicas=3, current=before)
        check_rows(placement, nodes, 3)
        newcomer = -(-Q * 3 // len(nodes)) if change in ("join", "replace") else 0
        assert placement.moved <= 1.05 * max(lost, newcomer) + 1, change
        owned = shares(placement).values()
        assert max(owned) - min(owned) <= 1


def test_nothing_moves_when_nothing_changed() -> None:
    nodes = [node(n) for n in range(1, 6)]
    first = place(nodes, partitions=Q, replicas=3)
    again = place(nodes, partitions=Q, replicas=3, current=first.owners)
    assert again.moved == 0
    assert [set(row) for row in again.owners] == [set(row) for row in first.owners]


def test_weights_are_shares() -> None:
    nodes = [node(1), node(2), node(3), node(4, weight=2), node(5)]
    owned = shares(place(nodes, partitions=Q, replicas=3))
    assert owned[4] == pytest.approx(2 * owned[1], rel=0.03)


@pytest.mark.parametrize("zones", ["aabbcc", "aabbccc", "abcabc", "aaabbc"])
def test_copies_go_to_distinct_zones(zones: str) -> None:
    nodes = [node(number, zone=zone) for number, zone in enumerate(zones, 1)]
    placement = place(nodes, partitions=Q, replicas=3)
    zone_of = {one.number: one.zone for one in nodes}
    assert all(len({zone_of[n] for n in row}) == 3 for row in placement.owners)
    assert placement.violations == ()


def test_zones_may_stand_in_the_way_of_balance() -> None:
    """Zone b has one node for every partition; a's share what is left, and nobody can relieve b."""
    nodes = [node(1, zone="b"), *(node(n, zone="a") for n in range(2, 6))]
    placement = place(nodes, partitions=64, replicas=2)
    owned = shares(placement)
    assert owned[1] == 64
    assert max(owned[n] for n in range(2, 6)) - min(owned[n] for n in range(2, 6)) <= 1
    lopsided = tuple((NodeId(2), NodeId(3)) for _ in range(64))
    assert place(nodes, partitions=64, replicas=2, current=lopsided).moved > 0


def test_two_zones_for_three_copies_is_told() -> None:
    placement = place([node(1, zone="a"), node(2, zone="a"), node(3, zone="b")], partitions=16, replicas=3)
    assert [(v.what, v.wanted, v.got, v.partitions) for v in placement.violations] == [("zones", 3, 2, 16)]


def test_without_zones_copies_go_to_distinct_hosts() -> None:
    nodes = [node(n, host=f"10.0.0.{n % 3}") for n in range(1, 7)]
    host_of = {one.number: one.host for one in nodes}
    placement = place(nodes, partitions=Q, replicas=3)
    assert all(len({host_of[n] for n in row}) == 3 for row in placement.owners)


# --- topology -----------------------------------------------------------------------------


def three() -> Topology:
    return Topology.create("c", [node(n) for n in (3, 1, 2)])


def test_a_topology_survives_json() -> None:
    topology = three()
    assert Topology.from_plain(json.loads(json.dumps(topology.to_plain()))) == topology
    assert topology.partitions == Q
    assert topology.copies == 3
    assert topology.voters == (1, 2, 3)
    assert topology.epoch == 1


@given(st.binary(min_size=1, max_size=30))
def test_preference_is_the_row_of_the_partition(key: bytes) -> None:
    topology = three()
    partition = topology.partition(key)
    assert topology.preference(key) == topology.owners_of(partition) == topology.owners[partition]
    assert topology.node(topology.preference(key)[0]).number == topology.preference(key)[0]


def test_other_addresses_are_another_epoch_and_the_same_owners() -> None:
    topology = three()
    moved = topology.with_addresses({NodeId(2): ("10.0.0.2", 1, 2)})
    assert (moved.node(2).host, moved.node(2).client_port, moved.node(2).peer_port) == ("10.0.0.2", 1, 2)
    assert moved.node(1) == topology.node(1)
    assert moved.epoch == topology.epoch + 1
    assert moved.owners == topology.owners


BROKEN: list[tuple[str, Any]] = [
    ("epoch", 0), ("epoch", "1"), ("epoch", True), ("replicas", 0), ("cluster_id", 7), ("owners", []),
    ("owners", [[1, 2, 3]] * 3), ("owners", [[1, 1]]), ("owners", [[9]]), ("owners", [[]]), ("owners", None),
    ("voters", [9]), ("voters", 3), ("nodes", []), ("nodes", [{}]), ("nodes", "abc"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BROKEN)
def test_what_is_no_topology_is_malformed(field: str, value: Any) -> None:
    with pytest.raises(errors.Malformed):
        Topology.from_plain({**three().to_plain(), field: value})


@pytest.mark.parametrize("plain", [None, 5, [], {}, "x"])
def test_nor_is_anything_else(plain: Any) -> None:
    with pytest.raises(errors.Malformed):
        Topology.from_plain(plain)


def test_a_bad_number_of_partitions_is_refused_at_birth() -> None:
    with pytest.raises(errors.BadOption):
        Topology.create("c", [node(1)], partitions=100)
    ring.check_partitions(16)
