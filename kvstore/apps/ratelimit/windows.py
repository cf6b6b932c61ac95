"""Strict decisions of a rule that is one fixed window: a number for the window, and `incr` with a maximum.

Such a change never has to be repeated, whoever comes in between, and a key has one register whatever windows
it has lived through. Calls that share a turn are added up: those that fit, in the order they came. What was
refused for want of room is told only when those before it have got theirs, and the store has said that there
is none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Sequence
from typing import Any, cast

from kvstore import Applied, Client, Entry
from kvstore.apps.ratelimit import algorithms
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.ledger import Verdict
from kvstore.apps.ratelimit.limit import NEVER, Algorithm, Decision, Limit
from kvstore.apps.ratelimit.machine import Moment, Moments
from kvstore.apps.ratelimit.registers import TTL_SPARE_S
from kvstore.apps.ratelimit.turns import LINEAR, Call, Pause, Steps, Turns, read, settled

_KNOWN_MAX = 10_000
"""Keys whose use is remembered. Of others, a call over the limit costs a change, and not only a read."""
Used = tuple[int, int]
"""The number of a window, and how much of it is used."""


class _Call(Call):
    """What somebody asks of the window that is now."""

    __slots__ = ("cost", "limit")

    def __init__(self, limit: Limit, cost: int) -> None:
        super().__init__()
        self.limit = limit
        self.cost = cost

    def verdict(self, *, allowed: bool, used: int, left_us: int) -> Verdict:
        """What to tell when so much of the window is used, and so much time is left of it."""
        wait = 0 if allowed else NEVER if self.cost > self.limit.amount else left_us
        remaining = max(self.limit.amount - used, 0)
        return Verdict(allowed, (Decision(allowed, remaining, wait, left_us if used else 0),))


class WindowCounters:
    """Keys with one fixed window each."""

    def __init__(self, kv: Client, *, moments: Moments, timeout_s: float, background: Background) -> None:
        self._kv = kv
        self._moments = moments
        self._timeout_s = timeout_s
        self._known: OrderedDict[bytes, Used] = OrderedDict()
        self._turns: Turns[_Call] = Turns(kv, self._turn, background, timeout_s=timeout_s)

    @staticmethod
    def suits(limits: Sequence[Limit]) -> bool:
        """Whether these limits can be decided so."""
        return len(limits) == 1 and limits[0].algorithm is Algorithm.FIXED_WINDOW

    async def take(self, key: bytes, limit: Limit, cost: int) -> Verdict:
        """Decide one call. Raises errors.KVError when the store cannot tell."""
        return cast("Verdict", await self._turns.ask(_name(key, limit), _Call(limit, cost)))

    async def peek(self, key: bytes, limit: Limit) -> Verdict:
        """What is left now; nothing is charged."""
        entry = await self._kv.get(_name(key, limit), consistency=LINEAR, timeout=self._timeout_s)
        index, left_us = _window(limit, self._moments())
        held, used = _used(entry)
        used = used if held >= index else 0
        return Verdict(True, (Decision(True, limit.amount - used, 0, left_us if used else 0),))

    async def reset(self, key: bytes, limit: Limit) -> None:
        """Forget the key."""
        name = _name(key, limit)
        await self._kv.delete(name, consistency=LINEAR, timeout=self._timeout_s)
        self._known.pop(name, None)

    async def close(self) -> None:
        """Cancel all who wait."""
        await self._turns.close()

    def _turn(self, name: bytes, calls: list[_Call]) -> Steps:
        limit = calls[0].limit  # its fingerprint is in the name, so all have the same
        now = self._moments()
        while unsure_us := algorithms.unsure_us(limit, now_us=now.us, doubt_us=now.doubt_us):
            yield Pause(unsure_us)
            now = self._moments()
        index, left_us = _window(limit, now)
        held, used = self._known.get(name, (0, 0))
        used = used if held >= index else 0
        certain = False
        while True:
            index = max(index, held)  # time never goes back for a key
            fitting = _fitting(calls, limit.amount - used)
            total = sum(call.cost for call in fitting)
            if total:
                ttl = left_us / 1_000_000 + TTL_SPARE_S
                add = self._kv.change.incr(name, total, maximum=limit.amount, period=index, ttl=ttl)
                done = yield from settled(self._kv, add)
                if isinstance(done, Applied):
                    # The answer to a retry may have lost the number; then nobody knows what is left.
                    after = limit.amount if done.value is None else int(done.value)
                    self._remember(name, (index, after))
                    _tell_all(calls, set(map(id, fitting)), used=after - total, left_us=left_us)
                    return
                if done is None:
                    continue
                held, used = (index, int(done.value)) if done.value is not None else (yield from _read(name))
            elif certain:
                self._remember(name, (index, used))
                _tell_all(calls, set(), used=used, left_us=left_us)
                return
            else:
                held, used = yield from _read(name)
            used = used if held >= index else 0
            certain = True

    def _remember(self, name: bytes, used: Used) -> None:
        known = self._known
        known[name] = used
        known.move_to_end(name)
        if len(known) > _KNOWN_MAX:
            known.popitem(last=False)


def _window(limit: Limit, now: Moment) -> tuple[int, int]:
    """Its number, and the microseconds left of it."""
    index, into = divmod(now.us, limit.period_us)
    return index, limit.period_us - into


def _name(key: bytes, limit: Limit) -> bytes:
    return b"%s:%x" % (key, limit.fingerprint)


def _used(entry: Entry | None) -> Used:
    """What a register holds: `window:used`."""
    if entry is None:
        return 0, 0
    index, _, used = bytes(entry.value).partition(b":")
    return int(index), int(used)


def _read(name: bytes) -> Generator[Any, Any, Used]:
    return _used((yield from read(name)))


def _fitting(calls: Sequence[_Call], room: int) -> list[_Call]:
    """Those who get what they ask for, first come, first served; a smaller one may fit behind a larger."""
    chosen = []
    for call in calls:
        if call.cost <= room:
            room -= call.cost
            chosen.append(call)
    return chosen


def _tell_all(calls: Sequence[_Call], allowed: set[int], *, used: int, left_us: int) -> None:
    """Answer in order; `used` before the first."""
    for call in calls:
        is_allowed = id(call) in allowed
        used += call.cost if is_allowed else 0
        call.tell(call.verdict(allowed=is_allowed, used=used, left_us=left_us))
