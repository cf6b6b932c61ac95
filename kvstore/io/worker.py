"""One thread that does blocking jobs in order and answers on the loop.

Rules kept here:
- jobs run one at a time, in the order of submission, and are answered in that order;
- an answer is delivered by the loop, never by the thread, so the code that gets it needs no lock;
- `close` lets every submitted job end; answers that find the loop closed are dropped, because
  nobody can be waiting for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")
_Done = Callable[[Any, BaseException | None], None]


class ThreadWorker:
    """A `ports.Worker` on one daemon thread, which starts with the first job."""

    __slots__ = ("_closed", "_jobs", "_loop", "_name", "_thread")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, name: str = "kvstore-worker") -> None:
        self._loop = loop
        self._name = name
        self._jobs: SimpleQueue[tuple[Callable[[], Any], _Done] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, job: Callable[[], _T], done: Callable[[_T | None, BaseException | None], None]) -> None:
        """Run `job`, then call `done(result, None)` or `done(None, error)` on the loop."""
        assert not self._closed, "a job for a worker that was closed"
        if self._thread is None:
            # A daemon: a process that dies of an error must not wait for a disk that hangs.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put((job, done))

    def close(self) -> None:
        """Finish the jobs already submitted, then stop. Blocks; harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (task := self._jobs.get()) is not None:
            job, done = task
            result: Any = None
            failure: BaseException | None = None
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001  it is delivered, not swallowed
                failure = error
            try:
                self._loop.call_soon_threadsafe(done, result, failure)
            except RuntimeError:
                # The loop is closed.
                continue
            # Between jobs the thread holds nothing: a large batch must not live until the next.
            del task, job, done, result, failure
