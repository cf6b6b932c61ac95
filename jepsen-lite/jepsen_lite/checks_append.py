"""Lists that are only appended to: all reads of a key are prefixes of one list. O(size of the reads).

The idea is Elle's (Kingsbury and Alvaro 2020): with unique elements a read tells the order of all the writes
before it. Checked for each key: reads are prefixes of the longest; nothing appears that was not appended, or
twice; a read has what was acknowledged before it began; an element stands behind those acknowledged before
its append began.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import pairwise

from jepsen_lite.history import Operation, by_key, identity
from jepsen_lite.verdict import Verdict, Word, illegal

NAME = "append"


def check_append(operations: Sequence[Operation]) -> Verdict:
    """`append` of unique elements, `read` of the list."""
    reads = 0
    for key, part in by_key(operations).items():
        seen = sorted(
            (op for op in part if op.kind == "read" and op.outcome == "ok"),
            key=lambda op: len(op.value or ()),
        )
        if not seen:
            continue
        reads += len(seen)
        verdict = (
            _check_order(key, seen) or _check_elements(key, seen[-1], part) or _check_times(key, seen, part)
        )
        if verdict is not None:
            return verdict
    if not reads:
        return Verdict(NAME, Word.UNKNOWN, "no read succeeded")
    return Verdict(NAME, Word.OK, counts={"reads": reads})


def _check_order(key: str, reads: Sequence[Operation]) -> Verdict | None:
    """Each read a prefix of the next longer one, so all of them of the longest."""
    for shorter, longer in pairwise(reads):
        prefix = shorter.value or []
        if (longer.value or [])[: len(prefix)] != prefix:
            return illegal(NAME, "no read is a prefix of the other", ("both", [shorter, longer]), key=key)
    return None


def _check_elements(key: str, longest: Operation, operations: Sequence[Operation]) -> Verdict | None:
    """What the list holds was appended, once, and not refused."""
    appends = {identity(op.value): op for op in operations if op.kind == "append"}
    seen: set[Hashable] = set()
    acked = -math.inf
    order: Operation | None = None
    # From the back: whoever stands later must not have ended before one further in front began.
    for element in reversed(longest.value or []):
        name = identity(element)
        append = appends.get(name)
        if append is None or append.outcome == "fail":
            parts = [op for op in (longest, append) if op is not None]
            return illegal(NAME, f"{element!r} was never appended", ("seen", parts), key=key)
        if name in seen:
            return illegal(NAME, f"{element!r} was appended twice", ("seen", [append, longest]), key=key)
        seen.add(name)
        if order is not None and acked < append.began:
            return illegal(
                NAME,
                "appended later, and stands in front",
                ("both", [order, append]),
                ("seen", [longest]),
                key=key,
            )
        if order is None or append.end < acked:
            order, acked = append, append.end
    return None


def _check_times(key: str, reads: Sequence[Operation], operations: Sequence[Operation]) -> Verdict | None:
    """A read has what was acknowledged before it began, and what an earlier read had; nothing of later."""
    appends = {identity(op.value): op for op in operations if op.kind == "append" and op.outcome == "ok"}
    place = {identity(element): index for index, element in enumerate(reads[-1].value or [])}
    # Ends of appends and reads, each with how long the list surely was by then; lost is longer than any.
    known = [(op.end, place.get(name, math.inf) + 1, op) for name, op in appends.items()]
    known += [(op.end, float(len(op.value or ())), op) for op in reads]
    known.sort(key=lambda mark: mark[0])
    attempted = {identity(op.value): op for op in operations if op.kind == "append"}
    least, because, index = 0.0, None, 0
    for read in sorted(reads, key=lambda op: op.began):
        while index < len(known) and known[index][0] < read.began:
            if known[index][1] > least:
                least, because = known[index][1], known[index][2]
            index += 1
        if len(read.value or ()) < least:
            what = "an acknowledged append is lost" if least == math.inf else "a read went back"
            return illegal(
                NAME, what, ("because of", [because] if because else []), ("seen", [read]), key=key
            )
        if read.value and read.end < attempted[identity(read.value[-1])].began:
            append = attempted[identity(read.value[-1])]
            return illegal(NAME, "seen before it was appended", ("both", [read, append]), key=key)
    return None
