"""Whole clusters on the simulated loop: sound ones pass, a seed is one run, broken ones are convicted."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys

import mutants
import pytest

from kvstore import errors
from kvstore.node import service
from kvstore.sim.cluster import Cluster
from kvstore.sim.faults import KINDS, plan
from kvstore.sim.loop import SimLoop, run
from kvstore.sim.run import Shape, simulate

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(600)]
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("seed", [1, 2, 7, 12])
def test_a_cluster_under_all_faults_keeps_its_promises(seed: int) -> None:
    outcome = simulate(seed)
    assert outcome.verdict.word == "ok", outcome.verdict


def test_three_nodes_and_a_blackout() -> None:
    outcome = simulate(11, Shape(nodes=3, kinds=("blackout", "power_cut")))
    assert outcome.verdict.word == "ok", outcome.verdict


def test_without_faults_every_call_succeeds() -> None:
    outcome = simulate(5, Shape(kinds=(), seconds=3))
    assert outcome.verdict.word == "ok"
    assert outcome.succeeded == outcome.operations


def test_the_same_seed_gives_the_same_digest_whatever_the_hash_seed() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-m", "kvstore.sim", "--seed", "3", "--runs", "2", "--digest"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(digests) == 1
    assert len(set(digests.pop().split())) == 4, "two seeds, two digests"


def test_faults_are_a_pure_function_of_the_seed_and_spare_a_majority() -> None:
    for seed in range(200):
        one = plan(seed, nodes=5, seconds=8)
        assert one == plan(seed, nodes=5, seconds=8)
        for fault in one.faults:
            assert fault.at + fault.lasts < 8
            assert len(fault.nodes) <= 2 or fault.kind == "blackout"
    assert {fault.kind for seed in range(200) for fault in plan(seed, nodes=5, seconds=8).faults} == set(
        KINDS
    )


async def held_up_in_a_paused_node() -> tuple[bytes | None, int]:
    """A put waits in a paused node; its client gives up; others delete the key; the node goes on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    cluster = Cluster(loop, 1, nodes=3, replicas=3, keep_trace=False)
    for number in cluster.machines:
        cluster.start(number)
    await asyncio.sleep(1)
    pinned = await cluster.client(1, url=cluster.urls[0], pinned=True)
    other = await cluster.client(2)
    await pinned.put("k", b"before")
    cluster.pause(1)
    with pytest.raises(errors.Unresolved):
        await pinned.put("k", b"held up", timeout=0.5)
    await asyncio.sleep(0.2)
    await other.delete("k")
    cluster.resume(1)
    await asyncio.sleep(2)
    found = await other.get("k", consistency="all")
    node = cluster.machines[1].node
    assert node is not None
    cluster.end()
    return (None if found is None else found.value), node.counters.deadline_drops


def test_a_request_held_up_past_its_deadline_does_not_undo_what_came_after() -> None:
    """Found as seed 105 of an earlier set of faults."""
    value, dropped = run(held_up_in_a_paused_node())
    assert value is None
    assert dropped >= 1


def test_without_that_rule_the_held_up_request_does_undo_it(monkeypatch: Patch) -> None:
    """The negative control of the test above: the rule is switched off in the node."""
    monkeypatch.setattr(service, "_DEADLINE_AT", {})
    value, _ = run(held_up_in_a_paused_node())
    assert value == b"held up"


def test_what_a_run_leaves_behind_ends_with_it(monkeypatch: Patch) -> None:
    """Not whenever a collector comes: another thread's may be under way, and then ours does nothing."""
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: said.append(unraisable.object))
    with monkeypatch.context() as patch:
        patch.setattr(gc, "collect", lambda: 0)
        run(held_up_in_a_paused_node())
        assert said == []
    gc.collect()
    assert said == []


# --- negative controls: each breaks one rule and must be convicted ----------------------------


GONE = ("back", "lost", "vanished")
STUCK = ("refused-start", "stuck")
UNSURE = ("halves", "stall", "one_way")
CONTROLS: list[tuple[mutants.Broken, tuple[str, ...], range, int, tuple[str, ...]]] = [
    (mutants.answer_before_the_sync, ("blackout",), range(1, 7), 4, ("lost", "vanished", "back")),
    (mutants.one_answer_taken_for_a_quorum, ("isolate", "halves", "stall"), range(1, 7), 4, ("back",)),
    (mutants.read_without_repair, ("slow",), range(9, 48), 10, ("back",)),
    (mutants.visible_before_durable, ("blackout",), range(1, 21), 12, ("back", "two-values", "lost")),
    (mutants.expired_dropped_outright, ("crash",), range(1, 4), 4, ("back",)),
    (mutants.whatever_comes_last_is_taken, ("slow", "halves", "pause"), range(1, 7), 4, GONE),
    (mutants.an_indefinite_failure_told_as_definite, UNSURE, range(1, 21), 4, ("refused",)),
    (mutants.a_lost_quorum_counts_as_reached, ("crash", "halves", "disk_full"), range(1, 21), 4, GONE),
    (mutants.any_clock_is_believed, ("clock",), range(28, 41), 4, ("undead",)),
    (mutants.a_torn_tail_is_left_in_the_log, ("blackout", "crash"), range(5, 21), 4, STUCK),
]
"""The broken rule, the faults that show it, the seeds it may take, how many clients, and the crimes."""


@pytest.mark.patches
@pytest.mark.parametrize(
    ("broken", "kinds", "seeds", "clients", "crimes"), CONTROLS, ids=lambda x: getattr(x, "__name__", "")
)
def test_a_broken_rule_is_convicted(
    monkeypatch: Patch,
    broken: mutants.Broken,
    kinds: tuple[str, ...],
    seeds: range,
    clients: int,
    crimes: tuple[str, ...],
) -> None:
    broken(monkeypatch)
    for seed in seeds:
        verdict = simulate(seed, Shape(kinds=kinds, seconds=6, registers=0.0, clients=clients)).verdict
        if any(violation.startswith(crimes) for violation in verdict.violations):
            return
    pytest.fail(f"{broken.__name__} passed {seeds}")
