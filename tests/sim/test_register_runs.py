"""Registers in simulated clusters: broken rules are convicted within a stated number of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mutants
import pytest

from kvstore.sim.judge import Operation
from kvstore.sim.judge_registers import judge_registers
from kvstore.sim.run import Shape, simulate

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(600)]
Patch = pytest.MonkeyPatch


CONTROLS: list[tuple[mutants.Broken, tuple[str, ...], range, int]] = [
    (mutants.votes_leave_before_the_sync, ("blackout",), range(1, 20), 4),
    (mutants.any_ballot_is_accepted, ("slow", "halves", "pause", "one_way"), range(1, 20), 4),
    (mutants.the_window_is_not_asked, ("client_cut", "slow", "reset"), range(1, 20), 4),
    (mutants.a_read_takes_the_highest_answer, ("slow", "stall"), range(30, 56), 10),
    (mutants.timeouts_told_as_refusals, ("pause", "halves", "stall", "one_way"), range(1, 40), 4),
    (mutants.ends_come_from_any_clock, ("clock", "stall"), range(1, 20), 4),
    (mutants.plain_writes_pass_registers_by, ("slow",), range(10, 35), 10),
]
"""The broken rule, the faults that show it, the seeds it may take, and how many clients.

Promises kept only in memory, accepts acknowledged because the record is there, and fast reads that ignore
a promise need a crash or a merge within a millisecond: `tests/core/test_register_explorer.py` has them.
"""
CRIMES = ("forked", "unlinear", "torn", "overtaken", "miscounted", "undone")


@pytest.mark.patches
@pytest.mark.parametrize(
    ("broken", "kinds", "seeds", "clients"), CONTROLS, ids=lambda x: getattr(x, "__name__", "")
)
def test_a_broken_register_rule_is_convicted(
    monkeypatch: Patch, broken: mutants.Broken, kinds: tuple[str, ...], seeds: range, clients: int
) -> None:
    broken(monkeypatch)
    for seed in seeds:
        shape = Shape(kinds=kinds, seconds=6, registers=1.0, clients=clients)
        verdict = simulate(seed, shape).verdict
        if any(violation.startswith(CRIMES) for violation in verdict.violations):
            return
    pytest.fail(f"{broken.__name__} passed {seeds}")


def test_sound_registers_under_the_same_faults_are_not() -> None:
    for _, kinds, _, clients in CONTROLS:
        outcome = simulate(1, Shape(kinds=kinds, seconds=6, registers=0.8, clients=clients))
        assert outcome.verdict.word == "ok", outcome.verdict
        assert len(outcome.registers) > 100


# --- the judge itself -------------------------------------------------------------------


def call(kind: str, began: float, ended: float, version: int, **more: Any) -> Operation:
    return Operation(
        1, kind, "k", "linearizable", began, 1.0, ended=ended, version=version, outcome="ok", **more
    )


ILLEGAL: dict[str, Sequence[Operation]] = {
    "forked": [call("put", 0, 1, 5, value=b"a"), call("put", 2, 3, 5, value=b"b")],
    "unlinear": [call("put", 0, 1, 5, value=b"a"), call("get", 2, 3, 0)],
    "torn": [call("put", 0, 1, 5, value=b"a"), call("get", 2, 3, 5, value=b"b")],
    "overtaken": [
        call("put", 0, 1, 5, value=b"a"),
        call("put", 0, 9, 6, value=b"b"),
        call("cas", 2, 9, 7, value=b"c", expected=5),
    ],
    "miscounted": [call("incr", 0, 1, 5, number=1), call("incr", 2, 3, 6, number=1)],
}


@pytest.mark.parametrize("crime", ILLEGAL)
def test_the_judge_convicts(crime: str) -> None:
    assert any(line.startswith(crime) for line in judge_registers(ILLEGAL[crime]))


def test_the_judge_convicts_what_was_resolved_as_never_applied() -> None:
    put = call("put", 0, 1, 0, value=b"a")
    put.outcome = "refused"
    assert judge_registers([put, call("get", 2, 3, 5, value=b"a")])[0].startswith("undone")


def test_the_judge_lets_overlapping_calls_be() -> None:
    assert judge_registers([call("put", 0, 3, 5, value=b"a"), call("get", 1, 2, 0)]) == []


def test_the_judge_knows_that_a_plain_write_may_be_told_it_lost() -> None:
    lost = call("put", 2, 3, 4, value=b"b", superseded=True)
    assert judge_registers([call("put", 0, 1, 5, value=b"a"), lost]) == []
