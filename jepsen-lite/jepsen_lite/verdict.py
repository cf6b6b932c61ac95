"""What a check says: ok, unknown or illegal. Unknown is never a pass.

The words are ordered, and a run is worth its worst: ok < unknown < illegal. A check that cannot decide,
runs out of budget or breaks says unknown (RELIABILITY 1.6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from jepsen_lite.history import Operation

SHOWN_MAX = 20
"""Operations shown of one piece of evidence: a reader stops reading before."""


class Word(IntEnum):
    """The three words, from best to worst."""

    OK = 0
    UNKNOWN = 1
    ILLEGAL = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Evidence:
    """Operations that together say something: who did and saw what."""

    what: str
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        shown = [f"  {operation}" for operation in self.operations[:SHOWN_MAX]]
        if len(self.operations) > SHOWN_MAX:
            shown.append(f"  ... and {len(self.operations) - SHOWN_MAX} more")
        return "\n".join([f"{self.what}:", *shown])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check says of one history, and why."""

    check: str
    word: Word
    reason: str = ""
    key: str = ""
    evidence: tuple[Evidence, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    """Numbers worth showing: operations, steps, lost, recovered, ..."""
    applicable: bool = True
    """False: the history breaks what this check assumes, and another must decide."""

    def __str__(self) -> str:
        where = f" of {self.key}" if self.key else ""
        because = f": {self.reason}" if self.reason else ""
        return "\n".join([f"{self.check}{where}: {self.word}{because}", *map(str, self.evidence)])

    def as_json(self) -> dict[str, Any]:
        """For the results file."""
        return {
            "check": self.check,
            "verdict": str(self.word),
            "reason": self.reason,
            "key": self.key,
            "evidence": [
                {"what": part.what, "operations": [str(op) for op in part.operations]}
                for part in self.evidence
            ],
            "counts": self.counts,
        }


def illegal(check: str, reason: str, *evidence: tuple[str, Iterable[Operation]], key: str = "") -> Verdict:
    """Convict, with the operations that prove it."""
    parts = tuple(Evidence(what, tuple(operations)) for what, operations in evidence)
    return Verdict(check, Word.ILLEGAL, reason, key, parts)


def worst(verdicts: Iterable[Verdict]) -> Word:
    """What a run is worth. Nothing checked is nothing known."""
    return max((verdict.word for verdict in verdicts), default=Word.UNKNOWN)


def guarded(check: str, run: Callable[[], Verdict]) -> Verdict:
    """Run a check; should it break, that is no verdict on the store."""
    try:
        return run()
    except Exception as broken:  # noqa: BLE001 - whatever it is, the answer is the same: unknown
        return Verdict(check, Word.UNKNOWN, f"the check itself broke: {type(broken).__name__}: {broken}")
