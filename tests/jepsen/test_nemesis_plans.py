"""Plans of faults: data drawn from a seed, with the shapes their names promise."""

from __future__ import annotations

import json
import math

import pytest

from jepsen_lite import nemesis
from jepsen_lite.nemesis import CLIENTS, QUIET_S, NoPlanError, Plan

NAMES = [name for name in nemesis.ABOUT if name != "none"]
SEEDS = range(1, 30)


def _reached(node: int, nodes: int, plan_pairs: frozenset[tuple[int, int]]) -> set[int]:
    """Nodes that hear this one and are heard by it, and itself."""
    return {
        other
        for other in range(1, nodes + 1)
        if other == node or not {(node, other), (other, node)} & plan_pairs
    }


def _cuts(name: str, seed: int, nodes: int) -> list[frozenset[tuple[int, int]]]:
    plan = nemesis.plan(name, seed=seed, nodes=nodes, seconds=60)
    return [frozenset(fault.pairs) for fault in plan.faults]


@pytest.mark.parametrize("name", nemesis.ABOUT)
def test_a_plan_is_a_pure_function_of_its_arguments(name: str) -> None:
    first, again = (nemesis.plan(name, seed=7, nodes=5, seconds=60) for _ in range(2))
    assert first == again
    drawn = {nemesis.plan(name, seed=seed, nodes=5, seconds=60).faults for seed in SEEDS}
    assert len(drawn) == (1 if name == "none" else len(SEEDS))


def test_a_plan_is_the_same_on_every_machine() -> None:
    """The literal was written down once: another Python or hash seed must draw the same."""
    first = nemesis.plan("kill", seed=1, nodes=3, seconds=10).faults[0]
    assert str(first) == "1.55s +2.47s kill n1"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seconds", [4.0, 10.0, 60.0])
def test_faults_are_over_before_the_run_and_leave_its_ends_quiet(name: str, seconds: float) -> None:
    for seed in SEEDS:
        plan = nemesis.plan(name, seed=seed, nodes=5, seconds=seconds)
        assert plan.faults, "a run without a fault proves nothing"
        assert list(plan.faults) == sorted(plan.faults, key=lambda fault: fault.at)
        for fault in plan.faults:
            assert fault.at >= QUIET_S
            assert fault.lasts > 0
            assert fault.until <= seconds - QUIET_S + 0.01


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nodes", [4, 5, 9])
def test_faults_are_about_nodes_that_there_are(name: str, nodes: int) -> None:
    for seed in SEEDS:
        for fault in nemesis.plan(name, seed=seed, nodes=nodes, seconds=60).faults:
            assert fault.nodes or fault.pairs
            assert set(fault.nodes) <= set(range(1, nodes + 1))
            ends = {end for pair in fault.pairs for end in pair}
            assert ends <= set(range(nodes + 1))
            assert all(a != b for a, b in fault.pairs)
            if name != "client-cut":
                assert CLIENTS not in ends


@pytest.mark.parametrize("name", ["kill", "pause", "clock", "drift", "torn-tail"])
@pytest.mark.parametrize("nodes", [3, 5, 7])
def test_at_most_a_minority_of_the_nodes_is_away(name: str, nodes: int) -> None:
    for seed in SEEDS:
        for fault in nemesis.plan(name, seed=seed, nodes=nodes, seconds=60).faults:
            assert 1 <= len(fault.nodes) <= (nodes - 1) // 2


@pytest.mark.parametrize("nodes", [3, 4, 5, 7])
def test_halves_leave_a_majority_that_sees_itself_and_a_rest_that_does_not_see_it(nodes: int) -> None:
    for seed in SEEDS:
        for cut in _cuts("halves", seed, nodes):
            sides = {frozenset(_reached(node, nodes, cut)) for node in range(1, nodes + 1)}
            assert len(sides) == 2
            assert max(map(len, sides)) == nodes // 2 + 1
            assert sum(map(len, sides)) == nodes


@pytest.mark.parametrize("nodes", [4, 5, 6, 7, 9])
def test_in_a_ring_each_node_sees_a_majority_and_no_two_see_the_same(nodes: int) -> None:
    for seed in SEEDS:
        for cut in _cuts("ring", seed, nodes):
            seen = [frozenset(_reached(node, nodes, cut)) for node in range(1, nodes + 1)]
            assert all(len(each) > nodes // 2 for each in seen)
            assert len(set(seen)) == nodes


@pytest.mark.parametrize("nodes", [3, 4, 5, 7])
def test_over_a_bridge_one_node_sees_all_and_the_others_only_their_side(nodes: int) -> None:
    for seed in SEEDS:
        for cut in _cuts("bridge", seed, nodes):
            sizes = sorted(len(_reached(node, nodes, cut)) for node in range(1, nodes + 1))
            assert sizes[-1] == nodes
            assert sizes[-2] == math.ceil((nodes - 1) / 2) + 1


def test_one_way_cuts_never_cut_both_ways() -> None:
    for seed in SEEDS:
        for cut in _cuts("one-way", seed, 5):
            assert cut
            assert not {(b, a) for a, b in cut} & cut


def test_isolation_is_of_one_node_and_complete() -> None:
    for cut in _cuts("isolate", 3, 5):
        assert sorted(len(_reached(node, 5, cut)) for node in range(1, 6)) == [1, 4, 4, 4, 4]


def test_rolling_restarts_go_round_in_order() -> None:
    nodes = [fault.nodes for fault in nemesis.plan("rolling", seed=1, nodes=3, seconds=60).faults]
    assert nodes == [((turn % 3) + 1,) for turn in range(len(nodes))]
    assert len(nodes) >= 6


def test_all_at_once_breaks_links_and_nodes_at_the_same_time() -> None:
    faults = nemesis.plan("all", seed=1, nodes=5, seconds=60).faults
    links = [fault for fault in faults if fault.pairs]
    nodes = [fault for fault in faults if fault.nodes]
    assert any(a.at < b.until and b.at < a.until for a in links for b in nodes)


@pytest.mark.parametrize("name", nemesis.ABOUT)
def test_a_plan_survives_its_file(name: str) -> None:
    plan = nemesis.plan(name, seed=3, nodes=5, seconds=30)
    assert Plan.from_json(json.loads(json.dumps(plan.as_json()))) == plan


@pytest.mark.parametrize(
    ("name", "nodes", "words"), [("ring", 3, "at least 4 nodes"), ("rain", 5, "there are")]
)
def test_what_cannot_be_drawn_is_refused_with_a_reason(name: str, nodes: int, words: str) -> None:
    with pytest.raises(NoPlanError, match=words):
        nemesis.plan(name, seed=1, nodes=nodes, seconds=10)
