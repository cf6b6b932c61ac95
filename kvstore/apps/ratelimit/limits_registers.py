"""What the `limits` package asks of a storage, on registers: what both storages are faces of.

All three strategies; each acquisition is one change of one register, so unlike with counters in a cache a
race is not decided by adding first and taking back later. Fixed windows are `incr`, as the interface has
them: a refused hit counts there as well. The log of a moving window is one value: hits beyond what a value
may hold raise errors.BadValue.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import kvstore
from kvstore import Applied, errors
from kvstore.apps.ratelimit import algorithms
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.ledger import Ledger
from kvstore.apps.ratelimit.limit import FRESH, Algorithm, State
from kvstore.apps.ratelimit.machine import Moment, certain, wall_us
from kvstore.apps.ratelimit.registers import Ledgers
from kvstore.apps.ratelimit.turns import CHANGE_PART

_LINEAR = "linearizable"
_SECOND_US = 1_000_000
_SPARE_S = 60.0
_PAGE = 500

Acquired = tuple[bool, State]


class LimitsRegisters:
    """Counters, logs and windows under one prefix. Terms, seconds and results are those of the package."""

    def __init__(self, kv: kvstore.Client, *, prefix: str, timeout_s: float) -> None:
        self._kv = kv
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._background = Background()
        self._ledgers = Ledgers(
            kv, moments=certain(wall_us), timeout_s=timeout_s, background=self._background
        )

    @classmethod
    async def open(cls, uri: str, *, prefix: str, timeout_s: float, token: str | None) -> LimitsRegisters:
        """Connect to the hosts of any uri. Raises errors.CannotConnect and its kin, errors.BadOption."""
        kv = await kvstore.connect("kv://" + uri.partition("://")[2], timeout=timeout_s, token=token)
        return cls(kv, prefix=prefix, timeout_s=timeout_s)

    async def close(self) -> None:
        """Drop the connection."""
        await self._ledgers.close()
        await self._background.close()
        await self._kv.close()

    async def check(self) -> bool:
        """Whether the store answers."""
        try:
            await self._kv.ping()
        except errors.KVError:
            return False
        return True

    async def reset(self) -> int:
        """Delete everything under the prefix; returns how much that was."""
        keys = [entry.key async for entry in self._kv.scan(self._prefix, keys_only=True)]
        for at in range(0, len(keys), _PAGE):
            await self._kv.delete_many(keys[at : at + _PAGE], consistency=_LINEAR)
        return len(keys)

    async def clear(self, key: str) -> None:
        """Forget a counter and a log."""
        for kind in ("c", "m"):
            await self._ledgers.reset(self._raw(kind, key))

    # --- fixed window -------------------------------------------------------------------

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count, exactly once; the first one sets the end."""
        raw = self._raw("c", key)
        while True:
            try:
                done = await self._kv.incr(raw, amount, ttl=expiry, timeout=self._timeout_s * CHANGE_PART)
            except errors.Unresolved as lost:
                # Without this, `limits` would count the call again.
                done = await self._kv.resolve(lost.operation, timeout=self._timeout_s * (1 - CHANGE_PART))
            if isinstance(done, Applied):
                return int(done.value)

    async def get(self, key: str) -> int:
        """A counter, or 0."""
        entry = await self._kv.get(self._raw("c", key), consistency=_LINEAR)
        return 0 if entry is None else int(entry.value)

    async def get_expiry(self, key: str) -> float:
        """When a counter ends, in seconds since 1970; now, when there is none."""
        left = await self._kv.ttl(self._raw("c", key), consistency=_LINEAR)
        return wall_us() / _SECOND_US + (left or 0.0)

    # --- moving window ------------------------------------------------------------------

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Log `amount` calls, if the last `expiry` seconds have room for all of them."""
        label = _log(expiry)

        def acquire(state: State, now_us: int) -> Acquired:
            log = algorithms.logged(label.period_us, state, now_us=now_us)
            if sum(cost for _, cost in log) + amount > limit:
                return False, state
            return True, algorithms.packed([*log, (now_us, amount)])

        return await self._acquire(self._raw("m", key), label, acquire, kept_s=expiry)

    async def get_moving_window(self, key: str, expiry: int) -> tuple[float, int]:
        """When the oldest call that counts was made, and how many count."""
        label, now_us = _log(expiry), wall_us()
        state = await self._state("m", key, label)
        log = algorithms.logged(label.period_us, state, now_us=now_us)
        return (log[0][0] if log else now_us) / _SECOND_US, sum(cost for _, cost in log)

    # --- sliding window counter ---------------------------------------------------------

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` calls, if the estimate, rounded down as this package has it, has room for them."""
        period = expiry * _SECOND_US

        def acquire(state: State, now_us: int) -> Acquired:
            current, previous = _counts(state, now_us, period)
            part_left = period - now_us % period
            if previous * part_left // period + current + amount > limit:
                return False, state
            return True, (now_us // period, current + amount, previous)

        return await self._acquire(self._raw("s", key), _counter(expiry), acquire, kept_s=2 * expiry)

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Count and seconds left of the window before, and of the one that is now."""
        label, now_us = _counter(expiry), wall_us()
        current, previous = _counts(await self._state("s", key, label), now_us, label.period_us)
        left = expiry - now_us % label.period_us / _SECOND_US
        return previous, left if previous else 0.0, current, left + expiry

    async def clear_sliding_window(self, key: str) -> None:
        """Forget both windows."""
        await self._ledgers.reset(self._raw("s", key))

    # --- registers ----------------------------------------------------------------------

    def _raw(self, kind: str, key: str) -> bytes:
        return f"{self._prefix}{kind}:{key}".encode()

    async def _state(self, kind: str, key: str, label: _Label) -> State:
        book = await self._ledgers.book(self._raw(kind, key))
        return book.states.get(label.fingerprint, FRESH)

    async def _acquire(
        self, raw: bytes, label: _Label, acquire: Callable[[State, int], Acquired], *, kept_s: float
    ) -> bool:
        """One change of one register; `label` tells states of different periods apart."""

        def step(book: Ledger, now: Moment) -> tuple[bool, Ledger]:
            now_us = max(now.us, book.seen_us)
            allowed, after = acquire(book.states.get(label.fingerprint, FRESH), now_us)
            return allowed, Ledger(now_us, {label.fingerprint: after}) if allowed else book

        return await self._ledgers.change(raw, step, lambda _allowed: kept_s + _SPARE_S)


@dataclass(frozen=True, slots=True)
class _Label:
    """What tells states of different periods apart; no `Limit`, for those end at 366 days."""

    algorithm: Algorithm
    period_us: int

    @property
    def fingerprint(self) -> int:
        """As that of a limit of one, which is what stored states have."""
        return zlib.crc32(f"{self.algorithm}:1:{self.period_us}:1".encode())


def _log(expiry: int) -> _Label:
    return _Label(Algorithm.SLIDING_LOG, expiry * _SECOND_US)


def _counter(expiry: int) -> _Label:
    return _Label(Algorithm.SLIDING_COUNTER, expiry * _SECOND_US)


def _counts(state: State, now_us: int, period: int) -> tuple[int, int]:
    """(current, previous) as of now."""
    if not state:
        return 0, 0
    at, current, previous = state
    behind = now_us // period - at
    return (current, previous) if behind <= 0 else (0, current) if behind == 1 else (0, 0)
