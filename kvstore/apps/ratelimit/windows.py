"""Strict decisions of a rule that is one fixed window: a number for each window, and `incr` with a maximum.

Such a change never has to be repeated, whoever comes in between. Calls that share a turn are added up: those
that fit, in the order they came. What was refused for want of room is told only when those before it have
got theirs, or when the store has said that there is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from kvstore import Applied, Client, NotApplied, errors
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.ledger import Verdict
from kvstore.apps.ratelimit.limit import NEVER, Algorithm, Decision, Limit
from kvstore.apps.ratelimit.machine import ClockUs
from kvstore.apps.ratelimit.registers import LINEAR, TTL_SPARE_S, settled
from kvstore.apps.ratelimit.turns import Turns, tell


@dataclass(slots=True, eq=False)
class _Call:
    """What somebody asks of one window."""

    limit: Limit
    cost: int
    left_us: int
    """Until the window ends."""
    told: asyncio.Future[object]

    def verdict(self, *, allowed: bool, used: int) -> Verdict:
        """What to tell when so much of the window is used."""
        wait = 0 if allowed else NEVER if self.cost > self.limit.amount else self.left_us
        remaining = max(self.limit.amount - used, 0)
        return Verdict(allowed, (Decision(allowed, remaining, wait, self.left_us if used else 0),))


class WindowCounters:
    """Keys with one fixed window each."""

    def __init__(self, kv: Client, *, clock: ClockUs, timeout_s: float, background: Background) -> None:
        self._kv = kv
        self._clock = clock
        self._timeout_s = timeout_s
        self._turns: Turns[_Call] = Turns(self._turn, background)

    @staticmethod
    def suits(limits: Sequence[Limit]) -> bool:
        """Whether these limits can be decided so."""
        return len(limits) == 1 and limits[0].algorithm is Algorithm.FIXED_WINDOW

    async def take(self, key: bytes, limit: Limit, cost: int) -> Verdict:
        """Decide one call. Raises errors.KVError when the store cannot tell."""
        name, left_us = self._window(key, limit)
        call = _Call(limit, cost, left_us, asyncio.get_running_loop().create_future())
        return cast("Verdict", await self._turns.ask(name, call, timeout_s=self._timeout_s))

    async def peek(self, key: bytes, limit: Limit) -> Verdict:
        """What is left now; nothing is charged."""
        name, left_us = self._window(key, limit)
        used = await self._used(name, self._timeout_s)
        return Verdict(True, (Decision(True, limit.amount - used, 0, left_us if used else 0),))

    async def reset(self, key: bytes, limit: Limit) -> None:
        """Forget the window that is now."""
        name, _ = self._window(key, limit)
        await self._kv.delete(name, consistency=LINEAR, timeout=self._timeout_s)

    async def _turn(self, name: bytes, calls: list[_Call]) -> None:
        limit = calls[0].limit  # its fingerprint is in the name, so all have the same
        ttl = max(call.left_us for call in calls) / 1_000_000 + TTL_SPARE_S
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        used, certain = 0, False
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            fitting = _fitting(calls, limit.amount - used)
            total = sum(call.cost for call in fitting)
            if not total:
                if certain:
                    _tell_all(calls, set(), used=used)
                    return
                used, certain = await self._used(name, left), True
                continue
            add = partial(self._add, name, total, maximum=limit.amount, ttl=ttl)
            done = await settled(self._kv, add, left=left)
            if isinstance(done, Applied):
                # The answer to a retry may have lost the number; then nobody knows what is left.
                after = limit.amount if done.value is None else int(done.value)
                _tell_all(calls, set(map(id, fitting)), used=after - total)
                return
            if done is not None:
                used = await self._used(name, left) if done.value is None else int(done.value)
                certain = True
        raise errors.Contended(key=repr(name), timeout_ms=int(self._timeout_s * 1000))

    async def _add(
        self, name: bytes, total: int, timeout: float, *, maximum: int, ttl: float
    ) -> Applied | NotApplied:
        return await self._kv.incr(name, total, maximum=maximum, ttl=ttl, timeout=timeout)

    async def _used(self, name: bytes, left: float) -> int:
        entry = await self._kv.get(name, consistency=LINEAR, timeout=left)
        return int(entry.value) if entry is not None else 0

    def _window(self, key: bytes, limit: Limit) -> tuple[bytes, int]:
        index, into = divmod(self._clock(), limit.period_us)
        return b"%s:%x:%d" % (key, limit.fingerprint, index), limit.period_us - into


def _fitting(calls: Sequence[_Call], room: int) -> list[_Call]:
    """Those who get what they ask for, first come, first served; a smaller one may fit behind a larger."""
    chosen = []
    for call in calls:
        if call.cost <= room:
            room -= call.cost
            chosen.append(call)
    return chosen


def _tell_all(calls: Sequence[_Call], allowed: set[int], *, used: int) -> None:
    """Answer in order; `used` before the first."""
    for call in calls:
        is_allowed = id(call) in allowed
        used += call.cost if is_allowed else 0
        tell(call, call.verdict(allowed=is_allowed, used=used))
