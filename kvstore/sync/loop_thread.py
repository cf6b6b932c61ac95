"""An event loop in a thread of its own: where async things live while their callers block."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from kvstore import errors

_T = TypeVar("_T")


class LoopThread:
    """One loop, one daemon thread. Ends with `end`, and takes whatever still runs there with it."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvstore-sync", daemon=True)
        self._thread.start()
        self.ended = False
        self.ending = threading.RLock()
        """Held by the one who ends it, so that nobody else does meanwhile."""

    @property
    def is_here(self) -> bool:
        """Whether this is the process that made it: a thread does not live on in a child."""
        return os.getpid() == self._process

    def run(self, steps: Coroutine[Any, Any, _T]) -> _T:
        """Run `steps` there and wait for them here. Raises errors.CannotConnect, errors.WrongLoop."""
        if not self.is_here:
            steps.close()
            raise errors.WrongLoop
        if self.ended:
            steps.close()
            raise errors.CannotConnect(address="the cluster", reason="this client is closed")
        future = asyncio.run_coroutine_threadsafe(steps, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            if not self.ended:
                raise
            raise errors.ConnectionLost(address="the cluster", reason="this client was closed") from None
        except BaseException:
            future.cancel()  # Ctrl-C here must not leave the call running there
            raise

    def now(self) -> float:
        """Seconds by the loop's monotonic clock."""
        return self._loop.time()

    def end(self) -> None:
        """Stop the loop and the thread; what still runs there, a lock's renewal perhaps, is cancelled.

        Harmless when repeated.
        """
        with self.ending:
            if self.ended:
                return
            self.ended = True
            asyncio.run_coroutine_threadsafe(_cancel_the_rest(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _cancel_the_rest() -> None:
    mine = asyncio.current_task()
    rest = [task for task in asyncio.all_tasks() if task is not mine]
    for task in rest:
        task.cancel()
    for task in rest:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
