"""A client's connection: the sink of its single reads and writes, and how their answers look."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from kvstore import errors
from kvstore.core import record as records
from kvstore.node.coordinator import Coordinator
from kvstore.node.metrics import Counters
from kvstore.node.operations import ReadOperation, WriteOperation
from kvstore.node.stream import Owner, Stream
from kvstore.node.turn import Turn
from kvstore.wire import messages

HEAD = 1


def receipt(write: WriteOperation, epoch: int) -> tuple[Any, ...]:
    """What a client learns about a write that met its level."""
    decision = write.decision
    return messages.encode_receipt(
        write.version, epoch, decision.acked, decision.superseded, decision.existed, write.durability
    )


def entry(
    record: bytes | None,
    now: Callable[[], int],
    epoch: int,
    answered: Sequence[int],
    repaired: Sequence[int],
    *,
    head: bool,
) -> list[Any]:
    """What a client learns about a key; `head` leaves the value out.

    `now` is asked only for a record that expires, and may raise errors.ClockSkew: a clock that cannot be
    trusted must neither hide a live record nor show an expired one.
    """
    if record is None:
        return [None, 0, 0, epoch, answered, repaired, False]
    version, expires_ms = records.shown_version_of(record), records.expires_of(record)
    if not records.is_live(record, now() if expires_ms else 0):
        return [None, version, 0, epoch, answered, repaired, False]
    payload = None if head else records.readable_of(record)
    return [payload, version, expires_ms, epoch, answered, repaired, True]


class ClientStream(Stream):
    """Tags: of a write its request id; of a read the id doubled, plus one for `head`."""

    __slots__ = ("_coordinator", "_counters")

    def __init__(
        self,
        *,
        owner: Owner,
        turn: Turn,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        coordinator: Coordinator,
    ) -> None:
        super().__init__(owner=owner, turn=turn, loop=loop)
        self._counters = counters
        self._coordinator = coordinator

    @property
    def epoch(self) -> int:
        """The topology's epoch, for receipts."""
        return self._coordinator.topology.epoch

    def fail(self, msgid: int, error: errors.KVError) -> None:
        """Count, and answer with the error."""
        if error.definite:
            self._counters.refused += 1
        else:
            self._counters.unresolved += 1
        super().fail(msgid, error)

    def write_done(self, tag: int, write: WriteOperation) -> None:
        """Answer with the receipt."""
        if write.decision.superseded:
            self._counters.superseded += 1
        self.respond(tag, receipt(write, self.epoch))

    def write_failed(self, tag: int, error: errors.KVError) -> None:
        """Answer with the error."""
        self.fail(tag, error)

    def read_done(self, tag: int, read: ReadOperation) -> None:
        """Answer with the record, if a reader may see it."""
        decision = read.decision
        try:
            answer = entry(
                decision.newest,
                self._coordinator.trusted_now,
                self.epoch,
                decision.answered,
                read.repaired,
                head=bool(tag & HEAD),
            )
        except errors.ClockSkew as error:
            self.fail(tag >> 1, error)
        else:
            self.respond(tag >> 1, answer)

    def read_failed(self, tag: int, error: errors.KVError) -> None:
        """Answer with the error."""
        self.fail(tag >> 1, error)
