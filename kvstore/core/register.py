"""One register: what an acceptor may do, how a proposer counts, when a read needs no round.

CASPaxos (Rystsov 2018, arXiv 1802.07000) with the rules of DESIGN 6. Ballots are versions. An acceptor's
state is `promised` (0: none) and a record, whose version is the ballot accepted last; it must be durable
before an answer leaves.

Rules kept here, each with a trap that the explorer in the tests convicts when it is removed:
- a promise needs a ballot above everything promised and accepted;
- an accept needs at least what was promised, and a ballot above the record held, unless that very record is
  held already: a merge may have brought it, and acknowledging it although more was promised loses updates;
- whoever holds a strong record has promised its successor, the next ballot of the same proposer, and takes
  nothing between the two; so a proposer whose record a majority accepted may accept at the successor
  at once, and at no other ballot (docs/decisions/0004-a-record-promises-its-successor.md);
- a proposer adopts the highest record of a majority by (strong, version), never one it likes better;
- a read is done without a round only if a majority shows the same strong record and nobody of it has
  promised more, or a majority shows nothing and has promised nothing;
- a replica counts once, and only if it owns the key.
"""

from __future__ import annotations

from enum import Enum

from kvstore.core import record as records
from kvstore.core.quorum import Tally, Verdict, majority
from kvstore.core.record import Order
from kvstore.core.version import NODE_BITS
from kvstore.types import NodeId, Version

_PENDING, _REACHED, _LOST = Verdict.PENDING, Verdict.REACHED, Verdict.LOST


_STEP = 1 << NODE_BITS


def successor(record: bytes) -> Version:
    """The ballot after a strong record's own: only the proposer of the record can make it."""
    return Version(records.version_of(record) + _STEP)


def lowest(held: bytes | None) -> int:
    """The lowest ballot that may follow what is held."""
    if held is None:
        return 0
    return records.version_of(held) + (_STEP if records.flags_of(held) & records.FLAG_STRONG else 1)


def on_prepare(promised: int, held: bytes | None, ballot: int) -> int:
    """0: promise it; else the number to beat."""
    top = max(promised, lowest(held) - 1)
    return 0 if ballot > top else top


def on_accept(promised: int, held: bytes | None, record: bytes) -> int:
    """0: hold it (or it is held) and say so; else the number to beat."""
    ballot, least = records.version_of(record), lowest(held)
    if ballot >= promised:
        if ballot >= least:
            return 0
        if held is not None and records.compare(record, held) is Order.SAME:
            return 0
    return max(promised, least - 1)


class Phase(Enum):
    """Where a round is."""

    PREPARE = "prepare"
    ACCEPT = "accept"


class Round:
    """One proposer's round at one ballot: counts answers, keeps the highest record."""

    __slots__ = ("_tally", "ballot", "beaten_by", "highest", "owners", "phase")

    def __init__(self, owners: tuple[NodeId, ...], ballot: Version) -> None:
        self.owners = owners
        self.ballot = ballot
        self.phase = Phase.PREPARE
        self.highest: bytes | None = None
        """Of the records that came with promises, by (strong, version)."""
        self.beaten_by = 0
        """The highest number we were refused with."""
        self._tally = Tally(owners, majority(len(owners)))

    @classmethod
    def succeeding(cls, owners: tuple[NodeId, ...], accepted: bytes) -> Round:
        """The round after one of ours that a majority of `owners` accepted: all it needs is promised."""
        current = cls(owners, successor(accepted))
        current.phase = Phase.ACCEPT
        current.highest = accepted
        return current

    def promised(self, node: NodeId, record: bytes | None) -> Verdict:
        """An acceptor promised, and showed what it holds."""
        if self.phase is not Phase.PREPARE:
            return self._tally.verdict
        if self._tally.verdict is _PENDING and record is not None:
            highest = self.highest
            if highest is None or records.is_newer(record, highest) or records.fuller(record, highest):
                self.highest = record
        return self._tally.ack(node)

    def begin_accept(self) -> None:
        """A majority promised; from here on only answers to accept count."""
        assert self.phase is Phase.PREPARE
        assert self._tally.verdict is _REACHED
        self.phase = Phase.ACCEPT
        self._tally = Tally(self.owners, majority(len(self.owners)))

    def accepted(self, node: NodeId) -> Verdict:
        """An acceptor holds our record durably."""
        return self._tally.ack(node)

    def refused(self, node: NodeId, number: int, phase: Phase) -> Verdict:
        """An acceptor has seen a higher number."""
        self.beaten_by = max(self.beaten_by, number)
        return self.failed(node, phase)

    def failed(self, node: NodeId, phase: Phase) -> Verdict:
        """No answer of use will come from it in this phase."""
        return self._tally.fail(node) if phase is self.phase else self._tally.verdict

    @property
    def verdict(self) -> Verdict:
        """Of the phase."""
        return self._tally.verdict

    @property
    def acked(self) -> tuple[NodeId, ...]:
        """Who promised, or accepted, so far."""
        return self._tally.acked

    @property
    def missing(self) -> tuple[NodeId, ...]:
        """Who did not."""
        return self._tally.missing


class Glance:
    """A read that hopes to do without a round: what each owner shows, and whether that settles it."""

    __slots__ = ("_needed", "_seen", "_slack", "owners", "record", "verdict")

    def __init__(self, owners: tuple[NodeId, ...]) -> None:
        self.owners = owners
        self.record: bytes | None = None
        """What the majority shows."""
        self.verdict = _PENDING
        """LOST: a round is needed."""
        self._needed = majority(len(owners))
        self._seen: dict[NodeId, bytes | None] = {}
        self._slack = len(owners) - self._needed

    def shown(self, node: NodeId, promised: int, record: bytes | None) -> Verdict:
        """An owner showed its state."""
        if self.verdict is not _PENDING or node in self._seen:
            return self.verdict
        version = records.version_of(record) if record is not None else 0
        plain = record is not None and not records.flags_of(record) & records.FLAG_STRONG
        if promised > version or plain or (self._seen and record != self.record):
            self.verdict = _LOST
            return _LOST
        self._seen[node] = self.record = record
        if len(self._seen) >= self._needed:
            self.verdict = _REACHED
        return self.verdict

    def failed(self, node: NodeId) -> Verdict:
        """Nothing will come from it."""
        if self.verdict is _PENDING and node not in self._seen:
            self._slack -= 1
            if self._slack < 0:
                self.verdict = _LOST
        return self.verdict

    @property
    def answered(self) -> tuple[NodeId, ...]:
        """Who showed what was returned."""
        return tuple(self._seen)
