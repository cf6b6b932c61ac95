"""Sinks for linear code: await one operation, or gather many into one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kvstore import errors, limits
from kvstore.node.client_stream import ClientStream, entry, receipt
from kvstore.node.operations import ReadOperation, WriteOperation
from kvstore.node.proposers import Settled
from kvstore.wire import results


class Waiting:
    """One operation, awaited: `await waiting.read()` or `await waiting.write()`."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[Any] | None = asyncio.get_running_loop().create_future()

    async def read(self) -> ReadOperation:
        """The finished read. Raises what made it fail."""
        done = await self._wait()
        assert isinstance(done, ReadOperation)
        return done

    async def write(self) -> WriteOperation:
        """The finished write. Raises what made it fail."""
        done = await self._wait()
        assert isinstance(done, WriteOperation)
        return done

    async def _wait(self) -> Any:
        assert self._future is not None
        try:
            return await self._future
        finally:
            self._future = None  # it holds the operation, which holds us: a cycle for the collector

    def read_done(self, tag: int, read: ReadOperation) -> None:
        """Wake the waiter."""
        self.write_done(tag, read)

    def write_done(self, tag: int, write: ReadOperation | WriteOperation) -> None:
        """Wake the waiter."""
        del tag
        future = self._future
        if future is not None and not future.done():  # the waiter may have been cancelled
            future.set_result(write)

    def read_failed(self, tag: int, error: errors.KVError) -> None:
        """Wake the waiter with the error."""
        self.write_failed(tag, error)

    def write_failed(self, tag: int, error: errors.KVError) -> None:
        """Wake the waiter with the error."""
        del tag
        future = self._future
        if future is not None and not future.done():
            future.set_exception(error)


NO_ROOM = results.encode_failure(
    errors.Overloaded(what="bytes in one answer", maximum=limits.ANSWER_BYTES_MAX, retry_after_ms=0)
)
"""In the place of a key whose value did not fit beside the others'; it is asked for again."""
_NOT_TOLD = errors.ConnectionLost(address="the node", reason="the outcome did not fit into the answer")
"""In the place of a change that was done: asked again under the same operation id, it is told."""


class Gather:
    """Many operations of one request; answered when the last has its outcome, or an answer is full.

    A key that failed has `{"error": [name, message, fields]}` in its place.
    """

    __slots__ = ("_head", "_left", "_msgid", "_now", "_outcomes", "_reads", "_room", "_stream")

    def __init__(
        self, stream: ClientStream, msgid: int, count: int, now: Callable[[], int], *, head: bool
    ) -> None:
        self._stream = stream
        self._msgid = msgid
        self._now = now
        self._head = head
        self._outcomes: list[Any] = [None] * count
        self._left = count
        self._room = limits.ANSWER_BYTES_MAX
        self._reads: list[ReadOperation] = []
        if not count:
            stream.respond(msgid, [])

    @property
    def is_answered(self) -> bool:
        """Whether nothing more is of use."""
        return not self._left

    def reading(self, read: ReadOperation) -> None:
        """A read that need not go on when the answer is full."""
        if self._left:
            self._reads.append(read)

    def read_done(self, tag: int, read: ReadOperation) -> None:
        """One key was read."""
        if not self._left:
            return
        decision = read.decision
        try:
            outcome = entry(
                decision.newest,
                self._now,
                self._stream.epoch,
                decision.answered,
                read.repaired,
                head=self._head,
            )
        except errors.ClockSkew as error:
            self.read_failed(tag, error)
        else:
            payload = outcome[0]
            if payload is not None:
                self._room -= len(payload)
            self._one(tag, outcome)
            if self._room < 0 and self._left:
                self._full()

    def write_done(self, tag: int, write: WriteOperation) -> None:
        """One key was written."""
        self._one(tag, receipt(write, self._stream.epoch))

    def read_failed(self, tag: int, error: errors.KVError) -> None:
        """One key failed."""
        self._one(tag, {"error": error.to_wire()})

    def write_failed(self, tag: int, error: errors.KVError) -> None:
        """One key failed."""
        self._one(tag, {"error": error.to_wire()})

    def settling(
        self, tag: int, shape: Callable[[Settled], tuple[Any, ...]]
    ) -> Callable[[Settled | None, errors.KVError | None], None]:
        """For a change of a register: what tells that it came to something; `shape` makes its outcome."""

        def done(settled: Settled | None, error: errors.KVError | None) -> None:
            if settled is not None:
                self._settled(tag, settled[0].value, shape(settled))
            elif error is not None:
                self.write_failed(tag, error)

        return done

    def _settled(self, tag: int, value: bytes | None, outcome: tuple[Any, ...]) -> None:
        """All changes are waited for: they were begun, and will be done."""
        if value is not None:
            if self._room < 0:
                self.write_failed(tag, _NOT_TOLD)
                return
            self._room -= len(value)
        self._one(tag, outcome)

    def _one(self, tag: int, outcome: Any) -> None:
        if not self._left:
            return
        self._outcomes[tag] = outcome
        self._left -= 1
        if not self._left:
            self._reads.clear()  # they know us: a cycle for the collector
            self._stream.respond(self._msgid, self._outcomes)

    def _full(self) -> None:
        """Answer with what is there; the rest is not read for nobody."""
        self._left = 0
        reads, self._reads = self._reads, []
        self._stream.respond(self._msgid, [NO_ROOM if each is None else each for each in self._outcomes])
        for read in reads:
            read.expire()
