"""Local decisions: each instance holds a batch of tokens of a key, and spends them in memory.

A batch is charged to the key's ledger before it is held, all limits at once, and what is not spent when the
lease ends is forfeited. So in any span of time what was spent is what was charged in that span, plus what
was held, or on its way, when it began:

    over-admission  <=  instances * batch,  and never more than what one lease can have been charged before:
                        token bucket: amount * lease / period;  the others: amount

which `over_admission_max` computes, `/v1/rules` and `kv app ratelimit check` state, and a test checks.
Under-admission is possible as well: forfeited tokens are lost to everybody.

A purse is renewed ahead of need, when a quarter of the batch or of the lease is left: that asks for no more
than what is missing to a whole batch, so what is held and what is on its way are a batch at most, and the
bound is the same as if nobody looked ahead. What comes is kept apart, for it ends later.
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

Name = tuple[str, str]
"""A rule and a key."""

_PURSES_MAX = 100_000
_AHEAD = 4
"""A purse is renewed when less than one part in so many is left of its tokens, or of its time."""


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


@dataclass(slots=True, eq=False)
class Purse:
    """What is held of one key: tokens that end now, and those that came ahead of need and end later."""

    key: bytes
    """Of the register."""
    limits: tuple[Limit, ...]
    """Those that all that it holds, and was told, is about."""
    batch: int
    lease_us: int
    tokens: int = 0
    ends_us: int = 0
    next_tokens: int = 0
    next_ends_us: int = 0
    aside: int = 0
    """Tokens that nobody spends while more is asked for; they end with `ends_us`."""
    told: Verdict | None = None
    """What the ledger said last."""
    refused_cost: int = 0
    refused_until_us: int = 0
    """When to ask again."""
    retry_at_us: int = 0
    """When the ledger will give as much, by what it said."""
    is_renewing: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def spend(self, cost: int, now_us: int) -> Verdict | None:
        """The decision, if it can be made from memory."""
        if now_us >= self.ends_us or cost > self.tokens:
            self._shift(now_us)
        if cost <= self.tokens and self.told is not None:
            self.tokens -= cost
            return self.verdict(True, 0)
        if cost >= self.refused_cost > 0 and now_us < self.refused_until_us:
            return self.verdict(False, self.retry_at_us - now_us)
        return None

    def wants_more(self, now_us: int) -> bool:
        """Whether to renew now, so that no call has to wait for it."""
        return (
            (self.tokens * _AHEAD <= self.batch or (self.ends_us - now_us) * _AHEAD <= self.lease_us)
            and not self.next_tokens
            and not self.is_renewing
            and now_us >= self.refused_until_us
        )

    def verdict(self, allowed: bool, wait_us: int) -> Verdict:
        """What to say now."""
        assert self.told is not None
        held = self.tokens + self.next_tokens
        return Verdict(
            allowed,
            tuple(
                [
                    Decision(allowed, remaining + held, wait_us, reset_after_us)
                    for _, remaining, _, reset_after_us, _ in self.told.decisions
                ]
            ),
        )

    def receive(self, got: int, told: Verdict, *, ends_us: int) -> None:
        """What came ahead of need; nothing came of a refusal."""
        self.told, self.next_tokens, self.next_ends_us = told, got, ends_us

    def refuse(self, cost: int, told: Verdict, now_us: int) -> None:
        """Remember until when the ledger will not give so much."""
        if told.retry_after_us == NEVER:
            return
        self.refused_cost = cost
        # By the time before the call: what it says counts from a moment after that.
        self.retry_at_us = now_us + told.retry_after_us
        # No longer than tokens would be held: another instance may reset the key.
        self.refused_until_us = now_us + min(told.retry_after_us, self.lease_us)

    def put_aside(self) -> None:
        """Let nobody spend what is held, while a batch is on its way."""
        self.aside, self.tokens = self.tokens, 0

    def take_back(self) -> None:
        """No batch came, so what was held before is as good as it was."""
        self.tokens, self.aside = self.aside, 0

    def empty(self) -> None:
        """Forfeit what is held."""
        self.tokens = self.next_tokens = self.aside = 0

    def _shift(self, now_us: int) -> None:
        """Forfeit what has ended, and take what came ahead when the rest does not do any more."""
        if now_us >= self.ends_us:
            self.tokens = 0
        if now_us >= self.next_ends_us:
            self.next_tokens = 0
        if self.next_tokens:
            if self.tokens:
                # Both are spent by the earlier end: what is joined must not live longer than it may.
                self.next_ends_us = min(self.ends_us, self.next_ends_us)
            self.tokens, self.ends_us = self.tokens + self.next_tokens, self.next_ends_us
            self.next_tokens = 0


class Purses:
    """The tokens this instance holds."""

    def __init__(self, granter: Granter, *, clock: ClockUs) -> None:
        self._granter = granter
        self._clock = clock
        self._purses: OrderedDict[Name, Purse] = OrderedDict()

    async def take(self, purse: Purse, cost: int) -> Verdict:
        """Decide one call, from memory if possible. Raises errors.KVError when the store cannot tell."""
        async with purse.turn:
            # Somebody may have renewed it while we waited.
            now_us = self._clock()
            verdict = purse.spend(cost, now_us)
            if verdict is not None:
                return verdict
            got, most = 0, max(purse.batch, cost)
            # Forfeited when a batch comes, so that never more than a batch is held; a refusal brings none.
            purse.put_aside()
            try:
                got, told = await self._granter.grant(purse.key, purse.limits, least=cost, most=most)
            finally:
                if not got:
                    purse.take_back()
            purse.told = told
            if not got:
                purse.refuse(cost, told, now_us)
                return told
            purse.empty()
            purse.refused_cost, purse.tokens, purse.ends_us = 0, got - cost, now_us + purse.lease_us
            return purse.verdict(True, 0)

    async def renew(self, purse: Purse) -> None:
        """Ask for what is missing to a batch. Raises errors.KVError when the store cannot tell."""
        async with purse.turn:
            now_us = self._clock()
            missing = purse.batch - purse.tokens - purse.next_tokens
            if missing <= 0 or purse.next_tokens:
                return
            got, told = await self._granter.grant(purse.key, purse.limits, least=1, most=missing)
            if not got:
                purse.refuse(1, told, now_us)
            purse.receive(got, told, ends_us=now_us + purse.lease_us)

    def forget(self, name: Name) -> None:
        """Give up what is held of a key, when it was reset."""
        purse = self._purses.get(name)
        if purse is not None:
            # Not dropped: somebody may wait for its turn, and two purses of a key would hold two batches.
            purse.empty()
            purse.refused_cost = 0

    def find(self, name: Name) -> Purse | None:
        """The purse of a key that is in use."""
        purse = self._purses.get(name)
        if purse is not None:
            self._purses.move_to_end(name)
        return purse

    def open(self, name: Name, key: bytes, limits: tuple[Limit, ...], *, batch: int, lease_us: int) -> Purse:
        """The purse of a key, an empty one at first; another batch or lease counts from the next renewal."""
        purse = self.find(name)
        # Other limits count anew, and calls that wait for the old purse are told of the old ones.
        if purse is None or purse.limits != limits:
            purse = self._purses[name] = Purse(key, limits, batch, lease_us)
            if len(self._purses) > _PURSES_MAX:
                oldest, idle = next(iter(self._purses.items()))
                if not idle.turn.locked():
                    del self._purses[oldest]
        purse.batch, purse.lease_us = batch, lease_us
        return purse
