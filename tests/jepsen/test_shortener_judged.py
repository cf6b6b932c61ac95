"""The judge of short links: what it convicts, what it lets pass, and a run of the workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from jepsen_lite import history, judging, runner, workloads
from jepsen_lite.checks_shortener import check_claims, check_clicks, check_lives, check_targets
from jepsen_lite.history import Operation
from jepsen_lite.nemesis import Fault, Plan
from jepsen_lite.runner import Options
from jepsen_lite.verdict import Verdict, Word, worst
from kvstore.apps.shortener.journal import Journal

Check = Callable[[Sequence[Operation]], Verdict]


def op(kind: str, key: str, at: float, value: Any = None, **more: Any) -> Operation:
    more = {"outcome": "ok", "ended": at + 0.01, **more}
    return Operation(0, kind, key, at, value=value, **more)


def make(at: float, url: str, code: str, *, alias: str = "new", **more: Any) -> Operation:
    return op("make", alias, at, url, seen=code, observed=True, **more)


def lost(at: float, url: str, *, alias: str = "new", **more: Any) -> Operation:
    return op("make", alias, at, url, outcome="unknown", **more)


def missed(at: float, code: str, error: str = "no-such-link", **more: Any) -> Operation:
    return op("resolve", code, at, outcome="fail", error=error, **more)


def taken(at: float, url: str) -> Operation:
    return op("make", "mine", at, url, outcome="fail", error="alias-taken")


def click(at: float, code: str = "c", service: str = "s", **more: Any) -> Operation:
    return op("click", code, at, "u", expected=service, **more)


MADE = make(1.0, "u", "c")
SHORT = make(1.0, "u", "c", ttl=2.0)


@pytest.mark.parametrize(
    ("check", "operations"),
    [
        (check_targets, [MADE, make(1.0, "v", "d"), op("resolve", "c", 2.0, "v")]),
        (check_targets, [MADE, op("click", "c", 2.0, "nobody asked for this")]),
        (check_targets, [op("resolve", "c", 0.5, "u"), MADE]),
        (check_targets, [make(1.0, "u", "c", outcome="fail"), op("resolve", "c", 2.0, "u")]),
        (check_targets, [lost(1.0, "u", alias="mine"), op("resolve", "other", 2.0, "u")]),
        (
            check_targets,
            [
                lost(1.0, "u", alias="mine"), lost(1.0, "v", alias="mine"),
                op("resolve", "mine", 2.0, "u"), op("resolve", "mine", 3.0, "v"),
            ],
        ),
        (check_lives, [MADE, missed(2.0, "c")]),
        (check_lives, [MADE, missed(2.0, "c", "link-gone")]),
        (check_lives, [SHORT, missed(2.5, "c", "link-gone")]),
        (check_lives, [SHORT, op("resolve", "c", 3.5, "u")]),
        (check_lives, [MADE, missed(2.0, "c"), op("unmake", "c", 3.0)]),
        (check_lives, [MADE, op("unmake", "c", 2.0), op("gone", "c", 9.0, "u")]),
        (check_claims, [make(1.0, "u", "mine", alias="mine"), make(1.0, "v", "mine", alias="mine")]),
        (check_claims, [make(1.0, "u", "mine", alias="mine"), make(1.0, "v", "mine")]),
        (check_claims, [make(1.0, "u", "c"), make(2.0, "u", "d")]),
        (check_claims, [make(1.0, "u", "other", alias="mine")]),
        (check_claims, [MADE, *(taken(2.0, f"u{n}") for n in range(9))]),
        (check_claims, [MADE, taken(2.0, "u1"), make(3.0, "v", "mine", alias="mine")]),
        (check_clicks, [click(1.0), op("total", "c", 2.0, 2)]),
        (check_clicks, [click(1.0), op("total", "c", 0.5, 1)]),
        (check_clicks, [click(1.0), click(2.0), op("total", "c", 9.0, 1, final=True)]),
        (
            check_clicks,
            [click(1.0, service="other"), op("crash", "s", 2.0), op("total", "c", 9.0, 0, final=True)],
        ),
        (
            check_clicks,  # one portion of a flush, and no more
            [
                click(1.0), op("flush", "s", 2.0), click(3.0), op("flush", "s", 4.0), op("crash", "s", 5.0),
                op("total", "c", 9.0, 0, final=True),
            ],
        ),
    ],
)  # fmt: skip
def test_broken_histories_are_convicted(check: Check, operations: list[Operation]) -> None:
    verdict = check(operations)
    assert verdict.word is Word.ILLEGAL, verdict
    assert verdict.evidence


@pytest.mark.parametrize(
    ("check", "operations"),
    [
        (check_targets, [MADE, op("resolve", "c", 2.0, "u"), missed(3.0, "c")]),
        (check_targets, [lost(1.0, "u"), op("resolve", "c", 2.0, "u")]),
        (check_targets, [lost(1.0, "u", alias="mine"), op("resolve", "mine", 1.005, "u")]),
        (check_lives, [MADE, missed(1.005, "c"), op("click", "c", 2.0, "u")]),
        (check_lives, [MADE, missed(2.0, "c", "no_majority")]),
        (check_lives, [MADE, op("unmake", "c", 2.0, outcome="unknown"), missed(2.005, "c")]),
        (check_lives, [MADE, op("unmake", "c", 2.0), missed(3.0, "c"), op("gone", "c", 9.0)]),
        (check_lives, [SHORT, missed(3.0, "c", "link-gone"), op("resolve", "c", 2.9, "u")]),
        # The first request, of which nobody heard, began the time of the link.
        (check_lives, [lost(0.0, "u", ttl=2.0), SHORT, missed(2.1, "c", "link-gone")]),
        (check_claims, [make(1.0, "u", "c"), make(2.0, "u", "c"), lost(1.0, "v", alias="c")]),
        (check_claims, [make(1.0, "u", "mine", alias="mine"), taken(1.005, "v"), taken(0.995, "w")]),
        (check_claims, [MADE, lost(1.0, "u", alias="mine"), taken(2.0, "v")]),
        (check_claims, [make(1.0, "u", "mine"), taken(2.0, "v")]),
        (check_clicks, [click(1.0), click(2.0), op("total", "c", 1.5, 1), op("total", "c", 9, 2, final=True)]),  # noqa: E501
        (check_clicks, [click(1.0), op("total", "c", 2.0, 0), op("total", "c", 9.0, 1, final=True)]),
        (check_clicks, [click(1.0), op("crash", "s", 2.0), op("total", "c", 9.0, 0, final=True)]),
        (
            check_clicks,
            [
                click(1.0), op("flush", "s", 2.0), click(3.0), op("flush", "s", 4.0), op("crash", "s", 5.0),
                op("total", "c", 9.0, 1, final=True),
            ],
        ),
    ],
)  # fmt: skip
def test_what_may_happen_is_let_pass(check: Check, operations: list[Operation]) -> None:
    assert check(operations).word is Word.OK, check(operations)


@pytest.mark.parametrize("check", [check_targets, check_lives, check_claims, check_clicks])
def test_nothing_judged_is_nothing_known(check: Check) -> None:
    assert check([]).word is Word.UNKNOWN


def test_the_workload_is_in_the_table_and_judges_without_a_run() -> None:
    assert "shortener" in workloads.ABOUT
    verdicts = workloads.make("shortener").judge([MADE, op("resolve", "c", 2.0, "v")])
    assert {verdict.check for verdict in verdicts} == {"targets", "lives", "claims", "clicks"}
    assert worst(verdicts) is Word.ILLEGAL


@pytest.mark.e2e
@pytest.mark.slow
async def test_a_run_with_a_cut_and_a_kill_is_ok_and_can_be_judged_again(tmp_path: Path) -> None:
    options = Options(
        workload="shortener", nemesis="none", seconds=8.0, nodes=3, clients=6, rate=60, links="proxy"
    )
    pairs = ((1, 2), (2, 1), (1, 3), (3, 1))
    faults = (
        Fault(1.5, 1.5, "isolate", "cut", pairs=pairs),
        Fault(4.5, 0.7, "kill", "kill", nodes=(2,)),
    )
    plan = Plan("none", 1, 3, options.seconds, faults)
    outcome = await runner.run(options, plan, tmp_path, say=lambda _text: None)
    told = "\n".join(map(str, outcome.judgement.verdicts))
    # A busy machine may leave too little done in so short a time; nothing may be wrong.
    assert (
        worst(v for v in outcome.judgement.verdicts if v.check not in ("deadlines", "substance")) is Word.OK
    ), told
    assert {op.kind for op in outcome.operations} >= {"make", "click", "flush", "resolve", "total"}
    runner.save(tmp_path, options, plan, outcome)
    again = judging.judge_saved(history.load(tmp_path / "history.jsonl"))
    assert [v.word for v in again.verdicts if v.check == "clicks"] == [Word.OK]


@pytest.mark.e2e
@pytest.mark.slow
async def test_a_service_that_counts_twice_is_convicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: each record is written twice."""
    once = Journal.append

    async def twice(self: Journal, record: bytes) -> None:
        await once(self, record)
        await once(self, record)

    monkeypatch.setattr(Journal, "append", twice)
    options = Options(workload="shortener", nemesis="none", seconds=5.0, nodes=3, clients=6, rate=60)
    outcome = await runner.run(options, Plan("none", 1, 3, 5.0, ()), tmp_path, say=lambda _text: None)
    verdicts = {v.check: v.word for v in outcome.judgement.verdicts}
    assert verdicts["clicks"] is Word.ILLEGAL
    assert verdicts["targets"] is verdicts["lives"] is verdicts["claims"] is Word.OK
