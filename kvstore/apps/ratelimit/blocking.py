"""The limiter without `await`, for threads and frameworks that block.

    with BlockingLimiter("kv://127.0.0.1:7401", rules.load("rules.toml")) as limiter:
        if limiter.check("api", "customer:42"): ...

One private event loop in one daemon thread does the work, so a limiter may be shared between threads; it
must not be shared over a fork.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import kvstore
from kvstore.apps.ratelimit.limiter import Limiter, Outcome
from kvstore.apps.ratelimit.rules import Rules

_T = TypeVar("_T")


class LoopThread:
    """An event loop in a thread of its own, which takes coroutines from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvstore-ratelimit", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do it there and wait for it here; an interrupted wait cancels it."""
        done = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return done.result()
        except BaseException:
            done.cancel()
            raise

    def end(self) -> None:
        """Stop; harmless when repeated."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class BlockingLimiter:
    """`Limiter` on a connection of its own."""

    def __init__(
        self,
        url: str | Sequence[str],
        rules: Rules,
        *,
        token: str | None = None,
        **options: Any,
    ) -> None:
        """`options` are those of `Limiter`. Raises errors.CannotConnect and its kin."""
        self._thread = LoopThread()
        try:
            self._kv: kvstore.Client | None = self._thread.run(kvstore.connect(url, token=token))
        except BaseException:
            self._thread.end()
            raise
        self.limiter = Limiter(self._kv, rules, **options)

    def __enter__(self) -> Self:
        """The limiter itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Drop the connection and end the thread; harmless when repeated."""
        if self._kv is not None:
            self._thread.run(self.limiter.close())
            self._thread.run(self._kv.close())
            self._kv = None
        self._thread.end()

    def check(self, rule: str, key: str, cost: int = 1, *, lease: str = "") -> Outcome:
        """See `Limiter.check`."""
        return self._thread.run(self.limiter.check(rule, key, cost, lease=lease))

    def peek(self, rule: str, key: str) -> Outcome:
        """See `Limiter.peek`."""
        return self._thread.run(self.limiter.peek(rule, key))

    def reset(self, rule: str, key: str) -> None:
        """See `Limiter.reset`."""
        self._thread.run(self.limiter.reset(rule, key))

    def release(self, rule: str, key: str, lease: str) -> None:
        """See `Limiter.release`."""
        self._thread.run(self.limiter.release(rule, key, lease))

    def let_go(self, outcome: Outcome) -> bool:
        """See `Limiter.let_go`."""
        return self._thread.run(self.limiter.let_go(outcome))

    @contextmanager
    def held(self, rule: str, key: str, cost: int = 1) -> Iterator[Outcome]:
        """See `Limiter.held`."""
        outcome = self.check(rule, key, cost)
        try:
            yield outcome
        finally:
            if outcome.lease:
                self.let_go(outcome)
