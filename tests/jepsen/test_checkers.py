"""The small checks: each convicts a handwritten lie, passes the truth, and calls an empty run unknown."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from jepsen_lite.checks_append import check_append
from jepsen_lite.checks_counter import check_counter
from jepsen_lite.checks_lock import check_lock
from jepsen_lite.checks_session import (
    check_convergence,
    check_liveness,
    check_lost,
    check_session,
    check_stale,
    check_substance,
    check_ttl,
    check_versions,
)
from jepsen_lite.checks_set import check_set, check_unique
from jepsen_lite.history import Operation
from jepsen_lite.verdict import Verdict, Word

Check = Callable[[Sequence[Operation]], Verdict]
check_ttl_here = partial(check_ttl, skew_s=0.5)


def op(kind: str, began: float, ended: float | None, value: Any = None, **more: Any) -> Operation:
    more.setdefault("outcome", "unknown" if ended is None else "ok")
    return Operation(more.pop("process", 0), kind, more.pop("key", "k"), began, ended, value=value, **more)


def at(moment: float, kind: str, value: Any = None, **more: Any) -> Operation:
    """A quick one."""
    return op(kind, moment, moment + 0.5, value, **more)


CASES: dict[str, tuple[Check, str, list[Operation]]] = {
    # --- set ---
    "set: lost": (check_set, "1 lost", [at(0, "add", 1), at(1, "add", 2), at(2, "read", [1])]),
    "set: unexpected": (check_set, "1 unexpected", [at(0, "add", 1), at(2, "read", [1, 2])]),
    "set: refused": (check_set, "1 unexpected", [at(0, "add", 1, outcome="fail"), at(2, "read", [1])]),
    "set: doubled": (check_set, "1 doubled", [at(0, "add", 1), at(2, "read", [1, 1])]),
    "set: not yet added": (check_set, "1 unexpected", [at(2, "read", [1]), at(3, "add", 1)]),
    "set: fine": (
        check_set,
        "",
        [
            at(0, "add", 1),
            op("add", 0, None, 2),
            op("add", 0, None, 3),
            op("add", 0, 9, 4),
            at(2, "read", [1, 2]),
        ],
    ),
    "set: no read": (check_set, "?", [at(0, "add", 1)]),
    # --- unique ids ---
    "ids: twice": (check_unique, "twice", [at(0, "generate", 7), at(1, "generate", 7)]),
    "ids: fine": (check_unique, "", [at(0, "generate", 7), at(1, "generate", 8), op("generate", 2, None, 8)]),
    "ids: none": (check_unique, "?", [op("generate", 2, None)]),
    # --- counter ---
    "counter: dropped": (check_counter, "outside 5..5", [at(0, "add", 5), at(1, "read", 0)]),
    "counter: doubled": (check_counter, "outside 5..5", [at(0, "add", 5), at(1, "read", 10)]),
    "counter: refused": (check_counter, "outside 0..0", [at(0, "add", 5, outcome="fail"), at(1, "read", 5)]),
    "counter: from the future": (check_counter, "outside 0..0", [at(0, "read", 1), at(1, "incr")]),
    "counter: fall unseen": (check_counter, "outside -3..-3", [at(0, "add", -3), at(1, "read", 0)]),
    "counter: one of two keys": (
        check_counter,
        "outside",
        [at(0, "add", 1, key="a"), at(1, "read", 1, key="b")],
    ),
    "counter: fine": (
        check_counter,
        "",
        [op("add", 0, None, 5), op("add", 0, 9, -2), at(1, "read", 0), at(2, "read", 5), at(3, "read", -2)],
    ),
    "counter: absent is none": (check_counter, "", [at(0, "read", None)]),
    "counter: no read": (check_counter, "?", [at(0, "add", 1), op("read", 1, None)]),
    # --- append ---
    "append: forked": (
        check_append,
        "prefix",
        [at(0, "append", 1), at(0, "append", 2), at(1, "read", [1, 2]), at(2, "read", [2])],
    ),
    "append: invented": (check_append, "never appended", [at(0, "read", [1])]),
    "append: refused": (check_append, "never", [at(0, "append", 1, outcome="fail"), at(1, "read", [1])]),
    "append: twice": (check_append, "twice", [at(0, "append", 1), at(1, "read", [1, 1])]),
    "append: lost": (check_append, "lost", [at(0, "append", 1), at(1, "append", 2), at(2, "read", [1])]),
    "append: stale": (
        check_append,
        "went back",
        [op("append", 0, None, 1), at(1, "read", [1]), at(2, "read", [])],
    ),
    "append: an acknowledged one unseen for a while": (
        check_append,
        "went back",
        [at(0, "append", 1), at(1, "read", []), at(2, "read", [1])],
    ),
    "append: against time": (
        check_append,
        "stands in front",
        [at(0, "append", 1), at(1, "append", 2), at(2, "read", [2, 1])],
    ),
    "append: from the future": (check_append, "before it was", [at(0, "read", [1]), at(1, "append", 1)]),
    "append: fine": (
        check_append,
        "",
        [
            op("append", 0, 9, 1),
            op("append", 0, None, 2),
            at(1, "read", []),
            at(2, "read", [2]),
            at(9, "read", [2, 1]),
        ],
    ),
    "append: no read": (check_append, "?", [at(0, "append", 1)]),
    # --- lock ---
    "lock: token twice": (check_lock, "twice", [op("acquire", 0, 9, 1), op("acquire", 0, 9, 1)]),
    "lock: token fell": (check_lock, "lower token", [at(0, "acquire", 2), at(1, "acquire", 1)]),
    "lock: effect fell": (
        check_lock,
        "overtaken",
        [at(0, "acquire", 1), at(1, "acquire", 2), at(2, "guarded", 2), at(3, "guarded", 1)],
    ),
    "lock: token of nobody": (check_lock, "never given", [at(0, "acquire", 1), at(2, "guarded", 3)]),
    "lock: fine": (
        check_lock,
        "",
        [
            at(0, "acquire", 1),
            op("acquire", 1, None),
            at(2, "acquire", 3),
            at(3, "guarded", 1),
            op("guarded", 4, 9, 3),
            op("guarded", 4, 9, 2),
            at(10, "guarded", 1, outcome="fail"),
            at(11, "release"),
        ],
    ),
    "lock: never held": (check_lock, "?", [at(0, "acquire", outcome="fail")]),
    # --- sessions ---
    "session: reads": (
        check_session,
        "monotonic reads",
        [at(0, "read", version=2), at(1, "read", version=1)],
    ),
    "session: own writes": (
        check_session,
        "your writes",
        [at(0, "write", 1, version=2), at(1, "read", version=1)],
    ),
    "session: writes": (
        check_session,
        "monotonic writes",
        [at(0, "write", 1, version=2), at(1, "delete", version=1)],
    ),
    "session: follow": (
        check_session,
        "follow reads",
        [at(0, "read", version=2), at(1, "write", 1, version=1)],
    ),
    "session: others may": (
        check_session,
        "",
        [at(0, "read", version=2), at(1, "read", version=1, process=1)],
    ),
    "session: other keys may": (
        check_session,
        "",
        [at(0, "read", version=2), at(1, "read", version=1, key="b")],
    ),
    "session: none": (check_session, "?", []),
    "stale": (check_stale, "went back", [at(0, "read", version=2), at(1, "read", version=1, process=1)]),
    "stale: by a write": (check_stale, "went back", [at(0, "write", 1, version=2), at(1, "read", process=1)]),
    "stale: concurrent may": (
        check_stale,
        "",
        [op("write", 0, 9, 1, version=2), at(1, "read"), op("read", 0.5, 9)],
    ),
    "stale: none": (check_stale, "?", [at(0, "write", 1, version=2)]),
    "versions": (check_versions, "two values", [at(0, "write", 1, version=2), at(1, "read", 2, version=2)]),
    "versions: fine": (check_versions, "", [at(0, "delete", 1, version=2), at(1, "read", None, version=2)]),
    "versions: none": (check_versions, "?", [at(0, "read", 1)]),
    # --- after healing ---
    "lost": (check_lost, "is gone", [at(0, "write", 1, version=2), at(1, "read", version=1, final=True)]),
    "lost: unknown may": (check_lost, "", [op("write", 0, None, 1), at(1, "read", version=1, final=True)]),
    "lost: none": (check_lost, "?", [at(0, "write", 1, version=2), at(1, "read", version=1)]),
    "convergence": (
        check_convergence,
        "differ",
        [at(0, "read", 1, version=1, final=True), at(0, "read", 2, version=1, final=True)],
    ),
    "convergence: before healing may": (
        check_convergence,
        "",
        [at(0, "read", 1, version=1), at(0, "read", 2, version=2, final=True)],
    ),
    "convergence: none": (check_convergence, "?", [at(0, "read", 1, version=1)]),
    "liveness": (check_liveness, "1 of 2", [at(0, "read", final=True), op("read", 0, None, final=True)]),
    "liveness: fine": (check_liveness, "", [at(0, "read", final=True), op("read", 0, None)]),
    "liveness: none": (check_liveness, "?", [at(0, "read")]),
    # --- ttl ---
    "ttl: served late": (check_ttl_here, "after its end", [at(0, "write", 1, ttl=1), at(2.1, "read", 1)]),
    "ttl: within skew": (check_ttl_here, "", [at(0, "write", 1, ttl=1), at(1.9, "read", 1)]),
    "ttl: back": (
        check_ttl_here,
        "back after",
        [at(0, "write", 1, ttl=5), at(4.9, "read", None), at(5.45, "read", 1)],
    ),
    "ttl: gone early": (
        check_ttl_here,
        "gone before",
        [at(0, "write", 1, ttl=5), at(1, "read", 1), at(2, "read", None)],
    ),
    "ttl: overwritten may go": (
        check_ttl_here,
        "",
        [at(0, "write", 1, ttl=5), at(1, "read", 1), op("delete", 1, None), at(2, "read", None)],
    ),
    "ttl: gone early, then overwritten": (
        check_ttl_here,
        "gone before",
        [at(0, "write", 1, ttl=5), at(1, "read", None), at(2, "write", 2, ttl=5), at(3, "read", 2)],
    ),
    "ttl: gone early, beside a write whose value lives longer": (
        check_ttl_here,
        "gone before",
        [at(0, "write", 1, ttl=5), op("write", 0.2, None, 2, ttl=5), at(1, "read", None)],
    ),
    "ttl: an unresolved write may have come and ended": (
        check_ttl_here,
        "",
        [at(0, "write", 1, ttl=5), at(1, "read", 1), op("write", 0.2, None, 2, ttl=1), at(2, "read", None)],
    ),
    "ttl: a write at the same time may be the later one": (
        check_ttl_here,
        "",
        [op("write", 0, 2, 1, ttl=9), at(0.5, "write", 2, ttl=1), at(2.5, "read", None), at(0, "read", 1)],
    ),
    "ttl: an older write explains nothing": (
        check_ttl_here,
        "gone before",
        [at(0, "write", 1, ttl=1), at(1, "write", 2, ttl=9), at(3, "read", None)],
    ),
    "ttl: a failed delete explains nothing": (
        check_ttl_here,
        "gone before",
        [at(0, "write", 1, ttl=9), at(1, "delete", outcome="fail"), at(2, "read", None)],
    ),
    "ttl: what never ends is gone": (
        check_ttl_here,
        "gone before",
        [at(0, "write", 1), at(2, "read", None)],
    ),
    "ttl: touched keys are left out": (
        check_ttl_here,
        "?",
        [at(0, "write", 1, ttl=1), at(1, "touch"), at(9, "read", 1)],
    ),
    "ttl: none": (check_ttl_here, "?", [at(0, "write", 1, ttl=1)]),
    # --- substance: never illegal ---
    "substance: nothing": (check_substance, "?", []),
    "substance: no ok of a kind": (check_substance, "?", [at(0, "read"), op("write", 0, None, 1)]),
    "substance: no contention": (
        check_substance,
        "?",
        [at(0, "read"), at(2, "read"), at(0, "read", key="b")],
    ),
    "substance: outside the fault": (
        partial(check_substance, fault_spans=[(0, 1), (5, 6)]),
        "?",
        [at(0, "read"), at(0, "read"), at(9, "read")],
    ),
    "substance: only final ones": (
        check_substance,
        "?",
        [at(0, "read", final=True), at(0, "read", final=True)],
    ),
    "substance: fine": (
        partial(check_substance, fault_spans=[(0, 1), (5, 6)]),
        "",
        [at(0, "read"), op("read", 0, None), at(9, "read", outcome="fail")],
    ),
}
"""name -> check, what it says (empty: ok; "?": unknown; else part of its reason to convict), operations."""


@pytest.mark.parametrize("name", CASES)
def test_each_check_tells_truth_lie_and_nothing_apart(name: str) -> None:
    check, said, operations = CASES[name]
    verdict = check(operations)
    word = {"": Word.OK, "?": Word.UNKNOWN}.get(said, Word.ILLEGAL)
    assert verdict.word is word, verdict
    if word is Word.ILLEGAL:
        assert said in verdict.reason
        assert any(part.operations for part in verdict.evidence), "a conviction shows who saw what"
    if word is Word.UNKNOWN:
        assert verdict.reason
    # The order in the file says nothing: times do.
    assert check(operations[::-1]).word is word


def test_the_set_check_counts() -> None:
    adds = [at(0, "add", 1), at(0, "add", 2), op("add", 0, None, 3), op("add", 0, None, 4)]
    verdict = check_set([*adds, at(1, "read", [1, 3])])
    assert verdict.counts == {
        "attempted": 4,
        "acknowledged": 2,
        "lost": 1,
        "unexpected": 0,
        "recovered": 1,
        "doubled": 0,
    }


def test_long_evidence_is_cut() -> None:
    verdict = check_set([*(at(0, "add", number) for number in range(50)), at(1, "read", [])])
    assert "... and 30 more" in str(verdict)


def counter_by_enumeration(operations: Sequence[Operation], read: Operation) -> bool:
    """The dumb twin: every choice of what may have counted."""
    others = [made for made in operations if made.kind == "add" and made.outcome != "fail"]
    sure: int = sum(made.value for made in others if made.end < read.began)
    sums: set[int] = {sure}
    for made in others:
        if made.end >= read.began and made.began <= read.end:
            sums |= {total + made.value for total in sums}
    value: int = read.value
    return min(sums) <= value <= max(sums)


def test_the_counter_check_agrees_with_trying_every_choice() -> None:
    rng = random.Random(11)
    words = dict.fromkeys(Word, 0)
    for _ in range(3_000):
        operations = []
        for _ in range(rng.randrange(1, 7)):
            began = rng.randrange(8)
            outcome = rng.choice(("ok", "ok", "ok", "fail", "unknown"))
            ended = None if outcome == "unknown" else began + rng.randrange(4)
            operations.append(op("add", began, ended, rng.randrange(-3, 4), outcome=outcome))
        began = rng.randrange(8)
        read = op("read", began, began + rng.randrange(4), rng.randrange(-4, 5))
        verdict = check_counter([*operations, read])
        words[verdict.word] += 1
        assert (verdict.word is Word.OK) == counter_by_enumeration(operations, read), verdict
    assert min(words[Word.OK], words[Word.ILLEGAL]) > 500


def _told_by_an_honest_store(dice: random.Random) -> list[Operation]:
    """Timed writes, deletes and reads of one key, many at once; some writes come late, or never."""
    took: list[tuple[float, float, Operation]] = []
    for number in range(40):
        began = dice.uniform(0, 20)
        ended = began + dice.uniform(0, 1.5)
        is_lost = dice.random() < 0.1
        kind = dice.choice(("write", "write", "read", "read", "read", "delete"))
        ttl = dice.choice((0.0, 1.0, 3.0)) if kind == "write" else 0.0
        told = op(kind, began, None if is_lost else ended, number if kind == "write" else None, ttl=ttl)
        done = dice.choice((began + dice.uniform(0, 5), 99.0)) if is_lost else dice.uniform(began, ended)
        # A value ends by a clock that may be off, counted from some moment of its call.
        end = dice.uniform(began, done) + ttl + dice.uniform(-0.5, 0.5) if ttl else 99.0
        took.append((done, end, told))
    held, until = None, 99.0
    result = []
    for done, end, each in sorted(took, key=lambda one: one[0]):
        if each.kind != "read":
            held, until = each.value, end
        elif each.outcome == "ok":
            result.append(replace(each, value=held if done < until else None))
            continue
        result.append(each)
    return result


def test_no_honest_store_lost_a_value_early() -> None:
    verdicts = [check_ttl_here(_told_by_an_honest_store(random.Random(seed))) for seed in range(300)]
    assert [str(verdict) for verdict in verdicts if verdict.word is Word.ILLEGAL] == []
    assert any(verdict.word is Word.OK for verdict in verdicts)
