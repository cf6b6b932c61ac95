"""Locks with fencing tokens, and guarded effects. O(n log n).

A lock that expires cannot keep two holders from believing in it; what it can promise is that tokens grow, so
that whoever checks them lets no old holder act (Kleppmann 2016; Jepsen's etcd-lock class of findings).

An `acquire` answers with its token as value; a guarded write carries its token as value, and its ok says that
the guard let it pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from jepsen_lite.history import Operation, by_key
from jepsen_lite.verdict import Verdict, Word, illegal

NAME = "lock"


def check_lock(operations: Sequence[Operation]) -> Verdict:
    """`acquire` (value: token) and `guarded` (value: token), for each key."""
    acquired = 0
    for key, part in by_key(operations).items():
        grants = [op for op in part if op.kind == "acquire" and op.outcome == "ok"]
        effects = [op for op in part if op.kind == "guarded" and op.outcome == "ok"]
        acquired += len(grants)
        verdict = (
            _check_tokens(key, grants) or _check_grants(key, part, effects) or _check_effects(key, effects)
        )
        if verdict is not None:
            return verdict
    if not acquired:
        return Verdict(NAME, Word.UNKNOWN, "the lock was never acquired")
    return Verdict(NAME, Word.OK, counts={"acquired": acquired})


def _check_tokens(key: str, grants: Sequence[Operation]) -> Verdict | None:
    """No token twice, and a later acquisition gets a higher one."""
    seen: dict[int, Operation] = {}
    for op in grants:
        first = seen.setdefault(op.value, op)
        if first is not op:
            return illegal(
                NAME, f"token {op.value} was given out twice", ("both times", [first, op]), key=key
            )
    return _check_rising(key, grants, "a later acquisition got a lower token")


def _check_effects(key: str, effects: Sequence[Operation]) -> Verdict | None:
    """Once an effect with a token was let pass, none with a lower one is."""
    return _check_rising(key, effects, "an effect passed with a token that was overtaken")


def _check_grants(key: str, part: Sequence[Operation], effects: Sequence[Operation]) -> Verdict | None:
    """An effect's token was given out, unless an acquisition without an answer may have got it."""
    given = {op.value for op in part if op.kind == "acquire" and op.outcome == "ok"}
    if any(op.kind == "acquire" and op.outcome == "unknown" for op in part):
        return None
    for op in effects:
        if op.value not in given:
            return illegal(NAME, f"token {op.value} was never given out", ("the effect", [op]), key=key)
    return None


def _check_rising(key: str, operations: Sequence[Operation], why: str) -> Verdict | None:
    """Whether what began after another had ended has at least its token."""
    by_end = sorted(operations, key=lambda op: op.end)
    highest: Operation | None = None
    index = 0
    for op in sorted(operations, key=lambda op: op.began):
        while index < len(by_end) and by_end[index].end < op.began:
            if highest is None or by_end[index].value > highest.value:
                highest = by_end[index]
            index += 1
        if highest is not None and op.value < highest.value:
            return illegal(NAME, why, ("both", [highest, op]), key=key)
    return None
