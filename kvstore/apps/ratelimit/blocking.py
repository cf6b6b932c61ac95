"""The limiter without `await`, for threads and frameworks that block.

    with BlockingLimiter("kv://127.0.0.1:7401", rules.load("rules.toml")) as limiter:
        if limiter.check("api", "customer:42"): ...

One private event loop in one daemon thread does the work, so a limiter may be shared between threads. After a
fork the child connects anew at its first call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import kvstore
from kvstore.apps.ratelimit.limiter import Limiter, Outcome
from kvstore.apps.ratelimit.rules import Rules
from kvstore.sync import Resident


class _Kept(NamedTuple):
    """What lives on the loop."""

    kv: kvstore.Client
    limiter: Limiter


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
        made: list[Limiter] = []

        async def make() -> _Kept:
            kv = await kvstore.connect(url, token=token)
            made.append(Limiter(kv, made[-1].rules if made else rules, **options))
            return _Kept(kv, made[-1])

        self._resident = Resident(make, _closed)

    @property
    def limiter(self) -> Limiter:
        """What it is the blocking face of; in a child another one than in its parent."""
        return self._resident.it.limiter

    def __enter__(self) -> Self:
        """The limiter itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Drop the connection and end the thread; harmless when repeated."""
        self._resident.end()

    def check(self, rule: str, key: str, cost: int = 1, *, lease: str = "") -> Outcome:
        """See `Limiter.check`."""
        return self._resident.run(lambda at: at.limiter.check(rule, key, cost, lease=lease))

    def peek(self, rule: str, key: str) -> Outcome:
        """See `Limiter.peek`."""
        return self._resident.run(lambda at: at.limiter.peek(rule, key))

    def reset(self, rule: str, key: str) -> None:
        """See `Limiter.reset`."""
        self._resident.run(lambda at: at.limiter.reset(rule, key))

    def release(self, rule: str, key: str, lease: str) -> None:
        """See `Limiter.release`."""
        self._resident.run(lambda at: at.limiter.release(rule, key, lease))

    def let_go(self, outcome: Outcome) -> bool:
        """See `Limiter.let_go`."""
        return self._resident.run(lambda at: at.limiter.let_go(outcome))

    @contextmanager
    def held(self, rule: str, key: str, cost: int = 1) -> Iterator[Outcome]:
        """See `Limiter.held`."""
        outcome = self.check(rule, key, cost)
        try:
            yield outcome
        finally:
            if outcome.lease:
                self.let_go(outcome)


async def _closed(kept: _Kept) -> None:
    await kept.limiter.close()
    await kept.kv.close()
