"""Storages for the `limits` package, once this module is imported.

`kvstore://host:port[,host:port...]` blocks, `async+kvstore://...` is for `limits.aio`:

    import kvstore.apps.ratelimit.limits_storage
    storage = limits.storage.storage_from_string("kvstore://127.0.0.1:7401")
    limits.strategies.MovingWindowRateLimiter(storage).hit(limits.parse("10/minute"), "customer:42")

What they do is in `limits_registers`. Both take `prefix`, `timeout` in seconds and `token`; sliding windows
begin at multiples of their length, which is what the last base class of each tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from limits.aio.storage.base import MovingWindowSupport as AsyncMovingWindowSupport
from limits.aio.storage.base import SlidingWindowCounterSupport as AsyncSlidingWindowCounterSupport
from limits.aio.storage.base import Storage as AsyncStorage
from limits.storage.base import (
    MovingWindowSupport,
    SlidingWindowCounterSupport,
    Storage,
    TimestampedSlidingWindow,
)

from kvstore import errors
from kvstore.apps.ratelimit.limits_registers import LimitsRegisters
from kvstore.sync import Resident


class KvstoreStorage(Storage, MovingWindowSupport, SlidingWindowCounterSupport, TimestampedSlidingWindow):
    """The one that blocks, for threads; a forked child connects anew."""

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
        self._resident = Resident(
            lambda: LimitsRegisters.open(uri, prefix=prefix, timeout_s=timeout, token=token),
            LimitsRegisters.close,
        )

    def close(self) -> None:
        """Drop the connection and end the thread; harmless when repeated."""
        self._resident.end()

    @property
    def base_exceptions(self) -> type[Exception]:
        """What `wrap_exceptions` wraps."""
        return errors.KVError

    def check(self) -> bool:
        """Whether the store answers."""
        return self._resident.run(LimitsRegisters.check)

    def reset(self) -> int | None:
        """Delete everything under the prefix; returns how much that was."""
        return self._resident.run(LimitsRegisters.reset)

    def clear(self, key: str) -> None:
        """See the package, as for all that follows."""
        self._resident.run(lambda at: at.clear(key))

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count a fixed window."""
        return self._resident.run(lambda at: at.incr(key, expiry, amount))

    def get(self, key: str) -> int:
        """A fixed window's count."""
        return self._resident.run(lambda at: at.get(key))

    def get_expiry(self, key: str) -> float:
        """A fixed window's end."""
        return self._resident.run(lambda at: at.get_expiry(key))

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Room in a moving window."""
        return self._resident.run(lambda at: at.acquire_entry(key, limit, expiry, amount))

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """A moving window's begin and count."""
        del limit
        return self._resident.run(lambda at: at.get_moving_window(key, expiry))

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Room in a sliding window."""
        return self._resident.run(lambda at: at.acquire_sliding_window_entry(key, limit, expiry, amount))

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """A sliding window's two halves."""
        return self._resident.run(lambda at: at.get_sliding_window(key, expiry))

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget a sliding window."""
        del expiry
        self._resident.run(lambda at: at.clear_sliding_window(key))


class AsyncKvstoreStorage(
    AsyncStorage, AsyncMovingWindowSupport, AsyncSlidingWindowCounterSupport, TimestampedSlidingWindow
):
    """The one for event loops: it connects at the first call, and anew in another loop."""

    STORAGE_SCHEME = ["async+kvstore"]  # noqa: RUF012  the name and the kind are the package's

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
        """Ask nothing of the store: storages are made where no loop runs yet."""
        super().__init__(uri, wrap_exceptions=wrap_exceptions, **options)
        self._open: Callable[[], Coroutine[Any, Any, LimitsRegisters]] = lambda: LimitsRegisters.open(
            uri, prefix=prefix, timeout_s=timeout, token=token
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._opened: LimitsRegisters | None = None

    async def close(self) -> None:
        """Drop the connection; the next call makes another."""
        opened, self._opened = self._opened, None
        if opened is not None and self._loop is asyncio.get_running_loop():
            await opened.close()

    @property
    def base_exceptions(self) -> type[Exception]:
        """What `wrap_exceptions` wraps."""
        return errors.KVError

    async def _registers(self) -> LimitsRegisters:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._opening, self._opened = loop, asyncio.Lock(), None
        async with self._opening:
            if self._opened is None:
                self._opened = await self._open()
            return self._opened

    async def check(self) -> bool:
        """Whether the store answers."""
        try:
            return await (await self._registers()).check()
        except errors.KVError:
            return False

    async def reset(self) -> int | None:
        """Delete everything under the prefix; returns how much that was."""
        return await (await self._registers()).reset()

    async def clear(self, key: str) -> None:
        """See the package, as for all that follows."""
        await (await self._registers()).clear(key)

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count a fixed window."""
        return await (await self._registers()).incr(key, expiry, amount)

    async def get(self, key: str) -> int:
        """A fixed window's count."""
        return await (await self._registers()).get(key)

    async def get_expiry(self, key: str) -> float:
        """A fixed window's end."""
        return await (await self._registers()).get_expiry(key)

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Room in a moving window."""
        return await (await self._registers()).acquire_entry(key, limit, expiry, amount)

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """A moving window's begin and count."""
        del limit
        return await (await self._registers()).get_moving_window(key, expiry)

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Room in a sliding window."""
        return await (await self._registers()).acquire_sliding_window_entry(key, limit, expiry, amount)

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """A sliding window's two halves."""
        return await (await self._registers()).get_sliding_window(key, expiry)

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget a sliding window."""
        del expiry
        await (await self._registers()).clear_sliding_window(key)


__all__ = ["AsyncKvstoreStorage", "KvstoreStorage"]
