"""Judges registers by their versions: every answer shows one, so the order that has to exist is known.

The calls of a key, sorted by the version they made or saw, are the only order that could explain the answers;
what is left is to ask whether it agrees with real time and with each answer (RELIABILITY 5.3, item 12).
Shares nothing with the store. `jepsen_lite.zones` judges the same histories without trusting versions.

Violations, by name:
- forked: two changes of one version;
- unlinear: a call that began when another had ended shows an older version, or made one that is not newer;
- torn: a read shows a version with another value than was written under it;
- overtaken: a compare-and-set succeeded although another change came between;
- miscounted: a counter's numbers, in the order of versions, do not add up;
- undone: a change that was resolved as never applied was seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from kvstore.sim.judge import Operation

CHANGES = ("put", "delete", "cas", "incr")


def judge_registers(operations: Sequence[Operation]) -> list[str]:
    """Every violation found in the calls of register keys."""
    keys: dict[str, list[Operation]] = {}
    for operation in operations:
        keys.setdefault(operation.key, []).append(operation)
    return [line for key in sorted(keys) for line in _judge_key(keys[key])]


def _judge_key(operations: list[Operation]) -> list[str]:
    done = [op for op in operations if op.outcome == "ok" and op.ended is not None]
    # A plain write that was told it lost, before the key was a register, has changed nothing.
    changes = [op for op in done if op.kind in CHANGES and not op.superseded]
    reads = [op for op in done if op.kind == "get"]
    # A change that did not apply has seen the key like a read.
    reads += [op for op in operations if op.outcome == "lost" and op.version and op.ended is not None]
    violations = _judge_versions(changes)
    violations += _judge_time(changes, reads)
    violations += _judge_values(operations, changes, reads)
    violations += _judge_cas(changes)
    if any(op.kind == "incr" for op in operations):
        violations += _judge_counter(operations, changes, reads)
    return violations


def _judge_versions(changes: list[Operation]) -> list[str]:
    seen: dict[int, Operation] = {}
    return [
        f"forked: {op} and {seen[op.version]}" for op in changes if seen.setdefault(op.version, op) is not op
    ]


def _judge_time(changes: list[Operation], reads: list[Operation]) -> list[str]:
    violations: list[str] = []
    marks = [(op.ended, 1, op) for op in changes + reads if op.ended is not None]
    marks += [(op.began, 0, op) for op in changes + reads]
    # At one instant beginnings come first: calls that touch are concurrent.
    marks.sort(key=lambda mark: (mark[0], mark[1]))
    floor, above = 0, None
    begun: dict[int, tuple[int, Operation | None]] = {}
    for _, is_end, op in marks:
        if not is_end:
            begun[id(op)] = (floor, above)
            continue
        least, because = begun[id(op)]
        if op.version < least or (
            op.version == least and least and op.outcome == "ok" and op.kind in CHANGES
        ):
            violations.append(f"unlinear: {op} although {because}")
        if op.version > floor:
            floor, above = op.version, op
    return violations


def _judge_values(operations: list[Operation], changes: list[Operation], reads: list[Operation]) -> list[str]:
    violations: list[str] = []
    value_of = {op.version: op for op in changes if op.kind != "incr"}
    written = {op.value: op for op in operations if op.kind in ("put", "cas") and op.value is not None}
    for read in reads:
        if read.kind != "get":
            continue
        known = value_of.get(read.version)
        if known is not None and known.value != read.value:
            violations.append(f"torn: {read} although {known}")
        source = written.get(read.value) if read.value is not None else None
        if source is not None and source.outcome in ("refused", "lost"):
            violations.append(f"undone: {read} although {source}")
    return violations


def _judge_cas(changes: list[Operation]) -> list[str]:
    violations: list[str] = []
    ordered = sorted(changes, key=lambda op: op.version)
    for before, op in itertools.pairwise(ordered):
        if op.kind == "cas" and op.expected and before.version > op.expected:
            violations.append(f"overtaken: {op} expected {op.expected} although {before}")
    return violations


def _judge_counter(
    operations: Iterable[Operation], changes: list[Operation], reads: list[Operation]
) -> list[str]:
    """All increments are by one: the n-th is at least n, and at most n plus those nobody knows of."""
    unsure = sum(op.kind == "incr" and op.outcome in ("unresolved", "open") for op in operations)
    violations: list[str] = []
    last = 0
    for nth, op in enumerate(
        sorted((op for op in changes if op.kind == "incr"), key=lambda op: op.version), 1
    ):
        if not nth <= op.number <= nth + unsure or op.number <= last:
            violations.append(f"miscounted: {op} is number {nth} and says {op.number}, before it {last}")
        last = op.number
    for read in reads:
        if read.kind == "get" and read.value is not None:
            least = sum(op.version <= read.version for op in changes)
            if not least <= int(read.value) <= least + unsure:
                violations.append(f"miscounted: {read} after {least} increments")
    return violations
