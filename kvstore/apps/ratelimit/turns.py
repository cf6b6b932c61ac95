"""Calls of one key take turns: those that come while a change is under way share the next one.

A change is a durable write on most replicas, so one for each call would make a key as slow as a disk. Calls
that share one are decided one after another in memory, in the order they came, and what they add up to is
stored at once or not at all; a call that nobody else waits behind has a change of its own.

Rules kept here:
- one turn of a key at a time; whoever stopped waiting before a turn began is not in it;
- a turn runs in a task of its own: a caller that goes away takes nobody with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from kvstore import errors
from kvstore.apps.ratelimit.background import Background

TURN_MAX = 1000
"""Calls in one turn; the others wait for the next."""


class Waiting(Protocol):
    """A call, and where its answer goes."""

    @property
    def told(self) -> asyncio.Future[object]:
        """Set by the turn."""
        ...


_Call = TypeVar("_Call", bound=Waiting)


class Turns(Generic[_Call]):
    """The queues, by key."""

    def __init__(self, turn: Callable[[bytes, list[_Call]], Awaitable[None]], background: Background) -> None:
        self._turn = turn
        self._background = background
        self._queues: dict[bytes, list[_Call]] = {}

    async def ask(self, key: bytes, call: _Call, *, timeout_s: float) -> object:
        """Wait for the answer of a turn.

        Raises errors.KVError: Contended when no turn came in time, DeadlineExceeded when one came and nobody
        knows yet what became of it.
        """
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = [call]
            self._background.start(self._drain(key))
        else:
            queue.append(call)
        try:
            async with asyncio.timeout(timeout_s):
                return await call.told
        except TimeoutError:
            timeout_ms, waiting = int(timeout_s * 1000), self._queues.get(key, ())
            if any(each is call for each in waiting):
                raise errors.Contended(key=repr(key), timeout_ms=timeout_ms) from None
            raise errors.DeadlineExceeded(timeout_ms=timeout_ms) from None

    async def _drain(self, key: bytes) -> None:
        queue = self._queues[key]
        calls: list[_Call] = []
        try:
            while queue:
                calls = [call for call in queue[:TURN_MAX] if not call.told.done()]
                del queue[:TURN_MAX]
                if calls:
                    await self._take(key, calls)
                    # Who was told may ask again at once: then it is in the next turn, with those who wait
                    # already, and not in the one after. Else callers part into two groups, each waiting
                    # for the other's turn as well.
                    await asyncio.sleep(0)
        finally:
            del self._queues[key]
            # Only when we are cancelled is anybody left.
            for call in (*calls, *queue):
                call.told.cancel()

    async def _take(self, key: bytes, calls: list[_Call]) -> None:
        try:
            await self._turn(key, calls)
        except Exception as error:  # noqa: BLE001  whatever it is, it is each caller's to raise
            for call in calls:
                if not call.told.done():
                    call.told.set_exception(error)


def tell(call: Waiting, answer: object) -> None:
    """Answer a call, if it still waits."""
    if not call.told.done():
        call.told.set_result(answer)
