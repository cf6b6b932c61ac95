"""A counter: each read lies between what surely was added before it and what may have been. O(n log n).

After Jepsen's `counter` checker, with decrements: an addition of unknown outcome may count or not, at any
time after it began, so a negative one lowers the lower bound and a positive one raises the upper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jepsen_lite.history import Operation, by_key
from jepsen_lite.verdict import Verdict, Word, illegal

NAME = "counter"


def check_counter(operations: Sequence[Operation]) -> Verdict:
    """`add` (or `incr`, by its value, else 1) and `read`, for each key."""
    reads = 0
    for key, part in by_key(operations).items():
        verdict = _check_key(key, part)
        if verdict.word is Word.ILLEGAL:
            return verdict
        reads += verdict.counts["reads"]
    if not reads:
        return Verdict(NAME, Word.UNKNOWN, "no read succeeded")
    return Verdict(NAME, Word.OK, counts={"reads": reads})


def _amount(op: Operation) -> int:
    return op.value if isinstance(op.value, int) else 1


def _check_key(key: str, operations: Sequence[Operation]) -> Verdict:
    """Sweep over time.

    For a read, an addition that ended before it counts, one that began after it does not, and any other may:
    towards the lower bound if negative, towards the upper if positive.
    """
    # At one moment beginnings come before ends: what touches is concurrent.
    events = [(op.began, 0, index) for index, op in enumerate(operations)]
    events += [(op.end, 1, index) for index, op in enumerate(operations) if op.end < math.inf]
    lower = upper = reads = 0
    falls = rises = 0  # attempted so far: all negative, and all positive additions
    bounds: dict[int, tuple[int, int]] = {}
    for _, is_end, index in sorted(events):
        op = operations[index]
        if op.outcome == "fail":
            continue
        if op.kind != "read":
            amount = _amount(op)
            if not is_end:
                falls, rises = falls + min(amount, 0), rises + max(amount, 0)
            else:
                # It counts for certain from here on: a rise lifts the floor, a fall lowers the ceiling.
                lower, upper = lower + max(amount, 0), upper + min(amount, 0)
            continue
        if op.outcome != "ok":
            continue
        if not is_end:
            bounds[index] = (lower, upper)
            continue
        reads += 1
        floor, ceiling = bounds[index]
        low, high = floor + falls, ceiling + rises
        value = op.value or 0
        if not low <= value <= high:
            near = [o for o in operations if o.kind != "read" and o.began <= op.end and o.end >= op.began]
            return illegal(
                NAME,
                f"read {value}, outside {low}..{high}",
                ("the read", [op]),
                ("additions under way meanwhile", near),
                key=key,
            )
    return Verdict(NAME, Word.OK, key=key, counts={"reads": reads})
