"""Sinks for linear code: await one operation, or gather many into one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kvstore import errors
from kvstore.node.client_stream import ClientStream, entry, receipt
from kvstore.node.operations import ReadOperation, WriteOperation
from kvstore.node.proposers import Settled


class Waiting:
    """One operation, awaited: `await waiting.read()` or `await waiting.write()`."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def read(self) -> ReadOperation:
        """The finished read. Raises what made it fail."""
        done = await self._future
        assert isinstance(done, ReadOperation)
        return done

    async def write(self) -> WriteOperation:
        """The finished write. Raises what made it fail."""
        done = await self._future
        assert isinstance(done, WriteOperation)
        return done

    def read_done(self, tag: int, read: ReadOperation) -> None:
        """Wake the waiter."""
        self.write_done(tag, read)

    def write_done(self, tag: int, write: ReadOperation | WriteOperation) -> None:
        """Wake the waiter."""
        del tag
        if not self._future.done():  # the waiter may have been cancelled
            self._future.set_result(write)

    def read_failed(self, tag: int, error: errors.KVError) -> None:
        """Wake the waiter with the error."""
        self.write_failed(tag, error)

    def write_failed(self, tag: int, error: errors.KVError) -> None:
        """Wake the waiter with the error."""
        del tag
        if not self._future.done():
            self._future.set_exception(error)


class Gather:
    """Many operations of one request; answered when the last has its outcome.

    A key that failed has `{"error": [name, message, fields]}` in its place.
    """

    __slots__ = ("_head", "_left", "_msgid", "_now", "_outcomes", "_stream")

    def __init__(
        self, stream: ClientStream, msgid: int, count: int, now: Callable[[], int], *, head: bool
    ) -> None:
        self._stream = stream
        self._msgid = msgid
        self._now = now
        self._head = head
        self._outcomes: list[Any] = [None] * count
        self._left = count
        if not count:
            stream.respond(msgid, [])

    def read_done(self, tag: int, read: ReadOperation) -> None:
        """One key was read."""
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
            self._one(tag, outcome)

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
                self._one(tag, shape(settled))
            elif error is not None:
                self.write_failed(tag, error)

        return done

    def _one(self, tag: int, outcome: Any) -> None:
        self._outcomes[tag] = outcome
        self._left -= 1
        if not self._left:
            self._stream.respond(self._msgid, self._outcomes)
