"""Decide when enough replicas have answered.

Rules kept here:
- a replica counts once, however often it answers, and its first answer stands;
- a verdict, once given, never changes;
- there is no clock: a timeout is the caller giving up, not a vote.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

from kvstore import errors
from kvstore.types import Consistency, NodeId


class Verdict(Enum):
    """What the answers so far amount to."""

    PENDING = "pending"
    REACHED = "reached"
    LOST = "lost"


_PENDING, _REACHED, _LOST = Verdict.PENDING, Verdict.REACHED, Verdict.LOST


def majority(copies: int) -> int:
    """The smallest number two of which always share a replica."""
    return copies // 2 + 1


def needed(consistency: Consistency | None, explicit: int | None, copies: int, *, operation: str) -> int:
    """How many replicas must answer; an explicit r or w wins over the level.

    Raises errors.BadConsistency for a number outside 1..copies, errors.Unsupported for `linearizable`.
    """
    if explicit is not None:
        if not 1 <= explicit <= copies:
            raise errors.BadConsistency(given=explicit, allowed=f"1 to {copies} replicas for a {operation}")
        return explicit
    if consistency is None or consistency is Consistency.QUORUM:
        return copies // 2 + 1
    if consistency is Consistency.ONE:
        return 1
    if consistency is Consistency.ALL:
        return copies
    raise errors.Unsupported(what="consistency=linearizable")


@lru_cache(maxsize=4_096)
def _chosen(replicas: tuple[NodeId, ...], mask: int) -> tuple[NodeId, ...]:
    return tuple(replica for at, replica in enumerate(replicas) if mask >> at & 1)


class Tally:
    """Answers of a fixed set of replicas, counted towards a quorum. Bitmasks: this is the hot path."""

    __slots__ = ("_acked", "_failed", "_left", "_slack", "needed", "replicas", "verdict")

    def __init__(self, replicas: tuple[NodeId, ...], needed: int) -> None:
        assert 1 <= needed <= len(replicas), (needed, replicas)
        self.replicas = replicas
        self.needed = needed
        self.verdict = _PENDING
        """Where the quorum stands now."""
        self._acked = 0
        self._failed = 0
        self._left = needed
        self._slack = len(replicas) - needed

    def ack(self, replica: NodeId) -> Verdict:
        """Count a success, and say where that leaves the quorum."""
        bit = 1 << self.replicas.index(replica)
        if not (self._acked | self._failed) & bit:
            self._acked |= bit
            self._left -= 1
            if self._left == 0 and self.verdict is _PENDING:
                self.verdict = _REACHED
        return self.verdict

    def fail(self, replica: NodeId) -> Verdict:
        """Count a failure, and say where that leaves the quorum."""
        bit = 1 << self.replicas.index(replica)
        if not (self._acked | self._failed) & bit:
            self._failed |= bit
            self._slack -= 1
            if self._slack < 0 and self.verdict is _PENDING:
                self.verdict = _LOST
        return self.verdict

    @property
    def acked(self) -> tuple[NodeId, ...]:
        """Who succeeded, in preference order."""
        return _chosen(self.replicas, self._acked)

    @property
    def missing(self) -> tuple[NodeId, ...]:
        """Who failed or is still silent, in preference order."""
        return _chosen(self.replicas, ~self._acked)

    def __str__(self) -> str:
        marks = (
            "+" if self._acked >> at & 1 else "-" if self._failed >> at & 1 else "?"
            for at in range(len(self.replicas))
        )
        votes = " ".join(f"{r}{mark}" for r, mark in zip(self.replicas, marks, strict=True))
        return f"{votes} (needs {self.needed})"
