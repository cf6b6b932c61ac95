"""Something async on a loop thread of its own; after a fork the child makes another one.

A thread does not live on in a child, and the sockets of the parent are the parent's: bytes that a child
writes to them come between the parent's own, and operation ids that both go on counting are taken for
repetitions. Servers fork after the application was loaded (gunicorn's preload, uWSGI, Celery), so this
happens to people who never call fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from kvstore.sync.loop_thread import LoopThread

_T = TypeVar("_T")
_R = TypeVar("_R")
_left: list[object] = []
"""What a fork left of the parent: kept, since its end would close what it shares with the parent."""
_reopening = threading.Lock()


def _after_fork() -> None:
    global _reopening  # noqa: PLW0603  a thread that is not here may have held it
    _reopening = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Resident(Generic[_T]):
    """`it` lives where `thread` runs; both are those of the process that asks."""

    def __init__(
        self, make: Callable[[], Coroutine[Any, Any, _T]], close: Callable[[_T], Coroutine[Any, Any, None]]
    ) -> None:
        """Raises what `make` raises."""
        self._make = make
        self._close = close
        self._pair = self._made()
        """One value, so that no thread of a child sees half of what another just put here."""

    @property
    def thread(self) -> LoopThread:
        """Where it runs. Raises what `make` raises, as everything here does first in a child."""
        return self._here()[0]

    @property
    def it(self) -> _T:
        """What was made."""
        return self._here()[1]

    def run(self, steps: Callable[[_T], Coroutine[Any, Any, _R]]) -> _R:
        """Have it do something, and wait for that here. Raises errors.CannotConnect after `end`."""
        thread, it = self._here()
        return thread.run(steps(it))

    def end(self) -> None:
        """Close it and end the thread; harmless when repeated, and in a child that never used it."""
        thread, it = self._pair
        if thread.is_here:
            # Another thread that closes as well waits here until all is closed, and finds nothing to do.
            with thread.ending:
                if not thread.ended:
                    thread.run(self._close(it))
                    thread.end()
        thread.ended = True

    def _here(self) -> tuple[LoopThread, _T]:
        pair = self._pair
        if pair[0].is_here or pair[0].ended:
            return pair
        with _reopening:
            if self._pair is pair:
                made = self._made()
                _left.append(pair)
                self._pair = made
            return self._pair

    def _made(self) -> tuple[LoopThread, _T]:
        thread = LoopThread()
        try:
            return thread, thread.run(self._make())
        except BaseException:
            thread.end()
            raise
