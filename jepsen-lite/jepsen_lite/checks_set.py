"""Sets and unique ids: what was added is there once, and nothing else is. O(n).

After Jepsen's `set` and `unique-ids` checkers (RELIABILITY 1.6).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from jepsen_lite.history import Operation, identity
from jepsen_lite.verdict import Evidence, Verdict, Word, illegal

SET = "set"
UNIQUE = "unique-ids"


def check_set(operations: Sequence[Operation]) -> Verdict:
    """`add` of unique elements, `read` of all of them (a list): the last has every acknowledged one.

    Lost: acknowledged and not there. Unexpected: there and never added, or surely refused. Recovered: of
    unknown outcome, and there. Only a read that began after an add had ended can convict for that add.
    """
    reads = [op for op in operations if op.kind == "read" and op.outcome == "ok"]
    if not reads:
        return Verdict(SET, Word.UNKNOWN, "no read succeeded")
    last = max(reads, key=lambda op: op.began)
    adds = {identity(op.value): op for op in operations if op.kind == "add"}
    found = [identity(element) for element in last.value or []]
    there = set(found)
    lost = [
        op for name, op in adds.items() if op.outcome == "ok" and name not in there and op.end < last.began
    ]
    allowed = {name for name, op in adds.items() if op.outcome != "fail" and op.began <= last.end}
    unexpected = [name for name in found if name not in allowed]
    counts = {
        "attempted": len(adds),
        "acknowledged": sum(op.outcome == "ok" for op in adds.values()),
        "lost": len(lost),
        "unexpected": len(unexpected),
        "recovered": sum(op.outcome == "unknown" and name in there for name, op in adds.items()),
        "doubled": len(found) - len(there),
    }
    wrong = [f"{counts[name]} {name}" for name in ("lost", "unexpected", "doubled") if counts[name]]
    if not wrong:
        return Verdict(SET, Word.OK, counts=counts)
    evidence = [Evidence("the last read", (last,))]
    if lost:
        evidence.append(Evidence("acknowledged and lost", tuple(lost)))
    if refused := [adds[name] for name in unexpected if name in adds]:
        evidence.append(Evidence("refused or not yet added, and there", tuple(refused)))
    return Verdict(SET, Word.ILLEGAL, ", ".join(wrong), evidence=tuple(evidence), counts=counts)


def check_unique(operations: Sequence[Operation]) -> Verdict:
    """`generate`: no id is given out twice."""
    given: dict[Hashable, Operation] = {}
    for op in operations:
        if op.kind != "generate" or op.outcome != "ok":
            continue
        first = given.setdefault(identity(op.value), op)
        if first is not op:
            return illegal(UNIQUE, f"{op.value!r} was given out twice", ("both times", (first, op)))
    return Verdict(UNIQUE, Word.OK if given else Word.UNKNOWN, "" if given else "no id was given out")
