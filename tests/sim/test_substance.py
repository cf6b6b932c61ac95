"""When a run of the simulator proves nothing: never a pass, and never by chance."""

from __future__ import annotations

import pytest

from kvstore.sim.judge import Operation, judge_substance
from kvstore.sim.run import simulate

pytestmark = pytest.mark.sim


def op(kind: str, outcome: str = "ok", began: float = 1.0, *, final: bool = False) -> Operation:
    """A call of half a second."""
    return Operation(1, kind, "k", "quorum", began, 3.0, outcome=outcome, ended=began + 0.5, final=final)


def test_a_kind_that_never_succeeded_though_it_was_asked_often() -> None:
    sound = [op("get"), op("put")]
    assert judge_substance([*sound, *[op("delete", "refused")] * 10], []) == [
        "empty: none of 10 delete succeeded"
    ]
    assert judge_substance([*sound, *[op("delete", "refused")] * 9, op("delete")], []) == []


def test_a_kind_that_was_asked_for_a_few_times_may_fail_by_chance() -> None:
    assert judge_substance([op("get"), op("put"), *[op("delete", "refused")] * 9], []) == []
    assert judge_substance([op("get"), op("cas", "lost")], []) == []


def test_nothing_read_or_nothing_written_is_empty() -> None:
    empty = ["empty: nothing was read, or nothing written"]
    assert judge_substance([], []) == empty
    assert judge_substance([op("get")], []) == empty
    assert judge_substance([op("put")], []) == empty
    assert judge_substance([op("get"), op("put", final=True)], []) == empty
    assert judge_substance([op("get"), op("put", "unresolved")], []) == empty


def test_no_call_among_the_faults_is_empty() -> None:
    calls = [op("get", began=1.0), op("put", began=2.0)]
    assert judge_substance(calls, [(3.0, 4.0)]) == ["empty: no operation while a fault lasted"]
    assert judge_substance(calls, [(3.0, 4.0), (2.4, 4.0)]) == []


@pytest.mark.slow
def test_a_seed_in_which_nobody_happened_to_delete() -> None:
    outcome = simulate(2378244)
    assert outcome.verdict.word == "ok", outcome.verdict
