"""Leases on a name, with a token that grows: mutual exclusion that survives pauses only with fencing.

No lease can stop a process that slept through its end and goes on writing. So every lease has a
*fencing token*, greater than every earlier one of that name: hand it to whatever the lock protects, and
let that refuse a token smaller than one it has seen (Kleppmann, "How to do distributed locking",
2016). A register that is changed with `cas(expected_version=...)` is protected without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvstore import errors
from kvstore.client.change import Applied
from kvstore.client.terms import key_bytes

if TYPE_CHECKING:
    from kvstore.client.registers import RegisterVerbs
    from kvstore.ports import Clock, Dice
    from kvstore.types import Operation

KEY_PREFIX = b"lock:"
TTL_S_MIN = 0.1
_RENEW_PART = 1 / 3
_POLL_S_MIN, _POLL_S_MAX = 0.02, 0.5
_OWNER_BYTES = 12
_RENEW_S_MAX = 5.0
"""For one try to renew: a long lease has time for many, and no call may take as long as it lasts."""


class Lock:
    """One holder's claim on a name. Use it as an async context manager, or `acquire` and `release`."""

    def __init__(
        self, verbs: RegisterVerbs, name: str, *, ttl: float, wait: float | None, clock: Clock, dice: Dice
    ) -> None:
        lease, patience = _seconds(ttl), _seconds(wait)
        if not lease >= TTL_S_MIN:
            raise errors.BadTtl(given=repr(ttl)[:60])
        if wait is not None and math.isnan(patience):
            raise errors.BadOption(option="wait", given=repr(wait)[:60], allowed="seconds, or None")
        if not isinstance(name, str):
            raise errors.BadOption(option="name", given=type(name).__name__, allowed="str")
        self.name = name
        self.key = key_bytes(KEY_PREFIX.decode() + name)
        self.token = 0
        """The fencing token; 0 while the lock is not held."""
        self.lost = asyncio.Event()
        """Set when the lease ended without being released: stop what it protects."""
        self._verbs = verbs
        self._ttl = lease
        self._wait = None if wait is None else patience
        self._clock = clock
        self._dice = dice
        self._owner = dice.randbytes(_OWNER_BYTES).hex().encode()
        self._ends = 0.0
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Acquire, and keep it until the block ends."""
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        await self.release()

    @property
    def held(self) -> bool:
        """Whether the lease lasts still, by this machine's monotonic clock, which is only advice."""
        return bool(self.token) and not self.lost.is_set() and self._clock.monotonic() < self._ends

    async def acquire(self) -> int:
        """Wait for the lock; returns the fencing token. Raises errors.LockTaken when `wait` is over."""
        deadline = None if self._wait is None else self._clock.monotonic() + self._wait
        while True:
            began = self._clock.monotonic()
            done, problem = await self._claim()
            if done is not None:
                self.token, self._ends = done.version, began + self._ttl
                self.lost.clear()
                self._renewing = asyncio.create_task(self._renew())  # noqa: TID251  `release` ends it
                return self.token
            pause = _POLL_S_MIN + self._dice.random() * min(self._ttl / 4, _POLL_S_MAX)
            if deadline is not None and self._clock.monotonic() + pause > deadline:
                raise problem or errors.LockTaken(
                    name=self.name, key=self.key.decode(), waited=f"{self._wait:g} s"
                )
            await asyncio.sleep(pause)

    async def _claim(self) -> tuple[Applied | None, errors.KVError | None]:
        """The claim, if it was won; and why nobody could be asked, if that was so."""
        timeout = max(min(self._ttl, 5.0), 0.25)
        claim = self._verbs.change.claim(self.key, self._owner, ttl=self._ttl)
        named = claim.named
        try:
            try:
                done = await self._verbs._change(claim, timeout)  # noqa: SLF001  one noun in two files
            except errors.Unresolved:
                # A claim nobody knows of would keep everybody out until it ends.
                done = await self._verbs.resolve(named, timeout=timeout)
        except errors.NotNow as error:
            return None, error
        except asyncio.CancelledError:
            await self._give_up(named)
            raise
        return (done if isinstance(done, Applied) else None), None

    async def _give_up(self, named: Operation) -> None:
        """The wait was cancelled in the middle of a claim: it may stand, and nobody would hold it."""
        with contextlib.suppress(errors.KVError, TimeoutError):  # else it ends by itself with its ttl
            async with asyncio.timeout(min(self._ttl, 1.0)):
                done = await self._verbs.resolve(named)
                if done:
                    await self._verbs.delete_if(self.key, expected_version=done.version)

    async def _renew(self) -> None:
        while True:
            left = self._ends - self._clock.monotonic()
            # Near the end there is no time for another try: it is over when it is over.
            await asyncio.sleep(max(min(self._ttl * _RENEW_PART, left), 0.0))
            began = self._clock.monotonic()
            if began >= self._ends:
                self.lost.set()
                return
            try:
                timeout = min(max(self._ends - began, 0.05), _RENEW_S_MAX)
                done = await self._verbs.extend(
                    self.key, self._ttl, expected_version=self.token, timeout=timeout
                )
            except errors.KVError:
                pass  # not renewed; the next try, or the end
            else:
                if not done:
                    self.lost.set()
                    return
                self._ends = began + self._ttl

    async def release(self) -> None:
        """Give it back; harmless when it was lost or never held."""
        if self._renewing is not None:
            renewing, self._renewing = self._renewing, None
            renewing.cancel()
            # Not `await renewing`: its cancellation looks like our caller's, which must go through.
            await asyncio.wait([renewing])  # noqa: TID251  one task, so there is no order to lose
        token, self.token = self.token, 0
        if not token:
            return
        try:
            await self._verbs.delete_if(self.key, expected_version=token)
        except errors.KVError:
            self._ends = 0.0  # it ends by itself with its ttl


def _seconds(given: object) -> float:
    """As a float; NaN for what is no number, or an int beyond all floats."""
    try:
        return float(given) if isinstance(given, int | float) and not isinstance(given, bool) else math.nan
    except OverflowError:
        return math.nan
