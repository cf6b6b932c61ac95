"""What a proposer waits for: one phase of a round, or a glance at what owners show."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvstore.core.quorum import Verdict
from kvstore.core.register import Glance, Phase, Round
from kvstore.node.acceptor import Vote
from kvstore.node.deadlines import Bucket
from kvstore.types import NodeId
from kvstore.wire.register_messages import BEATEN, FULL, GRANTED


class PhaseWait:
    """Counts the votes of one phase, and tells its verdict once.

    Votes that failed for want of disk space count last: what the other owners say then tells whether anybody
    holds the record.
    """

    __slots__ = ("_decided", "_heard", "_overtaken", "_phase", "_round", "_wait_on", "bucket", "full")

    def __init__(
        self,
        current: Round,
        decided: Callable[[Verdict], None],
        *,
        overtaken: Callable[[], None],
        wait_on: Callable[[PhaseWait], bool],
    ) -> None:
        self._round = current
        self._overtaken = overtaken
        self._wait_on = wait_on
        self._phase = current.phase
        self._decided: Callable[[Verdict], None] | None = decided
        self._heard = 0
        """Owners of whom it is known what they say, or that they say nothing."""
        self.bucket: Bucket | None = None
        self.full: list[NodeId] = []
        """Owners without space for the record."""

    def voted(self, node: NodeId, vote: Vote) -> None:
        """An acceptor answered."""
        status, number, record = vote
        current, phase = self._round, self._phase
        if status == GRANTED:
            if phase is not current.phase:
                return
            verdict = current.promised(node, record) if phase is Phase.PREPARE else current.accepted(node)
        elif status == BEATEN:
            verdict = current.refused(node, number, phase)
            if self._decided is None:  # too late for the verdict, not for what follows from it
                self._overtaken()
        elif status == FULL:
            self.full.append(node)
            verdict = current.verdict
        else:
            verdict = current.failed(node, phase)
        self._count(verdict)

    def is_over(self) -> bool:
        """Whether the phase is decided."""
        return self._decided is None

    def fail(self, node: NodeId) -> None:
        """An acceptor will not answer."""
        self._count(self._round.failed(node, self._phase))

    def _count(self, verdict: Verdict) -> None:
        self._heard += 1
        if self.full and self._heard == len(self._round.owners):
            for node in self.full:
                verdict = self._round.failed(node, self._phase)
        self._settle(verdict)

    def expire(self) -> None:
        """The phase's time is over, unless it is given more."""
        if self._decided is not None and not self._wait_on(self):
            self._settle(Verdict.LOST)

    def _settle(self, verdict: Verdict) -> None:
        decided = self._decided
        if verdict is Verdict.PENDING or decided is None:
            return
        self._decided = None
        if self.bucket is not None:
            self.bucket.pop(id(self), None)
        decided(verdict)


class GlanceWait:
    """Counts what owners show; the future gets True, or False when a round is needed."""

    __slots__ = ("_answer", "bucket", "glance")

    def __init__(self, glance: Glance, answer: asyncio.Future[bool]) -> None:
        self.glance = glance
        self._answer = answer
        self.bucket: Bucket | None = None

    def peeked(self, node: NodeId, promised: int, record: bytes | None) -> None:
        """An owner showed its state."""
        self._settle(self.glance.shown(node, promised, record))

    def is_over(self) -> bool:
        """Whether it is known, or nobody waits for it."""
        return self._answer.done()

    def fail(self, node: NodeId) -> None:
        """An owner will not."""
        self._settle(self.glance.failed(node))

    def expire(self) -> None:
        """Its time is over."""
        self._settle(Verdict.LOST)

    def _settle(self, verdict: Verdict) -> None:
        if verdict is Verdict.PENDING or self._answer.done():
            return
        if self.bucket is not None:
            self.bucket.pop(id(self), None)
        self._answer.set_result(verdict is Verdict.REACHED)
