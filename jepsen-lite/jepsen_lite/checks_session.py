"""What holds without a total order, and what any run must have. O(n log n) at most.

Sessions, stale reads, one value a version, lost writes, convergence, ends of values; liveness, substance.
A version is what an answer showed; a higher one is newer. Each check takes the operations of a run and gives
a verdict. Session guarantees are those of Terry et al. 1994, for each process and key.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Sequence
from itertools import accumulate

from jepsen_lite.history import Operation, by_key, identity
from jepsen_lite.verdict import Verdict, Word, illegal

WRITES = frozenset(("write", "delete", "cas"))


def _answered(operations: Sequence[Operation]) -> list[Operation]:
    return [op for op in operations if op.outcome == "ok" and (op.kind == "read" or op.kind in WRITES)]


def _passed(name: str, judged: int, nothing: str) -> Verdict:
    """Nothing wrong was found; and if there was nothing to judge, nothing is known."""
    if not judged:
        return Verdict(name, Word.UNKNOWN, nothing)
    return Verdict(name, Word.OK, counts={"judged": judged})


def check_session(operations: Sequence[Operation]) -> Verdict:
    """Monotonic reads, read your writes, monotonic writes and writes follow reads, by version."""
    name = "session"
    sessions: dict[tuple[str, int], list[Operation]] = {}
    for op in _answered(operations):
        sessions.setdefault((op.key, op.process), []).append(op)
    for (key, _), part in sorted(sessions.items()):
        newest: Operation | None = None
        for op in sorted(part, key=lambda op: op.began):
            if newest is not None and newest.end < op.began and op.version < newest.version:
                broken = {
                    ("read", "read"): "monotonic reads",
                    ("read", "write"): "read your writes",
                    ("write", "write"): "monotonic writes",
                    ("write", "read"): "writes follow reads",
                }["read" if op.kind == "read" else "write", "read" if newest.kind == "read" else "write"]
                return illegal(name, f"{broken}: a process went back", ("both", [newest, op]), key=key)
            if newest is None or op.version > newest.version:
                newest = op
    return _passed(name, len(sessions), "nothing succeeded")


def check_stale(operations: Sequence[Operation]) -> Verdict:
    """No read shows less than what a read or an acknowledged write showed before it began; in any process."""
    name = "stale-reads"
    reads = 0
    for key, part in by_key(_answered(operations)).items():
        by_end = sorted(part, key=lambda op: op.end)
        newest: Operation | None = None
        index = 0
        for op in sorted(part, key=lambda op: op.began):
            while index < len(by_end) and by_end[index].end < op.began:
                if newest is None or by_end[index].version > newest.version:
                    newest = by_end[index]
                index += 1
            if op.kind == "read":
                reads += 1
                if newest is not None and op.version < newest.version:
                    return illegal(name, "a read went back", ("both", [newest, op]), key=key)
    return _passed(name, reads, "no read succeeded")


def check_versions(operations: Sequence[Operation]) -> Verdict:
    """One version has one value, whoever wrote or read it."""
    name = "versions"
    value_of: dict[tuple[str, int], Operation] = {}
    for op in _answered(operations):
        if op.version:
            first = value_of.setdefault((op.key, op.version), op)
            if _left(first) != _left(op):
                return illegal(
                    name, f"version {op.version} has two values", ("both", [first, op]), key=op.key
                )
    return _passed(name, len(value_of), "no answer showed a version")


def _left(op: Operation) -> Hashable:
    return identity(None if op.kind == "delete" else op.value)


def check_lost(operations: Sequence[Operation]) -> Verdict:
    """Final reads show at least the highest acknowledged version of their key."""
    name = "lost-writes"
    finals = 0
    for key, part in by_key(_answered(operations)).items():
        writes = [op for op in part if op.kind in WRITES]
        for read in (op for op in part if op.final and op.kind == "read"):
            finals += 1
            earlier = [op for op in writes if op.end < read.began]
            best = max(earlier, key=lambda op: op.version, default=None)
            if best is not None and read.version < best.version:
                return illegal(name, "an acknowledged write is gone", ("both", [best, read]), key=key)
    return _passed(name, finals, "no final read succeeded")


def check_convergence(operations: Sequence[Operation]) -> Verdict:
    """All final reads of a key agree, whichever node they asked."""
    name = "convergence"
    finals = 0
    for key, part in by_key(_answered(operations)).items():
        reads = [op for op in part if op.final and op.kind == "read"]
        finals += len(reads)
        for other in reads[1:]:
            if (other.version, _left(other)) != (reads[0].version, _left(reads[0])):
                return illegal(name, "final reads differ", ("both", [reads[0], other]), key=key)
    return _passed(name, finals, "no final read succeeded")


def check_ttl(operations: Sequence[Operation], *, skew_s: float) -> Verdict:
    """A value ends when it should, give or take the skew, and does not come back.

    Values are unique, and reads are such that a later one sees no less. The time of a value starts somewhere
    within its write. Keys on which something else than reads and writes happened (a touch) are left out.
    """
    name = "ttl"
    judged = 0
    for key, part in by_key(operations).items():
        if any(op.kind != "read" and op.kind not in WRITES for op in part):
            continue
        answered = _answered(part)
        timed = {identity(op.value): op for op in answered if op.kind != "read" and op.ttl > 0}
        absences = sorted(
            (op for op in answered if op.kind == "read" and op.value is None), key=lambda op: op.began
        )
        began = [op.began for op in absences]
        # For each absence: of it and all that began later, the one that ended first.
        firsts: list[Operation] = []
        for op in reversed(absences):
            firsts.append(op if not firsts or op.end < firsts[-1].end else firsts[-1])
        firsts.reverse()
        for read in answered:
            write = timed.get(identity(read.value)) if read.kind == "read" else None
            if write is None:
                continue
            judged += 1
            if read.began > write.end + write.ttl + skew_s:
                return illegal(name, "served after its end", ("both", [write, read]), key=key)
            after = bisect_right(began, write.end)
            if after < len(firsts) and firsts[after].end < read.began:
                story = [write, firsts[after], read]
                return illegal(name, "back after it was gone", ("in order", story), key=key)
        verdict = _check_early(key, part, absences, skew_s)
        if verdict is not None:
            return verdict
    return _passed(name, judged, "no value with an end was read")


def _check_early(
    key: str, part: Sequence[Operation], absences: Sequence[Operation], skew_s: float
) -> Verdict | None:
    """Whether something was read as gone that no write explains.

    A read begins after some write was acknowledged, so it shows that one, or one that does not surely come
    before it. It may show nothing only if one of these deletes, or has a value that may have ended.
    """
    writes = [op for op in part if op.kind != "read" and op.outcome != "fail"]
    acked = sorted((op for op in writes if op.outcome == "ok"), key=lambda op: op.end)
    acked_ends = [op.end for op in acked]
    # Of those acknowledged up to here, the one that began last: what may come after it are the fewest.
    latest = list(accumulate(acked, _later))
    gone = sorted((_gone_from(op, skew_s), op.end) for op in writes)
    gone_from = [moment for moment, _ in gone]
    gone_ends = list(accumulate((end for _, end in gone), max))
    for read in absences:
        before = bisect_left(acked_ends, read.began)
        if not before:
            continue
        write = latest[before - 1]
        explained = bisect_right(gone_from, read.end)
        if not explained or gone_ends[explained - 1] < write.began:
            return illegal("ttl", "gone before its end", ("both", [write, read]), key=key)
    return None


def _later(one: Operation, other: Operation) -> Operation:
    return other if other.began > one.began else one


def _gone_from(write: Operation, skew_s: float) -> float:
    """The first moment at which a read that shows this write may show nothing."""
    if write.kind == "delete" or write.value is None:
        return write.began
    return max(write.began, write.began + write.ttl - skew_s) if write.ttl > 0 else math.inf


def check_liveness(operations: Sequence[Operation]) -> Verdict:
    """After healing, with nobody else at work, calls succeed."""
    name = "liveness"
    finals = [op for op in operations if op.final]
    stuck = [op for op in finals if op.outcome != "ok"]
    if stuck:
        return illegal(name, f"{len(stuck)} of {len(finals)} final operations failed", ("they are", stuck))
    return _passed(name, len(finals), "there was no final operation")


def check_substance(
    operations: Sequence[Operation], fault_spans: Sequence[tuple[float, float]] = ()
) -> Verdict:
    """Whether the run can prove anything: it is never illegal, and unknown if it is empty in some way.

    Of each kind one operation succeeded, two on one key overlapped, and during each fault one was under way.
    """
    name = "substance"
    work = [op for op in operations if not op.final]
    kinds: dict[str, dict[str, int]] = {}
    for op in work:
        outcomes = kinds.setdefault(op.kind, dict.fromkeys(("ok", "fail", "unknown"), 0))
        outcomes[op.outcome] += 1
    counts = {
        f"{kind} {word}": number for kind, words in sorted(kinds.items()) for word, number in words.items()
    }
    missing = [f"no {kind} succeeded" for kind in sorted(kinds) if not kinds[kind]["ok"]]
    if not work:
        missing.append("nothing was asked")
    elif not _has_contention(work):
        missing.append("no two operations on one key overlapped")
    missing += [
        f"no operation while the fault of {since:.3f}..{until:.3f} lasted"
        for since, until in fault_spans
        if not any(op.began < until and (op.ended is None or op.ended > since) for op in work)
    ]
    return Verdict(name, Word.UNKNOWN if missing else Word.OK, "; ".join(missing), counts=counts)


def _has_contention(operations: Sequence[Operation]) -> bool:
    for part in by_key(operations).values():
        latest = -math.inf
        for op in sorted(part, key=lambda op: op.began):
            if op.began <= latest:
                return True
            latest = max(latest, op.ended if op.ended is not None else math.inf)
    return False
