"""The zone check: what it convicts, what it declines, and that it agrees with the search."""

from __future__ import annotations

import random
from typing import Any

import pytest

from jepsen_lite import search, zones
from jepsen_lite.history import Operation
from jepsen_lite.models import Register
from jepsen_lite.verdict import Word

INF = float("inf")


def op(kind: str, began: float, ended: float, value: Any = None, **more: Any) -> Operation:
    """An operation on the only key; without an end its outcome is unknown."""
    is_open = ended == INF
    more.setdefault("outcome", "unknown" if is_open else "ok")
    return Operation(0, kind, "k", began, None if is_open else ended, value=value, **more)


def write(began: float, ended: float, value: Any, **more: Any) -> Operation:
    return op("write", began, ended, value, **more)


def read(began: float, ended: float, value: Any, **more: Any) -> Operation:
    return op("read", began, ended, value, **more)


def cas(began: float, ended: float, expected: Any, value: Any, **more: Any) -> Operation:
    return op("cas", began, ended, value, expected=expected, **more)


def failed(began: float, ended: float, expected: Any, value: Any, seen: Any, version: int = 0) -> Operation:
    return cas(began, ended, expected, value, outcome="fail", observed=True, seen=seen, version=version)


ILLEGAL = {
    "invented": ([write(0, 1, "a"), read(2, 3, "b")], "never written"),
    "refused write read": ([write(0, 1, "a", outcome="fail"), read(2, 3, "a")], "never written"),
    "read before its write": ([read(0, 1, "a"), write(2, 3, "a")], "before its write"),
    "lost write": ([write(0, 1, "a"), read(2, 3, None)], "after the other"),
    "stale read": ([write(0, 1, "a"), write(2, 3, "b"), read(4, 5, "a")], "after the other"),
    "stale by a failed cas": (
        [write(0, 1, "a"), write(2, 3, "b"), failed(4, 5, "x", "c", "a")],
        "after the other",
    ),
    "two forward zones": (
        [write(0, 1, "a"), write(0, 1, "b"), read(2, 3, "a"), read(4, 5, "b"), read(6, 7, "a")],
        "after the other",
    ),
    "a backward zone inside a forward one": (
        [write(0, 1, "a"), write(2, 5, "b"), read(2, 5, "b"), read(6, 7, "a")],
        "after the other",
    ),
    "two cas from one value": ([write(0, 1, "a"), cas(2, 9, "a", "b"), cas(2, 9, "a", "c")], "two cas"),
    "cas from what was never written": ([cas(0, 1, "a", "b")], "never written"),
    "cas in a circle": ([cas(0, 9, "a", "b"), cas(0, 9, "b", "a")], "circle"),
    "read of what a cas replaced": ([write(0, 1, "a"), cas(2, 3, "a", "b"), read(4, 5, "a")], "replaced"),
    "a value between the links of a chain": (
        [write(0, 1, "a"), write(2, 3, "x"), cas(4, 5, "a", "b")],
        "after the other",
    ),
    "an unknown cas that was observed": (
        [write(0, 1, "a"), cas(2, INF, "a", "b"), read(3, 4, "b"), read(5, 6, "a")],
        "replaced",
    ),
    "an unknown write, kept by a cas, seen no more": (
        [write(0, INF, "a"), cas(1, 2, "a", "b"), read(3, 4, "a")],
        "replaced",
    ),
    "deleted and read": (
        [write(0, 1, "a", version=1), op("delete", 2, 3, version=2), read(4, 5, "a")],
        "after",
    ),
    "first absence after a delete": (
        [write(0, 1, "a", version=1), op("delete", 2, 3, version=2), read(4, 5, None)],
        "after",
    ),
    "an absence of nobody": ([write(0, 1, "a", version=1), read(2, 3, None, version=2)], "absences seen"),
    "absence at the version of a write": (
        [write(0, 1, "a", version=1), read(2, 3, None, version=1)],
        "absent at",
    ),
    "a delete of unknown outcome, seen before it began": (
        [write(0, 1, "a", version=1), read(2, 3, None, version=2), op("delete", 4, INF)],
        "before its write",
    ),
    "a delete of unknown outcome, seen and undone": (
        [
            write(0, 1, "a", version=1),
            op("delete", 2, INF),
            read(3, 4, None, version=2),
            read(5, 6, "a", version=1),
        ],
        "after the other",
    ),
}

LEGAL = {
    "nothing": [],
    "read of the beginning": [read(0, 1, None), write(2, 3, "a")],
    "an unknown write that never showed": [write(0, 1, "a"), write(2, INF, "b"), read(3, 4, "a")],
    "an unknown write that showed late": [
        write(0, INF, "b"),
        write(1, 2, "a"),
        read(3, 4, "a"),
        read(5, 6, "b"),
    ],
    "what touches is concurrent": [write(0, 1, "a"), read(1, 2, None)],
    "a failed cas that saw what stood": [write(0, 1, "a"), failed(2, 3, "x", "b", "a")],
    "a refused cas that never looked": [
        write(0, 1, "a"),
        cas(2, 3, "a", "b", outcome="fail", error="not_ready"),
    ],
    "a failed cas, known by its version": [
        write(0, 1, "a", version=1),
        cas(2, 3, "x", "b", outcome="fail", error="conflict", version=1),
    ],
    "values of any shape": [
        write(0, 1, {"x": [1]}),
        read(2, 3, {"x": [1]}),
        write(4, 5, True),
        write(4, 5, 1),
    ],
    "absence of a delete, replaced": [
        op("delete", 0, 1, version=1),
        read(2, 3, None, version=1),
        cas(4, 5, None, "a", expected_version=1, version=2),
    ],
    "a delete of unknown outcome that showed": [
        write(0, 1, "a", version=1),
        op("delete", 2, INF),
        read(3, 4, None, version=2),
    ],
}

NOT_APPLICABLE = {
    "a value written twice": [write(0, 1, "a"), write(2, 3, "a")],
    "the first value written again": [write(0, 1, "first")],
    "a failed cas that does not say what it found": [write(0, 1, "a"), cas(2, 3, "b", "c", outcome="fail")],
    "deletes without versions": [write(0, 1, "a"), op("delete", 2, 3), read(4, 5, None)],
    "an acknowledged delete without its version": [write(0, 1, "a", version=1), op("delete", 2, 3)],
    "a cas from some absence": [
        op("delete", 0, 1, version=1),
        cas(2, 3, None, "a", version=2),
    ],
    "several deletes that may be meant": [
        op("delete", 0, INF),
        op("delete", 6, INF),
        write(2, 3, "a", version=5),
        read(4, 5, None, version=2),
        read(7, 8, "a", version=5),
    ],
    "not a register": [op("append", 0, 1, "a")],
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_each_rule_convicts_what_breaks_it(name: str) -> None:
    operations, reason = ILLEGAL[name]
    verdict = zones.check(operations)
    assert (verdict.word, verdict.applicable) == (Word.ILLEGAL, True), verdict
    assert reason in verdict.reason
    assert search.search(operations, Register(), 10_000)[0] is Word.ILLEGAL
    shown = [shown for part in verdict.evidence for shown in part.operations]
    assert shown, "a conviction shows who saw what"
    assert all(any(one is two for two in operations) for one in shown)


@pytest.mark.parametrize("name", LEGAL)
def test_what_is_legal_passes(name: str) -> None:
    verdict = zones.check(LEGAL[name])
    assert verdict.word is Word.OK, verdict
    assert search.search(LEGAL[name], Register(), 10_000)[0] is Word.OK


@pytest.mark.parametrize("name", NOT_APPLICABLE)
def test_what_does_not_say_enough_is_declined(name: str) -> None:
    verdict = zones.check(NOT_APPLICABLE[name], "first" if name == "the first value written again" else None)
    assert (verdict.word, verdict.applicable) == (Word.UNKNOWN, False), verdict


def test_an_unknown_write_may_not_be_dropped_for_a_failed_cas_that_saw_nothing() -> None:
    """Trap 1: only the unknown write explains why the cas failed."""
    operations = [write(0, 1, 1), write(2, INF, 2), cas(3, 4, 1, 3, outcome="fail")]
    assert not zones.check(operations).applicable
    assert search.check(operations, Register()).word is Word.OK
    assert search.check([operations[0], operations[2]], Register()).word is Word.ILLEGAL


def test_the_two_clusters_of_a_conflict_are_shown() -> None:
    """Trap 11: the reason that a person reads is who saw what."""
    operations = [write(0, 1, "a"), write(2, 3, "b"), read(4, 5, "b"), read(6, 7, "a"), read(8, 9, "b")]
    text = str(zones.check(operations))
    assert "'a': who wrote it" in text
    assert "'b': who wrote it" in text
    assert '6.0000..7.0000 process 0: read k "a": ok' in text


def random_history(rng: random.Random) -> list[Operation]:
    """A few operations on one register, run as one copy would; then, more often than not, one lie is told."""
    times = [(began := rng.randrange(14), began + rng.randrange(1, 7)) for _ in range(rng.randrange(2, 10))]
    # Each takes effect somewhere within its time; those that touch may do so in either order.
    order = sorted(times, key=lambda span: rng.uniform(*span))
    state: tuple[Any, int] = (None, 0)
    past = [state]
    operations = []
    for number, (began, ended) in enumerate(order, start=1):
        kind = rng.choice(("read", "read", "write", "write", "cas", "cas", "delete"))
        made = Operation(number, kind, "k", began, ended, "ok")
        is_known = rng.random() < 0.8
        if not is_known:
            made.outcome, made.ended = "unknown", None
        applies = is_known or rng.random() < 0.5
        if kind == "read":
            made.value, made.version = state
        else:
            made.value = None if kind == "delete" else number
            if kind == "cas":
                made.expected, made.expected_version = expected = (
                    state if rng.random() < 0.7 else rng.choice(past)
                )
                if expected != state:
                    applies = False
                    if is_known:
                        made.outcome, made.observed = "fail", True
                        made.seen, made.version = state
            if applies:
                state = (made.value, number)
                past.append(state)
                made.version = number if is_known else 0
        operations.append(made)
    if rng.random() < 0.85:
        _lie(rng.choice(operations), rng.choice(past), rng)
    rng.shuffle(operations)
    return operations


def _lie(made: Operation, told: tuple[Any, int], rng: random.Random) -> None:
    if made.kind == "read":
        made.value, made.version = told
    elif made.observed:
        made.seen, made.version = told
    elif made.kind == "cas":
        made.expected, made.expected_version = told
    elif made.outcome == "ok" and rng.random() < 0.3:
        made.outcome, made.version = "fail", 0
    else:
        shift = rng.randrange(-6, 7)
        made.began += shift
        made.ended = None if made.ended is None else made.ended + shift


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_zones_and_search_agree(part: int) -> None:
    rng = random.Random(part)
    model = Register()
    counts = dict.fromkeys(["ok", "illegal", "declined"], 0)
    while counts["ok"] + counts["illegal"] < 12_500:
        operations = random_history(rng)
        verdict = zones.check(operations)
        if not verdict.applicable:
            counts["declined"] += 1
            continue
        counts[str(verdict.word)] += 1
        word, _ = search.search(operations, model, 100_000)
        assert verdict.word is word, f"{counts}: {verdict}\n" + "\n".join(map(str, operations))
    # Each side is well represented, or the agreement would say little.
    assert counts["ok"] > 5_000, counts
    assert counts["illegal"] > 2_500, counts
    assert counts["declined"] < 5_000, counts


def test_one_key_of_a_hundred_thousand_operations() -> None:
    rng = random.Random(7)
    operations = []
    state: Any = None
    for number in range(100_000):
        began, ended = number - rng.random() * 50, number + rng.random() * 50
        draw = rng.random()
        if draw < 0.5:
            operations.append(read(began, ended, state))
        else:
            new = f"v{number}"
            ended = INF if draw > 0.99 else ended
            made = cas(began, ended, state, new) if draw < 0.65 else write(began, ended, new)
            operations.append(made)
            state = new
    assert zones.check(operations).word is Word.OK
    operations.append(read(200_000, 200_001, "v100" if operations[100].kind != "read" else state))
    operations.append(read(200_002, 200_003, next(op.value for op in operations if op.kind == "write")))
    assert zones.check(operations).word is Word.ILLEGAL
