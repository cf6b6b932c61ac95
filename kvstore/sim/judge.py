"""Judges a history: what clients asked, when, and what they were told. Imports nothing of the store.

Every written value is unique in its history and every answer says which version it saw, so each rule is a
pass over the operations of one key (RELIABILITY, "two rules make checking cheap").

Promises judged, by name:
- invented: a read returns only what was written under that key;
- refused: a write that was definitely refused is never read;
- back: a quorum read never returns a version below one that an earlier quorum read returned or an earlier
  acknowledged quorum write got ("earlier": ended before this one began);
- two-values: one version has one value, whoever reads it;
- lost: after healing, a read at all returns at least the highest acknowledged version of any level;
- vanished: what is acknowledged, never expires and was not overwritten is there after healing;
- undead: nothing is served later than the allowed skew after its end;
- poisoned: after healing, with nobody else at work, a write is not superseded;
- zombie: a value overwritten or deleted long after its own call had ended does not come back, even if
  a message of that call was held up on the way;
- late: every call is answered within its deadline;
- stuck: after healing, calls succeed;
- empty: a run in which no call of a kind succeeded that was asked often, or none was asked among its
  faults, proves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SKEW_S = 0.8
LATE_S = 0.5
ZOMBIE_S = 1.0
_MANY = 10
"""So often a kind of call does not fail by chance."""
STRONG = ("quorum", "all")


@dataclass(slots=True)
class Operation:
    """One call of one client. Times in simulated seconds."""

    client: int
    kind: str
    """put, delete, touch, get; of registers also cas, incr"""
    key: str
    level: str
    began: float
    timeout: float
    value: bytes | None = None
    """Written, or read; None: absent."""
    ttl: float = 0.0
    ended: float | None = None
    outcome: str = "open"
    """ok, refused (definite), unresolved, open."""
    version: int = 0
    superseded: bool = False
    expected: int = 0
    """Of a compare-and-set: the version it wanted."""
    number: int = 0
    """Of an increment: by how much, then the number after it."""
    final: bool = False
    """Made after healing, when nobody else is at work."""
    error: str = ""

    def __str__(self) -> str:
        shown = self.value.decode() if self.value is not None else "-"
        end = f"{self.ended:.4f}" if self.ended is not None else "open"
        return (
            f"{self.began:.4f}-{end} c{self.client} {self.kind} {self.key}={shown} at {self.level}: "
            f"{self.outcome} v{self.version}{' ' + self.error if self.error else ''}"
        )


@dataclass(slots=True)
class Verdict:
    """What the judge says of a run."""

    violations: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        """ok, illegal, or unknown; unknown is never a pass."""
        return "illegal" if self.violations else "unknown" if self.unknown else "ok"


def judge(operations: Sequence[Operation], *, timed_keys: frozenset[str]) -> Verdict:
    """Apply every rule but `empty`. `timed_keys`: those whose values may end by themselves or be touched."""
    verdict = Verdict()
    keys: dict[str, list[Operation]] = {}
    for operation in operations:
        keys.setdefault(operation.key, []).append(operation)
    for key in sorted(keys):
        _judge_key(key, keys[key], verdict, timed=key in timed_keys)
    for operation in operations:
        end = operation.ended
        if end is not None and end - operation.began > operation.timeout + LATE_S:
            verdict.violations.append(f"late: {operation}")
        if operation.final and operation.outcome != "ok":
            verdict.violations.append(f"stuck: {operation}")
        if operation.final and operation.superseded:
            verdict.violations.append(f"poisoned: {operation}")
    return verdict


def _judge_key(key: str, operations: list[Operation], verdict: Verdict, *, timed: bool) -> None:
    written = {op.value: op for op in operations if op.kind == "put"}
    reads = [op for op in operations if op.kind == "get" and op.outcome == "ok"]
    writes = [op for op in operations if op.kind != "get" and op.outcome == "ok"]
    value_of: dict[int, bytes | None] = {}
    for write in writes:
        if write.kind in ("put", "delete"):
            value_of[write.version] = write.value
    for read in reads:
        if read.value is None:
            continue
        source = written.get(read.value)
        if source is None or (read.ended is not None and source.began > read.ended):
            verdict.violations.append(f"invented: {read}")
            continue
        if source.outcome == "refused":
            verdict.violations.append(f"refused: {read} although {source}")
        known = value_of.setdefault(read.version, read.value)
        if known != read.value:
            verdict.violations.append(f"two-values: {read} but version {read.version} is {known!r}")
        if timed and source.ttl and source.ended is not None and not _touched(operations):
            end = source.ended + source.ttl + SKEW_S
            if read.began > end:
                verdict.violations.append(f"undead: {read} although {source} with ttl {source.ttl:.2f}")
    _judge_order(reads, writes, verdict)
    _judge_zombies(reads, writes, written, verdict)
    _judge_end(key, reads, writes, value_of, verdict, timed=timed)


def _touched(operations: list[Operation]) -> bool:
    return any(op.kind == "touch" for op in operations)


def _judge_order(reads: list[Operation], writes: list[Operation], verdict: Verdict) -> None:
    """Sweep over time: the floor rises when an operation ends, and holds for those that begin later."""
    marks: list[tuple[float, int, Operation]] = []
    marks += [(op.ended, 1, op) for op in [*reads, *writes] if op.level in STRONG and op.ended is not None]
    marks += [(op.began, 0, op) for op in reads if op.level in STRONG]
    # At one instant beginnings come first: operations that touch are concurrent.
    marks.sort(key=lambda mark: (mark[0], mark[1]))
    floor = 0
    above: Operation | None = None
    begun: dict[int, tuple[int, Operation | None]] = {}
    for _, is_end, op in marks:
        if not is_end:
            begun[id(op)] = (floor, above)
            continue
        if op.kind == "get":
            least, because = begun[id(op)]
            if op.version < least:
                verdict.violations.append(f"back: {op} although {because}")
        if op.version > floor:
            floor, above = op.version, op


def _judge_zombies(
    reads: list[Operation], writes: list[Operation], written: dict[bytes | None, Operation], verdict: Verdict
) -> None:
    """The margin is what clocks may differ by: within it versions may order two calls the other way round."""
    rulers = [w for w in writes if w.level in STRONG and not w.superseded and w.kind in ("put", "delete")]
    for read in reads:
        source = written.get(read.value)
        if read.value is None or source is None or source.ended is None or read.level not in STRONG:
            continue
        over = source.ended + ZOMBIE_S
        for ruler in rulers:
            if ruler.began > over and ruler.ended is not None and ruler.ended < read.began:
                verdict.violations.append(f"zombie: {read} although {ruler} came after {source}")
                break


def _judge_end(
    key: str,
    reads: list[Operation],
    writes: list[Operation],
    value_of: dict[int, bytes | None],
    verdict: Verdict,
    *,
    timed: bool,
) -> None:
    for read in reads:
        if not read.final:
            continue
        earlier = [op for op in writes if op.ended is not None and op.ended < read.began]
        highest = max((op.version for op in earlier), default=0)
        if read.version < highest:
            best = max(earlier, key=lambda op: op.version)
            verdict.violations.append(f"lost: {read} although {best}")
        elif not timed and read.value is None and value_of.get(read.version) is not None:
            verdict.violations.append(
                f"vanished: {read}; version {read.version} is {value_of[read.version]!r}"
            )
    finals = {(op.version, op.value) for op in reads if op.final and op.level == "all"}
    if len(finals) > 1 and not timed:
        verdict.violations.append(f"split: {key} reads {sorted(map(str, finals))} after healing")


def judge_substance(operations: Sequence[Operation], fault_spans: Iterable[tuple[float, float]]) -> list[str]:
    """Why a run proves nothing, if it does not: all its calls, of registers and others, and its faults.

    A kind that was asked for a few times only may have failed by chance: most seeds are full of faults.
    """
    work = [op for op in operations if not op.final]
    asked = Counter(op.kind for op in work)
    succeeded = {op.kind for op in work if op.outcome in ("ok", "lost")}
    missing = [
        f"empty: none of {count} {kind} succeeded"
        for kind, count in sorted(asked.items())
        if count >= _MANY and kind not in succeeded
    ]
    if "get" not in succeeded or len(succeeded) == 1:
        missing.append("empty: nothing was read, or nothing written")
    spans = list(fault_spans)
    if spans and not any(
        op.began < until and (op.ended is None or op.ended > since) for op in work for since, until in spans
    ):
        missing.append("empty: no operation while a fault lasted")
    return missing
