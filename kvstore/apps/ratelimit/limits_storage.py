"""A storage for the `limits` package: `kvstore://host:port[,host:port...]`, once this module is imported.

    import kvstore.apps.ratelimit.limits_storage
    storage = limits.storage.storage_from_string("kvstore://127.0.0.1:7401")
    limits.strategies.MovingWindowRateLimiter(storage).hit(limits.parse("10/minute"), "customer:42")

All three strategies; each acquisition is one change of one register, so unlike with counters in a cache a
race is not decided by adding first and taking back later. Fixed windows are `incr`, as the interface has
them: a refused hit counts there as well. The log of a
moving window is one value: hits beyond what a value may hold raise errors.BadValue.
"""

from __future__ import annotations

from collections.abc import Callable

from limits.storage.base import (
    MovingWindowSupport,
    SlidingWindowCounterSupport,
    Storage,
    TimestampedSlidingWindow,
)

import kvstore
from kvstore import Applied, errors
from kvstore.apps.ratelimit import algorithms
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.blocking import LoopThread
from kvstore.apps.ratelimit.ledger import Ledger
from kvstore.apps.ratelimit.limit import FRESH, Algorithm, Limit, State
from kvstore.apps.ratelimit.machine import Moment, certain, wall_us
from kvstore.apps.ratelimit.registers import Ledgers
from kvstore.apps.ratelimit.turns import CHANGE_PART

_LINEAR = "linearizable"
_SECOND_US = 1_000_000
_SPARE_S = 60.0
_PAGE = 500

Acquired = tuple[bool, State]


class KvstoreStorage(Storage, MovingWindowSupport, SlidingWindowCounterSupport, TimestampedSlidingWindow):
    """Counters, logs and windows of `limits`, in registers under one prefix.

    Sliding windows begin at multiples of their length, which is what the last of the bases tells.
    """

    STORAGE_SCHEME = ["kvstore"]  # noqa: RUF012  the name and the kind are the package's

    def __init__(
        self,
        uri: str,
        wrap_exceptions: bool = False,
        *,
        prefix: str = "limits:",
        timeout: float = 5.0,
        token: str | None = None,
        **options: float | str | bool,
    ) -> None:
        """Connect. Raises errors.CannotConnect and its kin, errors.BadOption."""
        super().__init__(uri, wrap_exceptions=wrap_exceptions, **options)
        self._prefix = prefix
        self._timeout_s = timeout
        self._thread = LoopThread()
        try:
            url = "kv://" + uri.removeprefix("kvstore://")
            self._kv = self._thread.run(kvstore.connect(url, timeout=timeout, token=token))
        except BaseException:
            self._thread.end()
            raise
        self._background = Background()
        self._ledgers = Ledgers(
            self._kv, moments=certain(wall_us), timeout_s=timeout, background=self._background
        )

    def close(self) -> None:
        """Drop the connection and end the thread."""
        self._thread.run(self._ledgers.close())
        self._thread.run(self._background.close())
        self._thread.run(self._kv.close())
        self._thread.end()

    @property
    def base_exceptions(self) -> type[Exception]:
        """What `wrap_exceptions` wraps."""
        return errors.KVError

    def check(self) -> bool:
        """Whether the store answers."""
        try:
            self._thread.run(self._kv.ping())
        except errors.KVError:
            return False
        return True

    def reset(self) -> int | None:
        """Delete everything under the prefix; returns how much that was."""
        return self._thread.run(self._reset())

    async def _reset(self) -> int:
        keys = [entry.key async for entry in self._kv.scan(self._prefix, keys_only=True)]
        for at in range(0, len(keys), _PAGE):
            await self._kv.delete_many(keys[at : at + _PAGE], consistency=_LINEAR)
        return len(keys)

    def clear(self, key: str) -> None:
        """Forget a counter and a log."""
        for kind in ("c", "m"):
            self._thread.run(self._ledgers.reset(self._raw(kind, key)))

    def _raw(self, kind: str, key: str) -> bytes:
        return f"{self._prefix}{kind}:{key}".encode()

    # --- fixed window -------------------------------------------------------------------

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count, exactly once; the first one sets the end."""
        return self._thread.run(self._incr(self._raw("c", key), expiry, amount))

    async def _incr(self, raw: bytes, expiry: int, amount: int) -> int:
        while True:
            try:
                done = await self._kv.incr(raw, amount, ttl=expiry, timeout=self._timeout_s * CHANGE_PART)
            except errors.Unresolved as lost:
                # Without this, `limits` would count the call again.
                done = await self._kv.resolve(lost.operation, timeout=self._timeout_s * (1 - CHANGE_PART))
            if isinstance(done, Applied):
                return int(done.value)

    def get(self, key: str) -> int:
        """A counter, or 0."""
        entry = self._thread.run(self._kv.get(self._raw("c", key), consistency=_LINEAR))
        return 0 if entry is None else int(entry.value)

    def get_expiry(self, key: str) -> float:
        """When a counter ends, in seconds since 1970; now, when there is none."""
        left = self._thread.run(self._kv.ttl(self._raw("c", key), consistency=_LINEAR))
        return wall_us() / _SECOND_US + (left or 0.0)

    # --- moving window ------------------------------------------------------------------

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Log `amount` calls, if the last `expiry` seconds have room for all of them."""
        label = _log(expiry)

        def acquire(state: State, now_us: int) -> Acquired:
            log = algorithms.logged(label, state, now_us=now_us)
            if sum(cost for _, cost in log) + amount > limit:
                return False, state
            return True, algorithms.packed([*log, (now_us, amount)])

        return self._acquire(self._raw("m", key), label, acquire, kept_s=expiry)

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the oldest call that counts was made, and how many count."""
        del limit
        book, label, now_us = self._book("m", key), _log(expiry), wall_us()
        log = algorithms.logged(label, book.states.get(label.fingerprint, FRESH), now_us=now_us)
        return (log[0][0] if log else now_us) / _SECOND_US, sum(cost for _, cost in log)

    # --- sliding window counter ---------------------------------------------------------

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` calls, if the estimate, rounded down as this package has it, has room for them."""
        period = expiry * _SECOND_US

        def acquire(state: State, now_us: int) -> Acquired:
            current, previous = _counts(state, now_us, period)
            part_left = period - now_us % period
            if previous * part_left // period + current + amount > limit:
                return False, state
            return True, (now_us // period, current + amount, previous)

        return self._acquire(self._raw("s", key), _counter(expiry), acquire, kept_s=2 * expiry)

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Count and seconds left of the window before, and of the one that is now."""
        book, label, now_us = self._book("s", key), _counter(expiry), wall_us()
        state = book.states.get(label.fingerprint, FRESH)
        current, previous = _counts(state, now_us, label.period_us)
        left = expiry - now_us % label.period_us / _SECOND_US
        return previous, left if previous else 0.0, current, left + expiry

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget both windows."""
        del expiry
        self._thread.run(self._ledgers.reset(self._raw("s", key)))

    # --- registers ----------------------------------------------------------------------

    def _book(self, kind: str, key: str) -> Ledger:
        return self._thread.run(self._ledgers.book(self._raw(kind, key)))

    def _acquire(
        self, raw: bytes, label: Limit, acquire: Callable[[State, int], Acquired], *, kept_s: float
    ) -> bool:
        """One change of one register; `label` tells states of different periods apart."""

        def step(book: Ledger, now: Moment) -> tuple[bool, Ledger]:
            now_us = max(now.us, book.seen_us)
            allowed, after = acquire(book.states.get(label.fingerprint, FRESH), now_us)
            return allowed, Ledger(now_us, {label.fingerprint: after}) if allowed else book

        return self._thread.run(self._ledgers.change(raw, step, lambda _allowed: kept_s + _SPARE_S))


def _log(expiry: int) -> Limit:
    return Limit(algorithm=Algorithm.SLIDING_LOG, amount=1, period_us=expiry * _SECOND_US)


def _counter(expiry: int) -> Limit:
    return Limit(algorithm=Algorithm.SLIDING_COUNTER, amount=1, period_us=expiry * _SECOND_US)


def _counts(state: State, now_us: int, period: int) -> tuple[int, int]:
    """(current, previous) as of now."""
    if not state:
        return 0, 0
    at, current, previous = state
    behind = now_us // period - at
    return (current, previous) if behind <= 0 else (0, current) if behind == 1 else (0, 0)


__all__ = ["KvstoreStorage"]
