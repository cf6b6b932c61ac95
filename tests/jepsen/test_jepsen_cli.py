"""`jepsen-lite`: what it lists, how it judges, what it says when it cannot run, and its exit status."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jepsen_lite import history, judging, main, nemesis, runner, simulated, targets, workloads
from jepsen_lite.history import Operation
from jepsen_lite.judging import Judgement, Span
from jepsen_lite.nemesis import Fault, Plan
from jepsen_lite.runner import Options, Outcome
from jepsen_lite.verdict import Verdict, Word
from jepsen_lite.workloads.gatherings import check_rising, check_sums
from jepsen_lite.workloads.quorums import explained
from jepsen_lite.workloads.registers import check_balances
from jepsen_lite.workloads.workload import KeyPool
from kvstore.sim import faults, judge, run

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def jepsen(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; its exit status and what it said."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main.main(arguments)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def _op(process: int, kind: str, began: float, value: Any = None, **more: Any) -> Operation:
    more = {"key": "k", "ended": began + 1.5, "outcome": "ok", **more}
    return Operation(process, kind, began=began, value=value, **more)


GOOD = [
    _op(0, "write", 0, "a", version=1),
    _op(1, "read", 1, "a", version=1),
    _op(1, "cas", 3, "b", expected="a", version=2),
    _op(2, "read", 9, "b", version=2, final=True),
]
STALE = [*GOOD, _op(2, "read", 12, "a", version=1, final=True)]


def _saved(path: Path, operations: list[Operation], **header: Any) -> str:
    file = path / "history.jsonl"
    history.save(file, {"workload": "register", **header}, operations)
    return str(file)


def test_list_shows_every_workload_nemesis_and_target_with_a_line(jepsen: Run) -> None:
    status, out, _ = jepsen("list")
    assert status == 0
    for table in (workloads.ABOUT, nemesis.ABOUT, targets.ABOUT):
        for name, about in table.items():
            assert f"  {name:11} {about}\n" in out


@pytest.mark.parametrize(
    ("operations", "faults", "status", "word"),
    [
        (GOOD, [], 0, "ok"),
        (STALE, [], 1, "illegal"),
        (GOOD[:1], [], 2, "unknown"),
        (GOOD, [[20.0, 21.0, "a fault that met no operation"]], 2, "unknown"),
    ],
)
def test_check_judges_a_saved_history_and_says_so_by_its_exit_status(
    jepsen: Run, tmp_path: Path, operations: list[Operation], faults: list[Any], status: int, word: str
) -> None:
    got, out, _ = jepsen("check", _saved(tmp_path, operations, faults=faults))
    assert (got, out.splitlines()[-1]) == (status, f"verdict: {word}")


def test_check_shows_who_did_and_saw_what(jepsen: Run, tmp_path: Path) -> None:
    _, out, _ = jepsen("check", _saved(tmp_path, STALE))
    assert 'process 2: read k "a" v1: ok' in out


@pytest.mark.parametrize("workload", workloads.ABOUT)
def test_no_workload_lets_an_empty_history_pass(jepsen: Run, tmp_path: Path, workload: str) -> None:
    path = tmp_path / "history.jsonl"
    history.save(path, {"workload": workload}, [])
    assert jepsen("check", str(path))[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "no-such-file"),
        ("run", "--target", "docker", "--links", "proxy"),
        ("run", "--nemesis", "ring", "--nodes", "3"),
        ("run", "--workload", "queue"),
        ("run", "--time", "nan"),
        ("run", "--rate", "nan"),
        ("run", "--nemesis", "kill", "--dir", "a-file"),
        ("replay", "."),
        ("replay", "no-such-folder"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_never_a_pass(
    jepsen: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    status, out, err = jepsen(*arguments)
    assert status == 2
    assert not out
    assert "jepsen-lite" in err or "Error" in err
    assert "Traceback" not in err


def test_a_folder_in_use_is_refused_before_anything_starts(jepsen: Run, tmp_path: Path) -> None:
    (tmp_path / "n1").mkdir()
    status, _, told = jepsen("run", "-w", "set", "-n", "kill", "--dir", str(tmp_path))
    assert status != 0
    assert told.count("\n") == 1
    assert "is not empty" in told


def test_a_header_without_a_known_workload_is_refused(jepsen: Run, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history.save(path, {"workload": "queue"}, GOOD)
    status, _, err = jepsen("check", str(path))
    assert (status, "queue" in err) == (2, True)


@pytest.mark.parametrize("faults", [5, None, [["a", "b"]], [[1]], [5], [[1.0, True]]])
def test_a_header_whose_faults_are_none_is_refused(jepsen: Run, tmp_path: Path, faults: Any) -> None:
    status, out, err = jepsen("check", _saved(tmp_path, GOOD, faults=faults))
    assert (status, out) == (2, "")
    assert "history.jsonl:1: has faults that are none" in err


@pytest.mark.parametrize(
    ("name", "value"),
    [("workload", "queue"), ("target", "moon"), ("seconds", "x"), ("seconds", math.nan), ("nodes", True)],
)
def test_a_plan_that_is_none_is_refused(jepsen: Run, tmp_path: Path, name: str, value: Any) -> None:
    options = Options(workload="register", nemesis="none")
    plan = nemesis.plan("none", seed=1, nodes=3, seconds=4)
    runner.save(tmp_path, options, plan, Outcome(Judgement([]), [], [], {}))
    file = tmp_path / "plan.json"
    kept = json.loads(file.read_text(encoding="utf-8"))
    kept["options"][name] = value
    file.write_text(json.dumps(kept), encoding="utf-8")
    status, out, err = jepsen("replay", str(tmp_path))
    assert (status, out) == (2, "")
    assert "holds no plan.json of a run" in err


def test_what_breaks_in_jepsen_lite_itself_is_no_verdict(
    jepsen: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(_: history.History) -> Judgement:
        raise ZeroDivisionError

    monkeypatch.setattr(judging, "judge_saved", broken)
    status, out, err = jepsen("check", _saved(tmp_path, GOOD))
    assert (status, out) == (2, "")
    assert "ZeroDivisionError" in err


def test_replay_runs_the_same_plan_again(
    jepsen: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[Options, Plan]] = []

    async def pretended(options: Options, plan: Plan, directory: Path, *, say: runner.Say) -> Outcome:
        del directory, say
        ran.append((options, plan))
        return Outcome(Judgement([Verdict("register", Word.ILLEGAL)]), GOOD, [], {"commit": ""})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run", pretended)
    status, out, _ = jepsen("run", "--workload", "bank", "--nemesis", "kill", "--time", "20", "--seed", "9")
    assert status == 1
    assert (
        "again: jepsen-lite run --target processes --workload bank --nemesis kill --time 20 --seed 9" in out
    )
    assert jepsen("replay", "jepsen-runs/bank-kill-s9")[0] == 1
    assert ran[0] == ran[1]
    assert ran[0][1].faults
    assert sorted(path.name for path in Path("jepsen-runs").iterdir()) == ["bank-kill-s9", "bank-kill-s9.2"]
    kept = json.loads(Path("jepsen-runs/bank-kill-s9/results.json").read_text(encoding="utf-8"))
    assert kept["verdict"] == "illegal"


@pytest.mark.sim
@pytest.mark.slow
def test_target_sim_reports_the_simulators_verdict(jepsen: Run) -> None:
    status, out, _ = jepsen("run", "--target", "sim", "--nemesis", "kill", "--time", "8", "--seed", "3")
    assert "fault: " in out
    assert (status, out.splitlines()[-1]) in [(0, "verdict: ok"), (2, "verdict: unknown")]


@pytest.mark.parametrize("name", ["flaky", "ring", "bridge", "disconnect", "halves+flaky"])
def test_target_sim_refuses_a_nemesis_that_the_simulator_has_not(jepsen: Run, name: str) -> None:
    status, out, err = jepsen("run", "--target", "sim", "--nemesis", name, "--time", "4")
    assert (status, out) == (2, "")
    assert f"has no nemesis {name.removeprefix('halves+')}; it has none, halves, " in err


def test_target_sim_knows_what_each_part_of_a_nemesis_stands_for(jepsen: Run) -> None:
    assert simulated.parts_of("halves+pause") == {"halves": ("halves",), "pause": ("pause",)}
    assert simulated.parts_of("all") == {"all": faults.KINDS}
    for name in simulated.NAMES:
        assert set(simulated.parts_of(name)[name]) <= set(faults.KINDS)
    assert f"nemeses of the target sim: {', '.join(simulated.NAMES)}\n" in jepsen("list")[1]


@pytest.mark.parametrize("seed", range(5))
def test_the_simulator_has_every_kind_that_was_named(seed: int) -> None:
    named = ("halves", "slow")
    one, again = (faults.plan(seed, nodes=5, seconds=8, kinds=named, swarm=False) for _ in range(2))
    assert one == again
    assert {fault.kind for fault in one.faults} == set(named)


@pytest.mark.parametrize(
    ("kinds", "violations", "word"),
    [
        (("halves", "pause"), [], Word.OK),
        (("pause",), [], Word.UNKNOWN),
        (("pause",), ["lost"], Word.ILLEGAL),
    ],
)
def test_target_sim_passes_nothing_for_a_fault_that_it_never_met(
    monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...], violations: list[str], word: Word
) -> None:
    def pretended(seed: int, shape: run.Shape) -> run.Outcome:
        assert (shape.kinds, shape.swarm) == (("halves", "pause"), False)
        met = faults.Plan(kinds, tuple(faults.Fault(1.0, 1.0, kind) for kind in kinds))
        verdict = judge.Verdict(violations)
        return run.Outcome(seed, verdict, "", met, 9, 9, 4.0, [], [], [])

    monkeypatch.setattr(run, "simulate", pretended)
    told = simulated.simulate(Options(workload="register", nemesis="halves+pause"))
    assert (told.word, told.text.splitlines()[-1]) == (word, f"verdict: {word}")
    assert ("no fault of halves was drawn" in told.text) == ("halves" not in kinds)


# --- what only a run can tell, on made-up runs ---------------------------------------------


CUT = Fault(0, 10, "halves", "cut", pairs=((1, 2), (2, 1), (1, 3), (3, 1)))


def test_each_side_of_a_partition_has_its_figures() -> None:
    spans = [Span(0.0, 10.0, CUT)]
    operations = [
        _op(0, "read", 1, node="n2"),  # too early: the first two seconds are for noticing
        *(_op(n, "read", 3, node="n2") for n in range(9)),
        _op(9, "read", 3, node="n3", outcome="fail", error="no_majority"),
        _op(10, "read", 4, node="n1", ended=5.25, outcome="fail", error="no_majority"),
        _op(11, "read", 9.9, node="n1"),  # answered when the partition was over
        _op(12, "read", 5, node=""),  # asked whom it liked
    ]
    got = judging.availability(
        operations, spans, {"k": [1, 2, 3]}, {"n1": 1, "n2": 2, "n3": 3}, linearizable=True
    )
    assert got == {
        "majority_served": 0.9,
        "majority_asked": 10,
        "minority_served": 0.0,
        "minority_asked": 1,
        "minority_refused_after_s_max": 1.25,
    }


@pytest.mark.parametrize(
    ("node", "owners", "side"),
    [
        (1, (1, 2, 3), "minority"),
        (2, (1, 2, 3), "majority"),
        (4, (1, 2, 3), "majority"),  # reaches all of them, though 1 does not reach the others
        (5, (1, 2, 3), ""),  # reaches only 3, which may answer for it
        (6, (1, 2, 3), ""),  # clients do not reach it
    ],
)
def test_the_side_of_a_node_depends_on_who_owns_the_key(
    node: int, owners: tuple[int, ...], side: str
) -> None:
    cut = frozenset(CUT.pairs) | {(5, 1), (2, 5), (0, 6)}
    assert judging.side_of(node, owners, cut) == side


def test_a_node_that_ended_by_itself_makes_the_run_illegal() -> None:
    assert judging.check_nodes(["n1 ended by itself, status 70"]).word is Word.ILLEGAL
    assert judging.check_nodes([]).word is Word.OK


def test_a_client_that_broke_makes_the_run_illegal() -> None:
    assert judging.check_clients(["AssertionError: "]).word is Word.ILLEGAL
    assert judging.check_clients([]).word is Word.OK


def test_a_cluster_that_does_not_come_back_makes_the_run_illegal() -> None:
    assert judging.check_recovery(None, 20).word is Word.ILLEGAL
    assert judging.check_recovery(1.0, 20).word is Word.OK


def test_a_call_past_its_deadline_makes_the_run_unknown() -> None:
    late = _op(0, "write", 0, "a", ended=4.0, outcome="unknown", error="deadline_exceeded")
    assert judging.check_deadlines([late], 2.0).word is Word.UNKNOWN
    late.error += ", asked after"
    assert judging.check_deadlines([late], 2.0).word is Word.OK


# --- checks that stand with their workload ---------------------------------------------------


def test_an_absence_is_explained_by_a_delete_that_may_have_been_there() -> None:
    write, delete = _op(0, "write", 0, "a", version=5), _op(0, "delete", 2, version=9)
    read = _op(1, "read", 4)
    judge = workloads.make("quorum").judge
    assert explained([write, delete, read])[2].version == 9
    assert not [v for v in judge([write, delete, read]) if v.word is Word.ILLEGAL]
    late = _op(0, "delete", 8, version=9)
    assert [v.check for v in judge([write, read, late]) if v.word is Word.ILLEGAL] == ["stale-reads"]
    maybe = _op(0, "delete", 2, outcome="unknown")
    assert not [v for v in judge([write, maybe, read]) if v.word is Word.ILLEGAL]


def test_a_lost_write_at_quorum_is_convicted() -> None:
    lost = [_op(0, "write", 0, "a", version=5), _op(1, "read", 4, final=True)]
    wrong = {v.check for v in workloads.make("quorum").judge(lost) if v.word is Word.ILLEGAL}
    assert wrong == {"lost-writes", "stale-reads"}


def test_an_overdrawn_account_is_convicted() -> None:
    fine, bad = (_op(0, "read", 0, json.dumps({"balance": b, "by": "x"}), version=1) for b in (0, -1))
    assert check_balances([fine]).word is Word.OK
    assert check_balances([fine, bad]).word is Word.ILLEGAL


def test_a_later_id_that_is_not_greater_is_convicted() -> None:
    first, second = _op(0, "generate", 0, 7), _op(1, "generate", 5, 6)
    assert check_rising([first, second]).word is Word.ILLEGAL
    second.value = 8
    assert check_rising([first, second]).word is Word.OK


def test_an_element_that_was_there_before_it_was_added_is_convicted() -> None:
    odd = _op(0, "add", 0, "e", outcome="fail", error="already there")
    words = [v.word for v in workloads.make("set").judge([odd, _op(1, "read", 5, [])])]
    assert Word.ILLEGAL in words


def test_an_increment_that_answers_an_impossible_sum_is_convicted() -> None:
    adds = [_op(n, "add", n * 3, 1, seen=seen, observed=True, version=n + 1) for n, seen in enumerate((1, 1))]
    read = _op(5, "read", 20, 2, version=2)
    wrong = [v.check for v in workloads.make("counter").judge([*adds, read]) if v.word is Word.ILLEGAL]
    assert wrong == ["sums", "versions"]
    adds[1].seen = 2
    assert not [v for v in workloads.make("counter").judge([*adds, read]) if v.word is not Word.OK]


def test_an_increment_of_unknown_outcome_may_stand_between_two_sums() -> None:
    known = [
        _op(n, "add", n * 3, 1, seen=seen, observed=True, version=n + 1) for n, seen in enumerate((1, 5))
    ]
    assert check_sums(known).word is Word.ILLEGAL
    assert check_sums([*known, _op(3, "add", 1, 3, outcome="unknown")]).word is Word.OK


def test_keys_are_left_after_so_many_uses() -> None:
    pool, dice = KeyPool("k", active=2, uses_max=5, finals_max=3), random.Random(1)
    picked = [pool.pick(dice) for _ in range(40)]
    assert max(picked.count(key) for key in pool.keys) == 5
    assert pool.finals() == pool.keys[-3:]
    assert len(pool.keys) >= 8
