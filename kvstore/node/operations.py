"""One write or one read in flight: a decision, its deadline, and who waits for it.

An operation collects answers from replicas and hands them to its pure decision
(`core.writing`, `core.reading`); when the decision falls, the sink is told once and the
operation leaves the wheel. Answers that come later are still counted by the decision and
change nothing for the client.

No task, no future, no closure: these objects are the hot path (DESIGN 13).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvstore import errors
from kvstore.core.quorum import Verdict
from kvstore.core.reading import ReadDecision
from kvstore.core.writing import WriteDecision
from kvstore.node.deadlines import Bucket
from kvstore.types import Applied, Durability, NodeId, Version

_PENDING = Verdict.PENDING
_REACHED = Verdict.REACHED
_NEEDS_REGISTER = int(Applied.NEEDS_REGISTER)


class WriteSink(Protocol):
    """Who waits for a write. `tag` is the sink's own name for it."""

    def write_done(self, tag: int, write: WriteOperation) -> None:
        """The level is met; see the operation's fields."""
        ...

    def write_failed(self, tag: int, error: errors.KVError) -> None:
        """It is not met."""
        ...


class ReadSink(Protocol):
    """Who waits for a read."""

    def read_done(self, tag: int, read: ReadOperation) -> None:
        """The level is met and the replicas that were behind are mended."""
        ...

    def read_failed(self, tag: int, error: errors.KVError) -> None:
        """It is not met."""
        ...


class Owner(Protocol):
    """The coordinator, as far as a write knows it."""

    on_register: Callable[[WriteOperation], None]

    def ended(self) -> None:
        """The operation is over."""
        ...


class WriteOperation:
    """A record on its way to its replicas."""

    __slots__ = (
        "_bucket", "_finished", "_owner", "_sink", "_tag", "deadline", "decision", "durability", "key",
        "record", "version",
    )  # fmt: skip

    def __init__(
        self,
        sink: WriteSink,
        tag: int,
        decision: WriteDecision,
        version: Version,
        owner: Owner,
        key: bytes,
        record: bytes,
        deadline: float,
    ) -> None:
        self._sink = sink
        self._tag = tag
        self._bucket: Bucket | None = None
        self._finished = False
        self.decision = decision
        self.version = version
        self.durability = int(Durability.ALWAYS)
        """The weakest durability among the replicas that count."""
        self._owner = owner
        self.key = key
        self.record = record
        self.deadline = deadline

    def wait_in(self, bucket: Bucket) -> None:
        """The wheel's bucket to leave when finished."""
        self._bucket = bucket

    def answer(self, node: NodeId, applied: int, durability: int) -> None:
        """A replica answered."""
        verdict = self.decision.answer(node, applied)
        if self._finished:
            return
        if applied == _NEEDS_REGISTER:
            self._leave()
            self._owner.on_register(self)
            return
        if durability < self.durability and applied <= Applied.DUPLICATE:
            self.durability = durability
        if verdict is not _PENDING:
            self._finish(verdict)

    def fail(self, node: NodeId) -> None:
        """A replica will not answer."""
        verdict = self.decision.fail(node)
        if verdict is not _PENDING and not self._finished:
            self._finish(verdict)

    def expire(self) -> None:
        """The deadline has passed."""
        if not self._finished:
            self._finish(Verdict.LOST)

    def settle(self, decision: WriteDecision, version: Version) -> None:
        """It was done in another way, as a change of a register."""
        self.decision, self.version = decision, version
        self._owner.ended()
        self._sink.write_done(self._tag, self)

    def fail_with(self, error: errors.KVError) -> None:
        """It was tried in another way, and failed."""
        self._owner.ended()
        self._sink.write_failed(self._tag, error)

    def _leave(self) -> None:
        """Answers and deadlines mean nothing to it from now on."""
        self._finished = True
        if self._bucket is not None:
            self._bucket.pop(id(self), None)

    def _finish(self, verdict: Verdict) -> None:
        self._leave()
        self._owner.ended()
        if verdict is _REACHED:
            self._sink.write_done(self._tag, self)
        else:
            self._sink.write_failed(self._tag, self.decision.failure())


class ReadOperation:
    """A question on its way to the replicas, and the repair that its answers call for."""

    __slots__ = ("_bucket", "_finished", "_repair", "_sink", "_tag", "decision", "key", "on_end", "repaired")

    def __init__(
        self,
        sink: ReadSink,
        tag: int,
        key: bytes,
        decision: ReadDecision,
        repair: Callable[[ReadOperation, tuple[NodeId, ...]], None],
        on_end: Callable[[bytes | None], None],
    ) -> None:
        self._sink = sink
        self._tag = tag
        self._bucket: Bucket | None = None
        self._finished = False
        self._repair = repair
        self.key = key
        self.decision = decision
        self.repaired: list[NodeId] = []
        """Replicas that took a newer record because of this read."""
        self.on_end = on_end

    @property
    def newest(self) -> bytes | None:
        """The record that won, whatever its kind."""
        return self.decision.newest

    def wait_in(self, bucket: Bucket) -> None:
        """The wheel's bucket to leave when finished."""
        self._bucket = bucket

    def is_over(self) -> bool:
        """Whether it was told, or given up."""
        return self._finished

    def answer_read(self, node: NodeId, record: bytes | None) -> None:
        """A replica told what it has."""
        self._settle(self.decision.answer(node, record))

    def answer(self, node: NodeId, applied: int, durability: int) -> None:
        """A replica took (or already had) the repair."""
        del durability
        if applied <= Applied.DUPLICATE:
            self.repaired.append(node)
            self._settle(self.decision.repaired(node))
        else:
            self._settle(self.decision.fail(node))

    def fail(self, node: NodeId) -> None:
        """A replica will not answer, or will not take the repair."""
        self._settle(self.decision.fail(node))

    def expire(self) -> None:
        """The deadline has passed."""
        if not self._finished:
            self._finish(Verdict.LOST)

    def _settle(self, verdict: Verdict) -> None:
        # Repairs go out even when the client already has its answer: a late reply may be behind.
        behind = self.decision.repairs()
        if behind:
            self._repair(self, behind)
        if verdict is not _PENDING and not self._finished:
            self._finish(verdict)

    def _finish(self, verdict: Verdict) -> None:
        self._finished = True
        if self._bucket is not None:
            self._bucket.pop(id(self), None)
        self.on_end(self.decision.newest)
        if verdict is _REACHED:
            self._sink.read_done(self._tag, self)
        else:
            decision = self.decision
            self._sink.read_failed(
                self._tag,
                errors.QuorumTimeout(
                    operation="get",
                    needed=decision.needed,
                    acked=len(decision.answered),
                    missing=" ".join(f"n{node}" for node in decision.missing)
                    or "none, but repair did not finish",
                ),
            )
