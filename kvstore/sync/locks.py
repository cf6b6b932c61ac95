"""A lease held by a thread that blocks: renewed on the client's private loop meanwhile.

`lease.token` is the fencing token; hand it to whatever the lock protects. `lease.lost` is a
threading.Event; look at it between steps, and stop when it is set.
"""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

from kvstore.client import locks as asynchronous
from kvstore.sync.loop_thread import LoopThread


class Lock:
    """One holder's claim on a name; `kvstore.Lock` without `await`. It belongs to one thread at a time."""

    def __init__(self, thread: LoopThread, lock: asynchronous.Lock) -> None:
        self._thread = thread
        self._lock = lock
        self._watching: asyncio.Task[None] | None = None
        self.name = lock.name
        self.key = lock.key
        self.lost = threading.Event()
        """Set when the lease ended without being released: stop what it protects."""

    def __enter__(self) -> Self:
        """Acquire, and keep it until the block ends."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        self.release()

    @property
    def token(self) -> int:
        """The fencing token; 0 while the lock is not held."""
        return self._lock.token

    @property
    def held(self) -> bool:
        """Whether the lease lasts still, by this machine's monotonic clock, which is only advice."""
        return self._is_alive and self._lock.held

    def acquire(self) -> int:
        """Wait for the lock; returns the fencing token. Raises errors.LockTaken when `wait` is over."""
        return self._thread.run(self._acquire())

    def release(self) -> None:
        """Give it back; harmless when it was lost, never held, of a closed client or a parent."""
        if self._is_alive:
            self._thread.run(self._release())

    @property
    def _is_alive(self) -> bool:
        return self._thread.is_here and not self._thread.ended

    async def _acquire(self) -> int:
        token = await self._lock.acquire()
        self.lost.clear()
        self._watching = asyncio.create_task(self._watch())  # noqa: TID251  `_release` ends it
        return token

    async def _watch(self) -> None:
        await self._lock.lost.wait()
        self.lost.set()

    async def _release(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        await self._lock.release()
