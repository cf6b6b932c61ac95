"""Operations, and the file a history is kept in.

A history is JSON Lines: a header `{"jepsen-lite": 1, "workload": ..., "seed": ..., ...}`, then one
operation a line. A line leaves out the fields that have their default.

Rules of recording, on which every checker relies:
- times come from one monotonic clock, at the client; operations that touch are concurrent;
- `fail` means certainly not applied; whatever is not certain is `unknown`, and stays open to the end;
- after an unknown outcome the process number is not used again, or operations of one process overlap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = 1
OUTCOMES = ("ok", "fail", "unknown")
MISMATCH_ERRORS = ("", "conflict")
"""What a failed cas says when the register was not as expected; another error means it never looked."""


class HistoryError(Exception):
    """A history file that cannot be used. Says where, what is wrong, and what to do."""

    def __init__(self, path: str | Path, line: int, problem: str, remedy: str) -> None:
        super().__init__(f"{path}:{line}: {problem}; {remedy}")
        self.path = str(path)
        self.line = line
        self.problem = problem
        self.remedy = remedy


@dataclass(slots=True)
class Operation:
    """One call of one process. Values are whatever JSON can hold; None is absence."""

    process: int
    kind: str
    """read, write, cas, delete; and what workloads name: add, incr, append, acquire, release, ..."""
    key: str
    began: float
    ended: float | None = None
    outcome: str = "unknown"
    value: Any = None
    """Written, or read."""
    expected: Any = None
    """What a cas replaces."""
    expected_version: int = 0
    """The version a cas replaces, where it names one: tells one absence from another."""
    version: int = 0
    """The version the answer showed; 0: none."""
    observed: bool = False
    """Whether a failed cas said what it found instead: `seen`."""
    seen: Any = None
    node: str = ""
    error: str = ""
    final: bool = False
    """Made after healing, when nobody else is at work."""
    ttl: float = 0.0
    """Seconds that a written value lives; 0: for ever."""

    @property
    def end(self) -> float:
        """When it was over for certain; what is not certain is never over."""
        return self.ended if self.ended is not None and self.outcome != "unknown" else math.inf

    @property
    def is_mismatch(self) -> bool:
        """Whether this is a cas that failed because the register was not as expected."""
        return (
            self.kind == "cas"
            and self.outcome == "fail"
            and (self.observed or self.version > 0 or self.error in MISMATCH_ERRORS)
        )

    def __str__(self) -> str:
        until = f"{self.ended:.4f}" if self.ended is not None else "open"
        what = json.dumps(self.value)
        if self.kind == "cas":
            what = f"{json.dumps(self.expected)} -> {what}"
            if self.observed:
                what += f" found {json.dumps(self.seen)}"
        shown = f" v{self.version}" if self.version else ""
        where = f" at {self.node}" if self.node else ""
        error = f" ({self.error})" if self.error else ""
        return (
            f"{self.began:.4f}..{until} process {self.process}{where}: "
            f"{self.kind} {self.key} {what}{shown}: {self.outcome}{error}"
        )


def identity(value: Any) -> Hashable:
    """Something hashable that is equal for equal JSON, and for nothing else (1, true and 1.0 differ)."""
    kind = type(value)
    if kind is str or kind is int:
        return value  # type: ignore[no-any-return]
    return ("json", json.dumps(value, sort_keys=True))


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Split operations by key, in the order of the keys."""
    keys: dict[str, list[Operation]] = {}
    for operation in operations:
        keys.setdefault(operation.key, []).append(operation)
    return {key: keys[key] for key in sorted(keys)}


@dataclass(slots=True)
class History:
    """What one run recorded: facts about the run, and its operations."""

    header: dict[str, Any] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)


_FIELDS = fields(Operation)
_NAMES = frozenset(part.name for part in _FIELDS)
_REQUIRED = ("process", "kind", "key", "began")
_DEFAULTS = {part.name: part.default for part in _FIELDS if part.name not in _REQUIRED}
_TYPES: dict[str, tuple[type, ...]] = {
    "process": (int,),
    "kind": (str,),
    "key": (str,),
    "began": (int, float),
    "ended": (int, float, type(None)),
    "outcome": (str,),
    "expected_version": (int,),
    "version": (int,),
    "observed": (bool,),
    "node": (str,),
    "error": (str,),
    "final": (bool,),
    "ttl": (int, float),
}


def encode(operation: Operation) -> str:
    """One line of a history file, without its end."""
    kept = {name: getattr(operation, name) for name in _REQUIRED}
    for name, default in _DEFAULTS.items():
        value = getattr(operation, name)
        # By type as well: False and 0 equal each other, and are different values.
        if value != default or type(value) is not type(default):
            kept[name] = value
    return json.dumps(kept, separators=(",", ":"), allow_nan=False)


def save(path: str | Path, header: Mapping[str, Any], operations: Sequence[Operation]) -> None:
    """Write a history file."""
    with Path(path).open("w", encoding="utf-8") as file:
        file.write(json.dumps({"jepsen-lite": FORMAT, **header}) + "\n")
        file.writelines(encode(operation) + "\n" for operation in operations)


def load(path: str | Path) -> History:
    """Read a history file, and check every line of it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as problem:
        raise HistoryError(
            path, 0, f"cannot be read: {problem.strerror}", "check the path and its rights"
        ) from None
    except UnicodeDecodeError:
        raise HistoryError(path, 0, "is not UTF-8 text", "give a history that jepsen-lite saved") from None
    lines = text.split("\n")
    header = _header(path, lines[0])
    operations = [
        _operation(path, number, line) for number, line in enumerate(lines[1:], start=2) if line.strip()
    ]
    return History(header, operations)


def _object(path: str | Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise HistoryError(
            path, number, "is not JSON", "the file was cut or edited: record the run again"
        ) from None
    if not isinstance(found, dict):
        raise HistoryError(path, number, "is not an object", "each line is one JSON object")
    return found


def _header(path: str | Path, line: str) -> dict[str, Any]:
    header = _object(path, 1, line)
    if header.get("jepsen-lite") != FORMAT:
        raise HistoryError(
            path,
            1,
            f'has no header {{"jepsen-lite": {FORMAT}}}',
            "give a history that this jepsen-lite saved",
        )
    faults = header.get("faults", [])
    if not isinstance(faults, list) or not all(map(_is_span, faults)):
        raise HistoryError(path, 1, "has faults that are none", "each is a list: begin, end, text")
    return header


def _is_span(found: Any) -> bool:
    return (
        isinstance(found, list)
        and len(found) >= 2
        and all(type(moment) in (int, float) and math.isfinite(moment) for moment in found[:2])
    )


def _operation(path: str | Path, number: int, line: str) -> Operation:
    found = _object(path, number, line)

    def wrong(problem: str, remedy: str = "see the fields of history.Operation") -> HistoryError:
        return HistoryError(path, number, problem, remedy)

    for name in _REQUIRED:
        if name not in found:
            raise wrong(f"has no {name!r}")
    for name, value in found.items():
        if name not in _NAMES:
            raise wrong(f"has an unknown field {name!r}")
        kinds = _TYPES.get(name)
        # A bool is an int to Python, and not to us.
        if kinds is not None and (
            not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        ):
            raise wrong(f"{name!r} cannot be {json.dumps(value)[:60]}")
    operation = Operation(**found)
    if operation.outcome not in OUTCOMES:
        raise wrong(f"outcome {operation.outcome!r}", f"one of {', '.join(OUTCOMES)}")
    if not math.isfinite(operation.began):
        raise wrong("'began' is not a moment", "times are finite seconds")
    if operation.ended is None:
        if operation.outcome != "unknown":
            raise wrong(f"{operation.outcome} without an end", "what never ended is unknown")
    elif not operation.began <= operation.ended < math.inf:
        raise wrong(
            f"ends at {operation.ended} before it began at {operation.began}",
            "record with one monotonic clock",
        )
    return operation
