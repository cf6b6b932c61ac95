"""The limiter: a rule and a key in, an outcome out; whatever the store does.

    async with await kvstore.connect(url) as kv:
        limiter = Limiter(kv, rules.load("rules.toml"))
        outcome = await limiter.check("api", "customer:42")
        if not outcome.allowed: ...

The client must have no codec, for registers hold bytes. When the store cannot tell, or the circuit is open,
the rule's `on_failure` decides, and `outcome.source` says that it did: `failed_open` admits without
counting, so beyond it no bound holds; `failed_closed` refuses, and a call whose charge is not known may have
been charged.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import NamedTuple

from kvstore import Client, errors
from kvstore.apps.ratelimit.background import Background
from kvstore.apps.ratelimit.breaker import Breaker
from kvstore.apps.ratelimit.clock import StoreClock
from kvstore.apps.ratelimit.ledger import Verdict
from kvstore.apps.ratelimit.limit import NEVER, Algorithm, Decision, Limit
from kvstore.apps.ratelimit.machine import ClockUs, certain, system_dice
from kvstore.apps.ratelimit.purses import Purse, Purses
from kvstore.apps.ratelimit.registers import Ledgers
from kvstore.apps.ratelimit.rules import Mode, OnFailure, Rule, Rules
from kvstore.apps.ratelimit.windows import WindowCounters

PREFIX = b"rl:"
COST_MAX = 1_000_000_000
_KEY_BYTES_MAX = 200
_RETRY_AFTER_FAILURE_US = 1_000_000


class Source(StrEnum):
    """What a decision was made from."""

    STRICT = "strict"
    LOCAL = "local"
    FAILED_OPEN = "failed-open"
    FAILED_CLOSED = "failed-closed"


class Outcome(NamedTuple):
    """What became of one call. Truthy when it is allowed."""

    rule: str
    key: str
    limits: tuple[Limit, ...]
    verdict: Verdict
    source: Source
    lease: str = ""
    """What to `release`, when the rule limits concurrency and the call is allowed."""

    def __bool__(self) -> bool:
        return self.allowed

    @property
    def allowed(self) -> bool:
        """Whether the call may go on."""
        return self.verdict.allowed

    @property
    def failed(self) -> bool:
        """Whether this is not a decision of the limits, but of what to do without the store."""
        return self.source in (Source.FAILED_OPEN, Source.FAILED_CLOSED)

    @property
    def retry_after_s(self) -> int | None:
        """Whole seconds, at least 1, when refused; None: it is allowed, or waiting does not help."""
        wait = self.verdict.retry_after_us
        return None if self.allowed or wait == NEVER else max(-(-wait // 1_000_000), 1)

    @property
    def delay_s(self) -> float:
        """Leaky bucket: how long an allowed call waits before it goes on."""
        return self.verdict.delay_us / 1_000_000


class UnknownRule(errors.BadRequest):
    """Fields: rule."""

    name = "unknown_rule"
    code = "KV-L01"
    http = 404
    template = "there is no rule {rule!r}"
    remedy = "a rule that the rules file names"


class Counts:
    """What has happened since the start, by rule; the service shows it to Prometheus."""

    def __init__(self) -> None:
        self._cells: dict[Source, dict[str, list[int]]] = {source: {} for source in Source}
        self.renewals: dict[str, int] = dict.fromkeys(("granted", "refused", "failed"), 0)
        """Batches asked for ahead of need, by what came of it."""

    def of(self, rule: str, source: Source) -> list[int]:
        """How many were refused and how many allowed; for whoever counts."""
        cells = self._cells[source]
        cell = cells.get(rule)
        if cell is None:
            cell = cells[rule] = [0, 0]
        return cell

    @property
    def decisions(self) -> dict[tuple[str, Source, bool], int]:
        """By rule, what decided, and whether it was allowed."""
        return {
            (rule, source, bool(at)): count
            for source, cells in self._cells.items()
            for rule, cell in cells.items()
            for at, count in enumerate(cell)
            if count
        }


class Limiter:
    """Decides calls by rules; one for a process."""

    def __init__(
        self,
        kv: Client,
        rules: Rules,
        *,
        clock: ClockUs | None = None,
        dice: random.Random | None = None,
        timeout_s: float = 2.0,
        breaker: Breaker | None = None,
    ) -> None:
        # A clock that is handed in is taken at its word, unless it is one that wants to be set.
        clock = StoreClock() if clock is None else clock
        self._store_clock = clock if isinstance(clock, StoreClock) else None
        self.rules = rules
        """Assign other ones at any time: limits that did not change go on counting."""
        self.breaker = breaker or Breaker()
        self.counts = Counts()
        self._clock = clock
        self._dice = dice or system_dice()
        self._kv = kv
        self._timeout_s = timeout_s
        self._background = Background()
        self.moments = certain(clock) if self._store_clock is None else self._store_clock.moment
        """What time it is, and what is not known of it."""
        self._ledgers = Ledgers(kv, moments=self.moments, timeout_s=timeout_s, background=self._background)
        self._windows = WindowCounters(
            kv, moments=self.moments, timeout_s=timeout_s, background=self._background
        )
        self._purses = Purses(self._ledgers, clock=clock)

    async def close(self) -> None:
        """End what it does beside its callers; those who still wait are cancelled."""
        await self._ledgers.close()
        await self._windows.close()
        await self._background.close()

    def rule(self, name: str) -> Rule:
        """Raises UnknownRule."""
        found = self.rules.get(name)
        if found is None:
            raise UnknownRule(rule=name)
        return found

    async def check(self, rule: str, key: str, cost: int = 1, *, lease: str = "") -> Outcome:
        """Decide one call, and charge it if it is allowed. `lease`: one that is held, to renew it.

        Raises UnknownRule, errors.BadOption, errors.BadKey; the store's failures become outcomes.
        """
        if isinstance(cost, bool) or not isinstance(cost, int) or not 1 <= cost <= COST_MAX:
            raise errors.BadOption(option="cost", given=repr(cost)[:60], allowed=f"1 to {COST_MAX}")
        found = self.rule(rule)
        limits = found.limits_of(key)
        if found.mode is Mode.LOCAL and (spent := self._spent(rule, key, limits, cost)) is not None:
            return spent
        holder = self._holder(lease) if found.holds else 0
        outcome = await self._guarded(
            found, key, limits, lambda: self._take(found, key, limits, cost, holder)
        )
        if holder and outcome.allowed and not outcome.failed:
            outcome = outcome._replace(lease=f"{holder:016x}")
        self.counts.of(rule, outcome.source)[outcome.allowed] += 1
        return outcome

    def _spent(self, rule: str, key: str, limits: tuple[Limit, ...], cost: int) -> Outcome | None:
        """A decision from memory: it needs no store, and says nothing of its health."""
        purse = self._purses.find((rule, key))
        if purse is None or purse.limits != limits:
            return None
        now_us = self._clock()
        verdict = purse.spend(cost, now_us)
        if verdict is None:
            return None
        if purse.wants_more(now_us) and self.breaker.admits(now_us):
            purse.is_renewing = True
            self._background.start(self._renew(purse))
        self.counts.of(rule, Source.LOCAL)[verdict.allowed] += 1
        return Outcome(rule, key, limits, verdict, Source.LOCAL)

    async def _renew(self, purse: Purse) -> None:
        """Renew a purse while its owner still spends from it."""
        try:
            # A service that finds enough in memory asks the store here alone.
            await self._compare_clock()
            await self._purses.renew(purse)
        except errors.KVError:
            self.breaker.failed(self._clock())
            self.counts.renewals["failed"] += 1
        else:
            self.breaker.succeeded()
            self.counts.renewals["granted" if purse.next_tokens else "refused"] += 1
        finally:
            purse.is_renewing = False

    async def peek(self, rule: str, key: str) -> Outcome:
        """What is left, by the store; nothing is charged and nothing counted."""
        found = self.rule(rule)
        limits, raw = found.limits_of(key), _raw(rule, key)

        async def look() -> Verdict:
            if found.mode is Mode.STRICT and WindowCounters.suits(limits):
                return await self._windows.peek(raw, limits[0])
            return await self._ledgers.peek(raw, limits)

        return await self._guarded(found, key, limits, look)

    async def reset(self, rule: str, key: str) -> None:
        """Forget a key. What other instances hold of it in local mode lasts until their leases end.

        Raises errors.KVError when the store cannot do it.
        """
        found, raw = self.rule(rule), _raw(rule, key)
        limits = found.limits_of(key)
        if found.mode is Mode.STRICT and WindowCounters.suits(limits):
            await self._windows.reset(raw, limits[0])
            return
        await self._ledgers.reset(raw)
        self._purses.forget((rule, key))

    async def release(self, rule: str, key: str, lease: str) -> None:
        """Give back what a call held. Raises errors.KVError; then it ends by itself with its period."""
        found = self.rule(rule)
        if lease:
            await self._ledgers.release(_raw(rule, key), found.limits_of(key), lease=self._holder(lease))

    @asynccontextmanager
    async def held(self, rule: str, key: str, cost: int = 1) -> AsyncIterator[Outcome]:
        """`check`, and `release` at the end."""
        outcome = await self.check(rule, key, cost)
        try:
            yield outcome
        finally:
            if outcome.lease:
                await self.let_go(outcome)

    async def let_go(self, outcome: Outcome) -> bool:
        """Release what an outcome holds; False when the store could not be told, so that it ends by time."""
        try:
            await self.release(outcome.rule, outcome.key, outcome.lease)
        except (errors.KVError, TimeoutError):
            return False
        return True

    def _take(
        self, rule: Rule, key: str, limits: tuple[Limit, ...], cost: int, lease: int
    ) -> Awaitable[Verdict]:
        raw = _raw(rule.name, key)
        if rule.mode is Mode.LOCAL:
            purse = self._purses.open((rule.name, key), raw, limits, batch=rule.batch, lease_us=rule.lease_us)
            return self._purses.take(purse, cost)
        if WindowCounters.suits(limits):
            return self._windows.take(raw, limits[0], cost)
        return self._ledgers.take(raw, limits, cost, lease=lease)

    async def _guarded(
        self, rule: Rule, key: str, limits: tuple[Limit, ...], ask: Callable[[], Awaitable[Verdict]]
    ) -> Outcome:
        """Ask behind the breaker; when nobody can tell, the rule's policy does."""
        if self.breaker.admits(self._clock()):
            try:
                await self._compare_clock()
                verdict = await ask()
            except errors.BadRequest:
                raise  # the caller's mistake, and no sign of the store's health
            except errors.KVError:
                self.breaker.failed(self._clock())
            else:
                self.breaker.succeeded()
                source = Source.LOCAL if rule.mode is Mode.LOCAL else Source.STRICT
                return Outcome(rule.name, key, limits, verdict, source)
        is_open = rule.on_failure is OnFailure.OPEN
        return Outcome(
            rule=rule.name,
            key=key,
            limits=limits,
            verdict=_without_store(limits, allowed=is_open),
            source=Source.FAILED_OPEN if is_open else Source.FAILED_CLOSED,
        )

    async def _compare_clock(self) -> None:
        """Set it or have it compared, if that is due. Raises errors.KVError."""
        clock = self._store_clock
        if clock is not None and clock.is_due():
            await clock.ready(self._kv, self._background, timeout_s=self._timeout_s)

    def _holder(self, lease: str) -> int:
        if not lease:
            return self._dice.getrandbits(63) | 1
        try:
            holder = int(lease, 16)
        except ValueError:
            holder = 0
        if not 0 < holder < 1 << 64:
            raise errors.BadOption(option="lease", given=repr(lease)[:60], allowed="what check gave")
        return holder


def _without_store(limits: Sequence[Limit], *, allowed: bool) -> Verdict:
    wait = 0 if allowed else _RETRY_AFTER_FAILURE_US
    return Verdict(allowed, tuple(Decision(allowed, 0, wait, wait) for _ in limits))


def _raw(rule: str, key: str) -> bytes:
    """The register's key. Long ones are hashed, so that any text can be one; none begins with this byte."""
    try:
        raw = key.encode()
    except UnicodeEncodeError:
        raise errors.BadOption(option="key", given="str that is no UTF-8", allowed="str") from None
    if len(raw) > _KEY_BYTES_MAX:
        raw = b"\xff" + hashlib.blake2b(raw, digest_size=32).hexdigest().encode()
    return PREFIX + rule.encode() + b":" + raw


__all__ = ["Algorithm", "Limiter", "Outcome", "Source", "UnknownRule"]
