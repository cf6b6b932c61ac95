"""Local decisions: each instance holds a batch of tokens of a key, and spends them in memory.

A batch is charged to the key's ledger before it is held, all limits at once, and what is not spent when the
lease ends is forfeited. So in any span of time what was spent is what was charged in that span, plus what
was held when it began:

    over-admission  <=  instances * batch,  and never more than what one lease can have been charged before:
                        token bucket: amount * lease / period;  the others: amount

which `over_admission_max` computes, `/v1/rules` and `kv app ratelimit check` state, and a test checks.
Under-admission is possible as well: forfeited tokens are lost to everybody.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvstore.apps.ratelimit.ledger import Verdict
from kvstore.apps.ratelimit.limit import NEVER, Algorithm, Decision, Limit
from kvstore.apps.ratelimit.machine import ClockUs

_PURSES_MAX = 100_000


def over_admission_max(limit: Limit, *, instances: int, batch: int, lease_us: int) -> int:
    """The most that local mode lets through beyond the limit, in any span the limit speaks of."""
    if limit.algorithm is Algorithm.TOKEN_BUCKET:
        earlier = -(-limit.amount * lease_us // limit.period_us)
    else:
        earlier = limit.amount * -(-lease_us // limit.period_us)
    return min(instances * batch, earlier)


class Granter(Protocol):
    """Where batches come from: `registers.Ledgers`."""

    async def grant(
        self, key: bytes, limits: Sequence[Limit], *, least: int, most: int
    ) -> tuple[int, Verdict]:
        """As much as there is, from `least` to `most`, or 0."""
        ...


@dataclass(slots=True)
class _Purse:
    """What is held of one key."""

    tokens: int = 0
    ends_us: int = 0
    told: Verdict | None = None
    """What the ledger said last."""
    refused_cost: int = 0
    refused_until_us: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def spend(self, cost: int, now_us: int) -> Verdict | None:
        """The decision, if it can be made from memory."""
        if now_us >= self.ends_us:
            self.tokens = 0
        if self.told is not None and self.tokens >= cost:
            self.tokens -= cost
            return self._verdict(allowed=True, wait_us=0)
        if cost >= self.refused_cost > 0 and now_us < self.refused_until_us:
            return self._verdict(allowed=False, wait_us=self.refused_until_us - now_us)
        return None

    def _verdict(self, *, allowed: bool, wait_us: int) -> Verdict:
        assert self.told is not None
        return Verdict(
            allowed,
            tuple(
                Decision(allowed, each.remaining + self.tokens, wait_us, each.reset_after_us)
                for each in self.told.decisions
            ),
        )


class Purses:
    """The tokens this instance holds."""

    def __init__(self, granter: Granter, *, clock: ClockUs) -> None:
        self._granter = granter
        self._clock = clock
        self._purses: OrderedDict[bytes, _Purse] = OrderedDict()

    def spend(self, key: bytes, cost: int) -> Verdict | None:
        """Decide one call from memory alone; None: the store must be asked."""
        purse = self._purses.get(key)
        return None if purse is None else purse.spend(cost, self._clock())

    async def take(
        self, key: bytes, limits: Sequence[Limit], cost: int, *, batch: int, lease_us: int
    ) -> Verdict:
        """Decide one call, from memory if possible. Raises errors.KVError when the store cannot tell."""
        purse = self._purse(key)
        verdict = purse.spend(cost, self._clock())
        if verdict is not None:
            return verdict
        async with purse.turn:
            # Somebody may have renewed it while we waited.
            now_us = self._clock()
            verdict = purse.spend(cost, now_us)
            if verdict is not None:
                return verdict
            # Forfeited before more is asked for, so that never more than a batch is held.
            purse.tokens = 0
            got, told = await self._granter.grant(key, limits, least=cost, most=max(batch, cost))
            purse.told = told
            if not got:
                purse.refused_cost = cost
                if told.retry_after_us != NEVER:
                    # By the time before the call: what it says counts from a moment after that.
                    purse.refused_until_us = now_us + told.retry_after_us
                return told
            purse.refused_cost, purse.tokens, purse.ends_us = 0, got - cost, now_us + lease_us
            return purse._verdict(allowed=True, wait_us=0)  # noqa: SLF001  one noun, two classes

    def forget(self, key: bytes) -> None:
        """Give up what is held of a key, when it was reset."""
        purse = self._purses.get(key)
        if purse is not None:
            # Not dropped: somebody may wait for its turn, and two purses of a key would hold two batches.
            purse.tokens = purse.refused_cost = 0

    def _purse(self, key: bytes) -> _Purse:
        purse = self._purses.setdefault(key, _Purse())
        self._purses.move_to_end(key)
        if len(self._purses) > _PURSES_MAX:
            oldest, idle = next(iter(self._purses.items()))
            if not idle.turn.locked():
                del self._purses[oldest]
        return purse
