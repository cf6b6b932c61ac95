"""The judge of rate limits: what it convicts, what it lets pass, and a run of the workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jepsen_lite import history, judging, runner, workloads
from jepsen_lite.checks_ratelimit import check_admitted, check_peeked, check_refused
from jepsen_lite.history import Operation
from jepsen_lite.nemesis import Fault, Plan
from jepsen_lite.runner import Options
from jepsen_lite.verdict import Word, worst
from jepsen_lite.workloads.ratelimits import RateLimits

LOG = {"kind": "log", "amount": 2, "period": 1.0}
WINDOW = {"kind": "window", "amount": 2, "period": 1.0}
BUCKET = {"kind": "bucket", "amount": 2, "period": 1.0, "burst": 3}
SLOTS = {"kind": "slots", "amount": 1, "period": 2.0}


def check(
    began: float,
    outcome: str = "ok",
    promise: dict[str, Any] | None = None,
    *,
    cost: int = 1,
    took: float = 0.01,
    lease: str = "",
) -> Operation:
    error = {"ok": "", "fail": "refused", "unknown": "failed-closed"}[outcome]
    return Operation(
        0,
        "check",
        "k",
        began,
        began + took,
        outcome,
        cost,
        expected=[promise or LOG],
        error=error,
        seen=lease,
    )


def peek(began: float, left: int) -> Operation:
    return Operation(0, "peek", "k", began, began + 0.01, "ok", left)


def release(began: float, lease: str) -> Operation:
    return Operation(0, "release", "k", began, began + 0.01, "ok", lease)


def word(check: Any, *operations: Operation) -> Word:
    found: Word = check(list(operations)).word
    return found


# --- admitted ----------------------------------------------------------------------------


def test_three_of_two_in_a_period_are_convicted() -> None:
    verdict = check_admitted([check(0.5), check(0.9), check(1.4)])
    assert verdict.word is Word.ILLEGAL
    assert "3 admitted, against amount 2" in verdict.reason
    assert len(verdict.evidence[0].operations) == 3
    assert word(check_admitted, check(0.5), check(0.9), check(1.5)) is Word.OK
    assert word(check_admitted, check(0.5), check(0.6, "fail"), check(0.9)) is Word.OK


def test_a_call_convicts_only_where_its_moment_does_not_matter() -> None:
    # It may have been decided when the first was a period old, or before.
    assert word(check_admitted, check(0.5), check(0.9), check(1.4, took=0.3)) is Word.OK
    assert word(check_admitted, check(0.5), check(0.9), check(1.3, took=0.15)) is Word.ILLEGAL


def test_a_stated_excess_is_let_pass_and_one_more_is_not() -> None:
    leased = LOG | {"beyond": 1}
    three = [check(0.5 + n / 10, promise=leased) for n in range(3)]
    assert word(check_admitted, *three) is Word.OK
    assert word(check_admitted, *three, check(0.9, promise=leased)) is Word.ILLEGAL


def test_windows_are_counted_from_the_beginning() -> None:
    around = [check(0.8, promise=WINDOW, cost=2), check(1.1, promise=WINDOW, cost=2)]
    assert word(check_admitted, *around) is Word.OK
    assert word(check_admitted, *around, check(1.9, promise=WINDOW)) is Word.ILLEGAL
    # It may belong to the next window.
    assert word(check_admitted, *around, check(1.995, promise=WINDOW)) is Word.OK


def test_a_bucket_has_its_burst_and_what_flows_in() -> None:
    full = check(1.0, promise=BUCKET, cost=3)
    assert word(check_admitted, full, check(1.5, promise=BUCKET)) is Word.OK
    assert word(check_admitted, full, check(1.4, promise=BUCKET)) is Word.ILLEGAL


def test_a_slot_is_held_until_it_is_released_or_its_time_is_over() -> None:
    first = check(1.0, promise=SLOTS, lease="a")
    assert word(check_admitted, first, check(1.5, promise=SLOTS, lease="b")) is Word.ILLEGAL
    given_back = release(1.4, "a")
    assert word(check_admitted, first, given_back, check(1.5, promise=SLOTS, lease="b")) is Word.OK
    assert word(check_admitted, first, check(3.0, promise=SLOTS, lease="b")) is Word.OK
    # While the release is under way, nobody knows.
    slow = release(1.4, "a")
    slow.ended = 1.9
    assert word(check_admitted, first, slow, check(1.5, promise=SLOTS, lease="b")) is Word.OK


def test_nothing_admitted_proves_nothing() -> None:
    assert word(check_admitted, check(0.5, "fail")) is Word.UNKNOWN


# --- refused -----------------------------------------------------------------------------


def test_a_refusal_with_room_left_is_convicted() -> None:
    assert word(check_refused, check(0.5), check(0.6, "fail")) is Word.ILLEGAL
    assert word(check_refused, check(0.5), check(0.55), check(0.6, "fail")) is Word.OK
    assert word(check_refused, check(0.5), check(0.6, "fail", cost=2)) is Word.OK
    # What was charged a period ago does not count any more.
    assert word(check_refused, check(0.5), check(0.9), check(1.7, "fail")) is Word.ILLEGAL


def test_what_nobody_could_tell_may_have_been_charged_even_later() -> None:
    lost = check(0.5, "unknown", cost=2)
    assert word(check_refused, lost, check(0.6, "fail")) is Word.OK
    assert word(check_refused, lost, check(3.0, "fail")) is Word.OK
    assert word(check_refused, lost, check(9.0, "fail")) is Word.ILLEGAL
    assert word(check_refused, check(0.5, "unknown"), check(0.6, "fail")) is Word.ILLEGAL


def test_refusals_by_windows_buckets_and_slots() -> None:
    used = check(0.5, promise=WINDOW, cost=2)
    assert word(check_refused, used, check(0.9, "fail", WINDOW)) is Word.OK
    assert word(check_refused, used, check(1.1, "fail", WINDOW)) is Word.ILLEGAL
    full = check(0.5, promise=BUCKET, cost=3)
    assert word(check_refused, full, check(0.9, "fail", BUCKET)) is Word.OK
    assert word(check_refused, full, check(2.1, "fail", BUCKET)) is Word.ILLEGAL
    held = check(0.5, promise=SLOTS, lease="a")
    assert word(check_refused, held, check(2.4, "fail", SLOTS)) is Word.OK
    assert word(check_refused, held, check(2.6, "fail", SLOTS)) is Word.ILLEGAL
    given_back = release(0.6, "a")
    assert word(check_refused, held, given_back, check(0.7, "fail", SLOTS)) is Word.ILLEGAL
    given_back.outcome = "unknown"
    assert word(check_refused, held, given_back, check(0.7, "fail", SLOTS)) is Word.OK


def test_of_several_limits_one_is_enough_to_refuse() -> None:
    both = [LOG, WINDOW | {"amount": 1}]
    one, other = check(0.5), check(0.6, "fail")
    one.expected = other.expected = both
    assert word(check_refused, one, other) is Word.OK
    other.began, other.ended = 1.2, 1.21
    assert word(check_refused, one, other) is Word.ILLEGAL


def test_leased_tokens_promise_nothing_of_refusals() -> None:
    leased = LOG | {"beyond": 1}
    assert word(check_refused, check(0.5, "fail", leased)) is Word.UNKNOWN


# --- peeked ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "expected"), [(0, Word.ILLEGAL), (1, Word.OK), (2, Word.ILLEGAL)], ids=["twice", "right", "lost"]
)
@pytest.mark.parametrize("promise", [LOG, WINDOW])
def test_a_peek_finds_what_was_charged_once(promise: dict[str, Any], left: int, expected: Word) -> None:
    assert word(check_peeked, check(0.5, promise=promise), peek(0.6, left)) is expected


def test_a_peek_during_a_call_may_see_it_or_not() -> None:
    for left in (1, 2):
        assert word(check_peeked, check(0.5, took=0.2), peek(0.6, left)) is Word.OK
        assert word(check_peeked, check(0.5, "unknown"), peek(0.6, left)) is Word.OK


# --- runs --------------------------------------------------------------------------------


def _histories(kind: str) -> list[Operation]:
    """A whole history, and how it breaks."""
    good = [check(n / 2 + 0.1) for n in range(8)] + [check(1.4, "fail"), peek(5.5, 2)]
    match kind:
        case "over-admitted":
            good += [check(2.3)]
        case "charged twice":
            good += [check(4.7, "fail")]
        case "forgotten":
            good[-1] = peek(3.8, 2)
    return good


@pytest.mark.parametrize(
    ("kind", "judged"),
    [
        ("good", None),
        ("over-admitted", "admitted"),
        ("charged twice", "refused"),
        ("forgotten", "peeked"),
    ],
)
def test_the_workload_convicts_a_broken_history(kind: str, judged: str | None) -> None:
    verdicts = workloads.make("ratelimit").judge(_histories(kind))
    assert [each.check for each in verdicts if each.word is Word.ILLEGAL] == ([judged] if judged else [])


@pytest.mark.e2e
@pytest.mark.slow
async def test_a_small_run_against_real_processes(tmp_path: Path) -> None:
    options = Options(
        workload="ratelimit", nemesis="none", seconds=6.0, nodes=3, clients=8, rate=80, links="proxy"
    )
    cut = tuple(pair for other in (2, 3) for pair in ((1, other), (other, 1)))
    faults = (
        Fault(1.0, 1.5, "isolate", "cut", pairs=cut),
        Fault(3.5, 0.7, "kill", "kill", nodes=(2,)),
    )
    plan = Plan("none", 1, 3, 6.0, faults)
    outcome = await runner.run(options, plan, tmp_path, say=lambda _text: None)
    told = "\n".join(map(str, outcome.judgement.verdicts))
    assert worst(v for v in outcome.judgement.verdicts if v.check != "deadlines") is Word.OK, told
    counts = {v.check: v.counts for v in outcome.judgement.verdicts}
    assert counts["admitted"]["admitted"] > 30
    assert counts["refused"]["refused"] > 30
    runner.save(tmp_path, options, plan, outcome)
    assert judging.judge_saved(history.load(tmp_path / "history.jsonl")).word is Word.OK


@pytest.mark.e2e
@pytest.mark.slow
async def test_a_limiter_that_forgets_is_convicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: each instance counts for itself, as a limiter without a store would."""

    class Forgetful(RateLimits):
        async def _check(self, seat: Any, rule: str, key: str, *, cost: int) -> Any:
            return await super()._check(seat, rule, f"{key}{seat.process}", cost=cost)

        def judge(self, operations: Any) -> Any:
            for op in operations:
                op.key = f"{op.key.split(':')[0]}:hot"
            return super().judge(operations)

    monkeypatch.setattr(workloads, "make", lambda _name: Forgetful())
    options = Options(workload="ratelimit", nemesis="none", seconds=4.0, nodes=3, clients=8, rate=80)
    outcome = await runner.run(options, Plan("none", 1, 3, 4.0, ()), tmp_path, say=lambda _text: None)
    verdicts = {v.check: v.word for v in outcome.judgement.verdicts}
    assert verdicts["admitted"] is Word.ILLEGAL
