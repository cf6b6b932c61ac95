"""Decide what a read returns, and what must be mended before it may.

Rules kept here:
- the newest record wins, by the order of `core.record`;
- the answer waits until enough replicas hold the newest for every later read of the same level to meet it
  (N - R + 1, a majority, and R itself), so that reads never go back in time;
- who answered with something older, or nothing, is asked once to take the newest, one repair at a time:
  so it is known which one the answer is about;
- a replica that answers late with something newer still makes that the newest, until the verdict.
"""

from __future__ import annotations

from kvstore.core import record as records
from kvstore.core.quorum import Verdict, majority
from kvstore.types import NodeId

_PENDING, _REACHED, _LOST = Verdict.PENDING, Verdict.REACHED, Verdict.LOST


def holders_needed(needed: int, copies: int) -> int:
    """How many replicas must hold the newest before a read of `needed` answers returns it; 0 at `one`."""
    return 0 if needed == 1 < copies else max(copies - needed + 1, majority(copies), needed)


class ReadDecision:
    """The answers to one read so far, and what follows from them."""

    __slots__ = (
        "_answers", "_asked", "_failed", "_holders", "_mending", "_verdict", "needed", "newest", "replicas",
    )  # fmt: skip

    def __init__(self, replicas: tuple[NodeId, ...], needed: int, holders: int) -> None:
        assert 1 <= needed <= len(replicas), (needed, replicas)
        self.replicas = replicas
        self.needed = needed
        self.newest: bytes | None = None
        """The newest record seen; None when nobody has any."""
        self._holders = holders
        self._answers: dict[NodeId, bytes | None] = {}
        self._asked: dict[NodeId, bytes] = {}
        """The repair that each was sent last."""
        self._mending: set[NodeId] = set()
        """Whose repair is under way."""
        self._failed = 0
        self._verdict = _PENDING

    def answer(self, node: NodeId, record: bytes | None) -> Verdict:
        """Count what a replica has."""
        if node in self._answers:
            return self._verdict
        self._answers[node] = record
        newest = self.newest
        if record is None or record == newest:
            return self._judge()
        if newest is None or records.is_newer(record, newest) or records.fuller(record, newest):
            both = newest is not None and record[17] & records.FLAG_COUNTER
            self.newest = records.merged(record, newest) if both and newest is not None else record
        return self._judge()

    def fail(self, node: NodeId) -> Verdict:
        """No answer, or no repair, will come from a replica."""
        self._mending.discard(node)
        self._failed |= 1 << self.replicas.index(node)
        return self._judge()

    def repaired(self, node: NodeId) -> Verdict:
        """A replica durably took what it was asked to take."""
        if node in self._mending:
            self._mending.discard(node)
            self._answers[node] = self._asked[node]
        return self._judge()

    def repairs(self) -> tuple[NodeId, ...]:
        """Who should be sent the newest now; each is named once for each newest."""
        newest = self.newest
        if newest is None or len(self._answers) < self.needed:
            return ()
        behind = tuple(
            node
            for node, record in self._answers.items()
            if record != newest
            and node not in self._mending
            and self._asked.get(node) != newest
            and not self._holds(record)
        )
        for node in behind:
            self._asked[node] = newest
            self._mending.add(node)
        return behind

    @property
    def answered(self) -> tuple[NodeId, ...]:
        """Who answered, first come first."""
        return tuple(self._answers)

    @property
    def missing(self) -> tuple[NodeId, ...]:
        """Who did not."""
        return tuple(node for node in self.replicas if node not in self._answers)

    def _holds(self, record: bytes | None) -> bool:
        """Whether this answer is as good as the newest (a reclaimed tombstone is)."""
        newest = self.newest
        if newest is None or record is newest:
            return True
        return record is not None and not records.is_newer(newest, record)

    def _judge(self) -> Verdict:
        if self._verdict is not _PENDING:
            return self._verdict
        if len(self._answers) >= self.needed:
            holding = sum(map(self._holds, self._answers.values())) if self._holders else 0
            if holding >= self._holders:
                self._verdict = _REACHED
                return _REACHED
        if self._failed:
            failed = self._failed
            can_answer = sum(
                1 for at, n in enumerate(self.replicas) if n in self._answers or not failed >> at & 1
            )
            can_hold = sum(
                1
                for at, n in enumerate(self.replicas)
                if not failed >> at & 1 or (n in self._answers and self._holds(self._answers[n]))
            )
            if can_answer < self.needed or can_hold < self._holders:
                self._verdict = _LOST
        return self._verdict
