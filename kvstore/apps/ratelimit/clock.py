"""The store's time: a steady clock of this machine, and what the nodes' clocks are ahead of it by.

Services whose clocks differ count in different windows, and a key that they share gets more than its limit
around each jump from one clock to another. The nodes compare their clocks with each other all the time, and
one that is off takes no writes; so their time is taken. A change with a ttl is answered with its end, and the
end less the ttl is when a node made it, by its clock: a moment between the begin and the end of the call by
ours, which tells what it is ahead by but for the length of the call. So a time is two: the earliest and the
latest that it can be (as in TrueTime; Corbett et al., Spanner, OSDI 2012, section 3).

Rules kept here:
- no decision before the clock was set once, nor when that was long ago; it is compared beside the decisions;
- what is known narrows with each comparison, by the quickest call of all, and widens with time, as quartz
  runs;
- a clock that can be set by somebody is not asked: it would be believed until the next comparison;
- all services ask one register, so that they have their time from one node, unless it is lost.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from kvstore import Client, errors
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.machine import ClockUs, Moment, steady_us

EVERY_US = 1_000_000
STALE_US = 20_000_000
"""A service that has decided nothing for so long sets its clock anew before it does."""
DRIFT_PPM = 500
"""By how much a steady clock may be quick or slow: as much as NTP corrects it by at most."""
_GRAIN_US = 1_000
"""Ends are told in milliseconds."""
_TTL_S = 5.0
_KEY = b"rl-clock"


class StoreClock:
    """Microseconds since 1970-01-01Z, by the nodes: the earliest that it can be."""

    def __init__(self, steady: ClockUs = steady_us) -> None:
        self._steady = steady
        self._turn = asyncio.Lock()
        self._next_us = 0
        """When to compare beside the decisions."""
        self._learned_us: int | None = None
        self._least_us = self._most_us = 0
        """What the nodes are ahead by, as of then."""

    def __call__(self) -> int:
        """What time it is, at the earliest."""
        steady = self._steady()
        return steady + self._least_us - self._drift_us(steady)

    def moment(self) -> Moment:
        """What time it is, and how much later it may be."""
        steady = self._steady()
        drift = self._drift_us(steady)
        return Moment(steady + self._least_us - drift, self._most_us - self._least_us + 2 * drift)

    def _drift_us(self, steady: int) -> int:
        learned_us = self._learned_us
        # Rounded up: a microsecond too few is one that a strict limit does not know of.
        return 0 if learned_us is None else -(-max(steady - learned_us, 0) * DRIFT_PPM // 1_000_000)

    def is_due(self) -> bool:
        """Whether to call `ready`."""
        return self._learned_us is None or self._steady() >= self._next_us

    async def ready(self, kv: Client, background: Background, *, timeout_s: float) -> None:
        """Set it, if that is due; else see to it that it is compared. Raises errors.KVError."""
        now_us, learned_us = self._steady(), self._learned_us
        if learned_us is None or now_us - learned_us >= STALE_US:
            async with self._turn:
                if self._learned_us == learned_us:
                    await self.compare(kv, timeout_s=timeout_s)
        elif now_us >= self._next_us:
            self._next_us = now_us + EVERY_US
            background.start(self._compare_again(kv, timeout_s))

    async def compare(self, kv: Client, *, timeout_s: float) -> None:
        """Ask a node for its time. Raises errors.KVError."""
        sent_us = self._steady()
        done = await kv.get_and_set(_KEY, b"", ttl=_TTL_S, timeout=timeout_s)
        heard_us = self._steady()
        if done.expires_at is not None:
            self.learn(round((done.expires_at - _TTL_S) * 1_000_000), sent_us=sent_us, heard_us=heard_us)
        self._next_us = heard_us + EVERY_US

    def learn(self, told_us: int, *, sent_us: int, heard_us: int) -> None:
        """A node said so, at some moment between these two of this machine."""
        least, most = told_us - heard_us - _GRAIN_US, told_us - sent_us + _GRAIN_US
        if least > most:
            return
        if self._learned_us is not None:
            drift = self._drift_us(heard_us)
            both = max(least, self._least_us - drift), min(most, self._most_us + drift)
            # Else it is another node's time, or its clock was set.
            least, most = both if both[0] <= both[1] else (least, most)
        self._least_us, self._most_us, self._learned_us = least, most, heard_us

    async def _compare_again(self, kv: Client, timeout_s: float) -> None:
        with suppress(errors.KVError):  # what is known grows wider meanwhile
            await self.compare(kv, timeout_s=timeout_s)
