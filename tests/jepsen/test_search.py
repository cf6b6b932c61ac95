"""The search, what it says when it cannot tell, what it shows when it convicts; and history files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from jepsen_lite import foreign, history, search
from jepsen_lite.history import HistoryError, Operation
from jepsen_lite.models import AppendText, MultiRegister, Mutex, Register
from jepsen_lite.verdict import Verdict, Word, guarded, worst

KNOSSOS = Register(0, failed_cas_constrains=False, nil_reads_constrain=False)


def op(kind: str, began: float, ended: float | None, value: Any = None, **more: Any) -> Operation:
    more.setdefault("outcome", "unknown" if ended is None else "ok")
    return Operation(more.pop("process", 0), kind, more.pop("key", "k"), began, ended, value=value, **more)


def word(operations: list[Operation], model: Any) -> Word:
    return search.check(operations, model).word


def test_a_failed_cas_constrains_or_not_by_the_model() -> None:
    """Trap 2."""
    operations = [op("write", 0, 1, 1), op("cas", 2, 3, 2, expected=1, outcome="fail")]
    assert word(operations, Register()) is Word.ILLEGAL
    assert word(operations, Register(failed_cas_constrains=False)) is Word.OK
    operations[1].error = "not_ready"
    assert word(operations, Register()) is Word.OK, "what was refused before it looked says nothing"


def test_a_read_of_nil_constrains_or_not_by_the_model() -> None:
    operations = [op("write", 0, 1, 1), op("read", 2, 3, None)]
    assert word(operations, Register()) is Word.ILLEGAL
    assert word(operations, KNOSSOS) is Word.OK


def test_what_touches_is_concurrent() -> None:
    """Trap 4."""
    assert word([op("write", 0, 1, 1), op("read", 1, 2, None)], Register()) is Word.OK
    assert word([op("write", 0, 1, 1), op("read", 1.001, 2, None)], Register()) is Word.ILLEGAL


def test_an_unknown_operation_may_take_effect_late_or_never() -> None:
    late = [op("write", 0, None, 1), op("read", 1, 2, None), op("read", 3, 4, 1)]
    assert word(late, Register()) is Word.OK
    assert word(late[:2], Register()) is Word.OK
    assert word([*late, op("read", 5, 6, None)], Register()) is Word.ILLEGAL


def test_an_unknown_operation_with_an_end_is_still_open() -> None:
    gave_up = op("write", 0, 1, 1, outcome="unknown")
    assert word([gave_up, op("read", 2, 3, None), op("read", 4, 5, 1)], Register()) is Word.OK


def test_many_unknown_writes_that_nobody_saw_cost_nothing() -> None:
    """Trap 5, where it can be helped: k open writes would cost 2^k."""
    operations = [op("write", 0, None, 100 + number) for number in range(60)]
    operations += [op("write", 1, 2, 1), op("read", 3, 4, 2)]
    verdict = search.check(operations, Register(), 1_000)
    assert verdict.word is Word.ILLEGAL


def test_budget_spent_is_unknown() -> None:
    """Trap 8."""
    operations = [op("write", 0, 100, number % 3, process=number) for number in range(12)]
    operations += [op("read", 101, 102, 7)]
    verdict = search.check(operations, Register(), 50)
    assert verdict.word is Word.UNKNOWN
    assert "50 steps" in verdict.reason
    assert search.check_keys(operations * 1, Register(), 50).word is Word.UNKNOWN
    assert word(operations, Register()) is Word.ILLEGAL


def test_long_histories_remember_only_what_is_not_done() -> None:
    """Trap 7: with memos of the whole history this would be quadratic."""
    operations = [op("write", number, number + 1.5, number % 5) for number in range(20_000)]
    assert search.search(operations, Register(), 200_000)[0] is Word.OK


def test_a_conviction_shows_the_few_operations_that_make_it() -> None:
    """Trap 11."""
    rng = random.Random(3)
    operations = []
    for number in range(200):
        operations.append(op("write", number, number + 0.9, number, process=1))
        operations.append(op("read", number + 0.9 + rng.random() / 10, number + 1.5, number, process=2))
    stale = operations[301]
    stale.value = 140
    verdict = search.check(operations, Register())
    assert verdict.word is Word.ILLEGAL
    (evidence,) = verdict.evidence
    assert stale in evidence.operations
    assert 2 <= len(evidence.operations) <= 4, verdict
    assert word(list(evidence.operations), Register()) is Word.ILLEGAL


def test_the_read_to_blame_is_in_what_is_shown() -> None:
    text = (Path(__file__).parent / "oracles/knossos/cas-register/bad/rethink-fail-minimal.edn").read_text()
    verdict = search.check(foreign.parse_events(text), KNOSSOS)
    (evidence,) = verdict.evidence
    assert [(shown.kind, shown.value) for shown in evidence.operations] == [("read", 3)]


def test_keys_are_checked_apart_and_the_illegal_one_is_named() -> None:
    operations = [op("write", 0, 1, 1, key="a"), op("write", 0, 1, 1, key="b"), op("write", 2, 3, 1, key="b")]
    assert search.check_keys(operations, Register()).word is Word.OK
    verdict = search.check_keys([*operations, op("read", 4, 5, None, key="b")], Register())
    assert (verdict.word, verdict.key) == (Word.ILLEGAL, "b")
    verdict = search.check_keys([*operations, op("read", 4, 5, None, key="a")], Register())
    assert (verdict.word, verdict.key, verdict.check) == (Word.ILLEGAL, "a", "zones")


def test_absences_are_told_apart_by_version() -> None:
    deletes = [op("delete", 0, 1, version=1), op("write", 2, 3, 1, version=2), op("delete", 4, 5, version=3)]
    assert word([*deletes, op("read", 6, 7, None, version=3)], Register()) is Word.OK
    assert word([*deletes, op("read", 6, 7, None, version=1)], Register()) is Word.ILLEGAL
    again = [*deletes, op("cas", 6, 7, 2, expected=None, expected_version=3, version=4)]
    assert word([*again, op("read", 8, 9, 2, version=4)], Register()) is Word.OK
    again[-1].expected_version = 1
    assert word(again, Register()) is Word.ILLEGAL
    again[-1].expected_version = 2
    assert word(again, Register()) is Word.ILLEGAL


def test_a_failed_cas_says_what_it_found_by_value_or_version() -> None:
    start = [op("write", 0, 1, 1, version=1), op("write", 2, 3, 2, version=2)]
    seen = op("cas", 4, 5, 9, expected=7, outcome="fail", version=1)
    assert word([*start, seen], Register()) is Word.ILLEGAL
    seen.version = 2
    assert word([*start, seen], Register()) is Word.OK
    seen.observed, seen.seen = True, 1
    assert word([*start, seen], Register()) is Word.ILLEGAL


def test_multi_register() -> None:
    model = MultiRegister({"x": 0, "y": 0})
    both = op("txn", 0, 1, [["write", "x", 1], ["write", "y", 1]])
    assert word([both, op("txn", 2, 3, [["read", "x", 1], ["read", "y", 1]])], model) is Word.OK
    assert word([both, op("txn", 0, 1, [["read", "x", 1], ["read", "y", 0]])], model) is Word.ILLEGAL
    assert word([both, op("txn", 0, None, [["read", "x", 1], ["read", "y", 0]])], model) is Word.OK


def test_mutex() -> None:
    model = Mutex()
    assert word([op("acquire", 0, 1), op("release", 2, 3), op("acquire", 4, 5)], model) is Word.OK
    assert word([op("acquire", 0, 1), op("acquire", 2, 3)], model) is Word.ILLEGAL
    assert word([op("acquire", 0, 1), op("release", 1, None), op("acquire", 2, 3)], model) is Word.OK


def test_append_text() -> None:
    model = AppendText()
    appends = [op("write", 0, 1, "a"), op("append", 2, 9, "b"), op("append", 2, 9, "c")]
    assert word([*appends, op("read", 10, 11, "acb")], model) is Word.OK
    assert word([*appends, op("read", 10, 11, "acb"), op("read", 12, 13, "abc")], model) is Word.ILLEGAL


def test_models_refuse_what_they_do_not_know() -> None:
    for model in (Register(), AppendText()):
        with pytest.raises(ValueError, match="knows no 'jump'"):
            search.check([op("jump", 0, 1)], model)


# --- verdicts ---------------------------------------------------------------------------


def test_the_worst_word_counts_and_nothing_checked_is_unknown() -> None:
    ok, unknown, bad = (Verdict("x", word) for word in Word)
    assert worst([ok, unknown, bad]) is Word.ILLEGAL
    assert worst([ok, unknown]) is Word.UNKNOWN
    assert worst([ok]) is Word.OK
    assert worst([]) is Word.UNKNOWN


def test_a_check_that_breaks_is_unknown() -> None:
    verdict = guarded("x", lambda: search.check([op("jump", 0, 1)], Register()))
    assert verdict.word is Word.UNKNOWN
    assert "jump" in verdict.reason
    assert guarded("x", lambda: search.check([], Register())).word is Word.OK


def test_a_verdict_can_be_written_and_read() -> None:
    verdict = search.check([op("write", 0, 1, 1), op("read", 2, 3, 5, node="n1", error="odd")], Register())
    assert json.loads(json.dumps(verdict.as_json()))["verdict"] == "illegal"
    assert "read k 5: ok (odd)" in str(verdict)
    assert " at n1" in str(verdict)


# --- history files ----------------------------------------------------------------------


def test_a_history_survives_its_file(tmp_path: Path) -> None:
    operations = [
        op("write", 0, 1, {"deep": [1, None, "ü"]}, version=7, node="n2", ttl=1.5),
        op("cas", 1, 2, 0, expected=False, outcome="fail", observed=True, seen=None, final=True),
        op("read", 2, None, 0.0),
        op("read", 3, 4, False),
    ]
    path = tmp_path / "history.jsonl"
    history.save(path, {"workload": "register", "seed": 5}, operations)
    loaded = history.load(path)
    assert loaded.header == {"jepsen-lite": 1, "workload": "register", "seed": 5}
    assert loaded.operations == operations
    assert [type(made.value) for made in loaded.operations] == [dict, int, float, bool]


GOOD = '{"process":1,"kind":"read","key":"k","began":1,"ended":2,"outcome":"ok"}'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"process":1,"kind":"re', "is not JSON"),
        ("[1]", "is not an object"),
        ("[" * 100_000, "is not JSON"),
        (GOOD.replace('"kind":"read",', ""), "has no 'kind'"),
        (GOOD.replace("kind", "colour"), "has no 'kind'"),
        (GOOD[:-1] + ',"colour":1}', "unknown field 'colour'"),
        (GOOD.replace('"process":1', '"process":"p"'), "'process' cannot be"),
        (GOOD.replace('"process":1', '"process":true'), "'process' cannot be"),
        (GOOD.replace('"ok"', '"info"'), "outcome 'info'"),
        (GOOD.replace('"ended":2', '"ended":0'), "before it began"),
        (GOOD.replace('"ended":2', '"ended":NaN'), "before it began"),
        (GOOD.replace('"began":1', '"began":Infinity'), "not a moment"),
        (GOOD.replace('"ended":2', '"ended":null'), "ok without an end"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"jepsen-lite": 1}\n' + GOOD + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(HistoryError) as raised:
        history.load(path)
    assert str(raised.value).startswith(f"{path}:3: ")
    assert problem in str(raised.value)
    assert "; " in str(raised.value), "a remedy follows"


@pytest.mark.parametrize("content", [b"", b'{"jepsen-lite": 2}\n', b"{}\n", b"\xff\xfe\n", b"nonsense\n"])
def test_a_file_that_is_no_history_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(content)
    with pytest.raises(HistoryError, match=r"history\.jsonl:[01]: "):
        history.load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="cannot be read"):
        history.load(tmp_path / "none")


# --- formats of others --------------------------------------------------------------------


def test_edn_of_every_shape() -> None:
    text = r"; note" "\n" r'{:a [1 -2.5 nil true false], "b\"c" (:d e) :s #{1} :n #[2]}'
    (value,) = foreign.parse_edn(text)
    assert value == {"a": [1, -2.5, None, True, False], 'b"c': ["d", "e"], "s": [1], "n": [2]}


@pytest.mark.parametrize("text", ["[1", "1]", "[1}", '"open', "{:a}"])
def test_bad_edn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        list(foreign.parse_edn(text))


@pytest.mark.parametrize(
    "text",
    ["{:process 1 :type :ok :f :read}", "{:process 1 :type :invoke :f :cas :value 3}"],
)
def test_events_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(foreign.ForeignError):
        foreign.parse_events(text)


def test_a_process_used_again_leaves_its_open_operation_open() -> None:
    """Trap 3."""
    text = "[{:process 1 :type :invoke :f :write :value 1} {:process 1 :type :invoke :f :read :value nil}"
    first, second = foreign.parse_events(text + "{:process 1 :type :ok :f :read :value 0}]")
    assert (first.outcome, first.ended) == ("unknown", None)
    assert (second.outcome, second.value) == ("ok", 0)
