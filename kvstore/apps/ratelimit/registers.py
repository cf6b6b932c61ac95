"""Strict decisions: one register of the store holds a key's ledger, and one change of it is one decision.

The decision is computed here from the ledger and `now`, and stored with `cas(expected_version=...)`. The
algorithms need no place in the store that way, several limits are one value and so one change, and an
operation id makes the change happen once however often its answer is lost. The price is a second round
when somebody came in between; what was found comes with the refusal, so there is no read in the loop, and
a process that is alone with its key needs one round for each call.

A rule of one fixed window needs no ledger: `incr(maximum=...)` is the whole decision, in one change that
never has to be repeated, whoever comes in between. See `WindowCounters`.

Rules kept here:
- a refusal is told only from what the store has said in this call, never from memory;
- an outcome nobody could tell is resolved before another change is tried, so no call is charged twice;
- registers end by themselves when there is nothing to remember, with a minute to spare for clocks.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from kvstore import Applied, Client, NotApplied, errors
from kvstore.apps.ratelimit import ledger
from kvstore.apps.ratelimit.ledger import Ledger, Verdict
from kvstore.apps.ratelimit.limit import NEVER, Algorithm, Decision, Limit
from kvstore.apps.ratelimit.machine import ClockUs

_T = TypeVar("_T")
_LINEAR = "linearizable"
_TTL_SPARE_S = 60.0
_SLOTS_MAX = 10_000
"""Keys whose last version is remembered; beyond it a call costs one round more."""
_PAUSE_S, _PAUSE_S_MAX = 0.002, 0.1
_CHANGE_PART = 0.7
"""Of the time left: the rest is for resolving what became of it."""


async def settled(
    kv: Client, change: Callable[[float], Awaitable[Applied | NotApplied]], *, left: float
) -> Applied | NotApplied | None:
    """Make a change; None: it was not done and never will be, though nothing in the register forbids it.

    Raises errors.Unresolved when even that could not be found out.
    """
    deadline = asyncio.get_running_loop().time() + left
    try:
        return await change(max(left * _CHANGE_PART, 0.001))
    except errors.Unresolved as lost:
        left = max(deadline - asyncio.get_running_loop().time(), 0.001)
        if lost.operation is None:
            raise
        return await kv.resolve(lost.operation, timeout=left) or None


@dataclass(slots=True)
class _Slot:
    """What this process remembers of a register, and the queue before it."""

    version: int = 0
    book: Ledger = field(default_factory=Ledger)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Ledgers:
    """Keys whose limits are kept in one ledger each."""

    def __init__(self, kv: Client, *, clock: ClockUs, dice: random.Random, timeout_s: float) -> None:
        self._kv = kv
        self._clock = clock
        self._dice = dice
        self._timeout_s = timeout_s
        self._slots: OrderedDict[bytes, _Slot] = OrderedDict()

    async def take(self, key: bytes, limits: Sequence[Limit], cost: int, *, lease: int = 0) -> Verdict:
        """Decide one call. Raises errors.KVError when the store cannot tell."""

        def step(book: Ledger) -> tuple[Verdict, Ledger]:
            return ledger.decide(limits, book, now_us=self._clock(), cost=cost, lease=lease)

        return await self.change(key, step, _kept_s)

    async def grant(
        self, key: bytes, limits: Sequence[Limit], *, least: int, most: int
    ) -> tuple[int, Verdict]:
        """Take as much as there is, from `least` to `most`, or 0."""

        def step(book: Ledger) -> tuple[tuple[int, Verdict], Ledger]:
            got, verdict, after = ledger.grant(limits, book, now_us=self._clock(), least=least, most=most)
            return (got, verdict), after

        return await self.change(key, step, lambda told: _kept_s(told[1]))

    async def release(self, key: bytes, limits: Sequence[Limit], *, lease: int) -> None:
        """Let go of what a lease holds; harmless when it holds nothing."""

        def step(book: Ledger) -> tuple[float, Ledger]:
            now_us = self._clock()
            after = ledger.released(limits, book, now_us=now_us, lease=lease)
            if after.states == book.states:
                return 0.0, book
            left, _ = ledger.decide(limits, after, now_us=now_us, cost=0)
            return _kept_s(left), after

        await self.change(key, step, lambda kept_s: kept_s)

    async def peek(self, key: bytes, limits: Sequence[Limit]) -> Verdict:
        """What is left now; nothing is charged."""
        book = await self.book(key)
        return ledger.decide(limits, book, now_us=self._clock(), cost=0)[0]

    async def book(self, key: bytes) -> Ledger:
        """The ledger as it is."""
        return (await self._read(key, self._timeout_s))[1]

    async def reset(self, key: bytes) -> None:
        """Forget the key."""
        await self._kv.delete(key, consistency=_LINEAR, timeout=self._timeout_s)
        self._slots.pop(key, None)

    async def change(
        self, key: bytes, step: Callable[[Ledger], tuple[_T, Ledger]], kept_s: Callable[[_T], float]
    ) -> _T:
        """Apply a pure step, which may run several times; `kept_s` says for how long the ledger matters."""
        slot = self._slot(key)
        slot.users += 1
        try:
            async with asyncio.timeout(self._timeout_s), slot.turn:
                return await self._loop(key, slot, step, kept_s)
        except TimeoutError:
            raise errors.Contended(key=repr(key), timeout_ms=int(self._timeout_s * 1000)) from None
        finally:
            slot.users -= 1

    async def _loop(
        self,
        key: bytes,
        slot: _Slot,
        step: Callable[[Ledger], tuple[_T, Ledger]],
        kept_s: Callable[[_T], float],
    ) -> _T:
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        certain, pause = False, _PAUSE_S
        while True:
            left = max(deadline - asyncio.get_running_loop().time(), 0.001)
            told, after = step(slot.book)
            if after is slot.book:
                if certain:
                    return told
                slot.version, slot.book = await self._read(key, left)
                certain = True
                continue
            store = partial(self._store, key, ledger.encode(after), version=slot.version, ttl=kept_s(told))
            done = await settled(self._kv, store, left=left)
            if isinstance(done, Applied):
                slot.version, slot.book = done.version, after
                return told
            if done is None or (done.value is None and done.version):
                slot.version, slot.book = await self._read(key, left)
            else:
                slot.version, slot.book = (
                    (done.version, ledger.decode(done.value)) if done.value else (0, Ledger())
                )
            if certain:
                await asyncio.sleep(self._dice.random() * pause)
                pause = min(pause * 2, _PAUSE_S_MAX)
            certain = True

    async def _store(
        self, key: bytes, data: bytes, timeout: float, *, version: int, ttl: float
    ) -> Applied | NotApplied:
        return await self._kv.cas(key, new=data, expected_version=version, ttl=ttl, timeout=timeout)

    async def _read(self, key: bytes, left: float) -> tuple[int, Ledger]:
        entry = await self._kv.get(key, consistency=_LINEAR, timeout=left)
        return (0, Ledger()) if entry is None else (entry.version, ledger.decode(entry.value))

    def _slot(self, key: bytes) -> _Slot:
        slot = self._slots.setdefault(key, _Slot())
        self._slots.move_to_end(key)
        if len(self._slots) > _SLOTS_MAX:
            oldest, idle = next(iter(self._slots.items()))
            if not idle.users:
                del self._slots[oldest]
        return slot


def _kept_s(verdict: Verdict) -> float:
    return verdict.reset_after_us / 1_000_000 + _TTL_SPARE_S


class WindowCounters:
    """Keys with one fixed window each: a number for each window, and `incr` with a maximum."""

    def __init__(self, kv: Client, *, clock: ClockUs, timeout_s: float) -> None:
        self._kv = kv
        self._clock = clock
        self._timeout_s = timeout_s

    @staticmethod
    def suits(limits: Sequence[Limit]) -> bool:
        """Whether these limits can be decided so."""
        return len(limits) == 1 and limits[0].algorithm is Algorithm.FIXED_WINDOW

    async def take(self, key: bytes, limit: Limit, cost: int) -> Verdict:
        """Decide one call by one change. Raises errors.KVError when the store cannot tell."""
        name, left_us = self._window(key, limit)
        if cost > limit.amount:
            return _window_verdict(limit, (await self.peek(key, limit)).remaining, left_us, cost)
        ttl = left_us / 1_000_000 + _TTL_SPARE_S
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            done = await settled(
                self._kv,
                lambda t: self._kv.incr(name, cost, maximum=limit.amount, ttl=ttl, timeout=t),
                left=left,
            )
            if isinstance(done, Applied):
                # The answer to a retry may have lost the number; then nobody knows what is left.
                used = limit.amount if done.value is None else int(done.value)
                decision = Decision(True, limit.amount - used, 0, left_us)
                return Verdict(True, (decision,))
            if done is not None:
                used = limit.amount if done.value is None else int(done.value)
                return _window_verdict(limit, limit.amount - used, left_us, cost)
        raise errors.Contended(key=repr(key), timeout_ms=int(self._timeout_s * 1000))

    async def peek(self, key: bytes, limit: Limit) -> Verdict:
        """What is left now; nothing is charged."""
        name, left_us = self._window(key, limit)
        entry = await self._kv.get(name, consistency=_LINEAR, timeout=self._timeout_s)
        used = int(entry.value) if entry is not None else 0
        return Verdict(True, (Decision(True, limit.amount - used, 0, left_us if used else 0),))

    async def reset(self, key: bytes, limit: Limit) -> None:
        """Forget the window that is now."""
        name, _ = self._window(key, limit)
        await self._kv.delete(name, consistency=_LINEAR, timeout=self._timeout_s)

    def _window(self, key: bytes, limit: Limit) -> tuple[bytes, int]:
        index, into = divmod(self._clock(), limit.period_us)
        return b"%s:%x:%d" % (key, limit.fingerprint, index), limit.period_us - into


def _window_verdict(limit: Limit, remaining: int, left_us: int, cost: int) -> Verdict:
    wait = NEVER if cost > limit.amount else left_us
    return Verdict(False, (Decision(False, remaining, wait, left_us),))
