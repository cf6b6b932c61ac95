"""The store's time: this machine's clock, set by what the nodes say.

Services whose clocks differ count in different windows, and a key that they share gets more than its limit
around each jump from one clock to another. The nodes compare their clocks with each other all the time, and
one that is off takes no writes; so their time is taken. A change with a ttl is answered with its end, and the
end less the ttl is when a node made it, by its clock: a moment between the begin and the end of the call by
ours, which tells our error but for the length of the call.

Rules kept here:
- no decision before the clock was set once; then it is compared now and then, beside the decisions;
- it moves only when it is surely wrong, and by no more than it surely is: a slow call moves little.
"""

from __future__ import annotations

import asyncio
import random

from kvstore import Client, errors
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.machine import ClockUs, wall_us

EVERY_US = 10_000_000
_GRAIN_US = 1_000
"""Ends are told in milliseconds."""
_TTL_S = 5.0
_PREFIX = b"rl-clock:"


class StoreClock:
    """Microseconds since 1970-01-01Z, by the nodes."""

    def __init__(self, wall: ClockUs = wall_us) -> None:
        self._wall = wall
        self._compared_us: int | None = None
        self._turn = asyncio.Lock()
        self._is_comparing = False
        self._key = b""
        self.offset_us = 0
        """What this machine's clock is behind by."""

    def __call__(self) -> int:
        """What time it is."""
        return self._wall() + self.offset_us

    async def ready(
        self, kv: Client, dice: random.Random, background: Background, *, timeout_s: float
    ) -> None:
        """Set it, the first time; later only see to it that it is compared. Raises errors.KVError."""
        if self._compared_us is None:
            async with self._turn:
                if self._compared_us is None:
                    await self.compare(kv, dice, timeout_s=timeout_s)
        elif abs(self._wall() - self._compared_us) > EVERY_US and not self._is_comparing:
            self._is_comparing = True
            background.start(self._compare_again(kv, dice, timeout_s))

    async def compare(self, kv: Client, dice: random.Random, *, timeout_s: float) -> None:
        """Ask a node for its time. Raises errors.KVError."""
        # One key for good: a register leaves something behind, however short its time.
        self._key = key = self._key or _PREFIX + dice.randbytes(12).hex().encode()
        sent_us = self._wall()
        done = await kv.get_and_set(key, b"", ttl=_TTL_S, timeout=timeout_s)
        if done.expires_at is not None:
            self.learn(round((done.expires_at - _TTL_S) * 1_000_000), sent_us=sent_us, heard_us=self._wall())
        self._compared_us = self._wall()

    def learn(self, told_us: int, *, sent_us: int, heard_us: int) -> None:
        """A node said so, at some moment between these two of this machine."""
        least, most = told_us - heard_us - _GRAIN_US, told_us - sent_us + _GRAIN_US
        if least <= most:
            self.offset_us = min(max(self.offset_us, least), most)

    async def _compare_again(self, kv: Client, dice: random.Random, timeout_s: float) -> None:
        try:
            await self.compare(kv, dice, timeout_s=timeout_s)
        except errors.KVError:
            self._compared_us = self._wall()  # it goes on as it is, and is tried again after a while
        finally:
            self._is_comparing = False
