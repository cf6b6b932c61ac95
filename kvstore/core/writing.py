"""Decide what a write amounts to, from the answers of its replicas.

Rules kept here:
- superseded counts towards the quorum: the replica durably holds something newer, and the client is told;
- a failed write is definite only if no replica can hold it: every replica answered, and each
  answer was a refusal. One silent replica makes it unresolved.
"""

from __future__ import annotations

from kvstore import errors
from kvstore.core.quorum import Tally, Verdict
from kvstore.types import Applied, NodeId

_REPLACED = int(Applied.REPLACED)
_SUPERSEDED = int(Applied.SUPERSEDED)
_DUPLICATE = int(Applied.DUPLICATE)
_DEFINITE = (int(Applied.REFUSED), int(Applied.DISK_FULL), int(Applied.NOT_OWNER))


class WriteDecision:
    """The answers to one write so far, and what follows from them."""

    __slots__ = ("_refusals", "_tally", "existed", "superseded")

    def __init__(self, replicas: tuple[NodeId, ...], needed: int) -> None:
        self._tally = Tally(replicas, needed)
        self._refusals: list[int] | None = None
        self.superseded = False
        """A replica already held something newer."""
        self.existed = False
        """The write took the place of a live record."""

    def answer(self, node: NodeId, applied: int) -> Verdict:
        """Count an `Applied` of a replica."""
        if applied > _DUPLICATE:
            if applied in _DEFINITE:
                if self._refusals is None:
                    self._refusals = []
                self._refusals.append(applied)
            return self._tally.fail(node)
        if applied == _SUPERSEDED:
            self.superseded = True
        elif applied == _REPLACED:
            self.existed = True
        return self._tally.ack(node)

    def fail(self, node: NodeId) -> Verdict:
        """No answer will come; the replica may hold it all the same."""
        return self._tally.fail(node)

    @property
    def acked(self) -> tuple[NodeId, ...]:
        """Replicas that durably hold this or something newer."""
        return self._tally.acked

    @property
    def missing(self) -> tuple[NodeId, ...]:
        """Replicas that do not, as far as we know."""
        return self._tally.missing

    def failure(self) -> errors.KVError:
        """The error for a write whose level is not met."""
        tally = self._tally
        refusals = self._refusals or []
        if len(refusals) == len(tally.replicas):
            if Applied.DISK_FULL in refusals:
                return no_space()
            if Applied.REFUSED in refusals:
                return errors.ClockSkew(ahead_ms="too many", maximum="the configured")
            return errors.StaleEpoch(theirs="older", ours="newer")
        return errors.QuorumTimeout(
            operation="put",
            needed=tally.needed,
            acked=len(tally.acked),
            missing=" ".join(f"n{node}" for node in tally.missing),
        )


def no_space() -> errors.DiskFull:
    """What replicas that are too full to store it come to; how full each is was not told."""
    return errors.DiskFull(free="too few", reserve="the configured bytes")
