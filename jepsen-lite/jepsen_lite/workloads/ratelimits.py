"""The rate limiter: several instances decide calls of a few hot keys, by every algorithm that it has.

Clients that may ask any node share one instance, as the requests of one service do; each client that stays
with a node has its own. All of them go by the clock of the history, so that the judge knows their windows;
what differing clocks do to windows is arithmetic, and not a matter of the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from jepsen_lite.checks_ratelimit import check_admitted, check_peeked, check_refused
from jepsen_lite.history import Operation
from jepsen_lite.seat import Seat
from jepsen_lite.verdict import Verdict, guarded
from kvstore.apps.ratelimit import Algorithm, Breaker, Limit, Limiter, Mode, Outcome, Rule

_EPOCH_US = 1_699_999_200_000_000
"""Moment 0 of a history, to the limiter: the beginning of an hour, so of every window below."""
_CALL_S = 2.0
_INSTANCES = 32
_KINDS = {
    Algorithm.SLIDING_LOG: "log",
    Algorithm.FIXED_WINDOW: "window",
    Algorithm.TOKEN_BUCKET: "bucket",
    Algorithm.CONCURRENCY: "slots",
}


def _limit(algorithm: Algorithm, amount: int, period_s: float, burst: int = 0) -> Limit:
    return Limit(algorithm=algorithm, amount=amount, period_us=int(period_s * 1_000_000), burst=burst)


_LOG = _limit(Algorithm.SLIDING_LOG, 8, 2)
_RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(name="log", limits=(_LOG,)),
        Rule(name="window", limits=(_limit(Algorithm.FIXED_WINDOW, 8, 2),)),
        Rule(name="bucket", limits=(_limit(Algorithm.TOKEN_BUCKET, 8, 2, burst=6),)),
        Rule(
            name="both",
            limits=(_limit(Algorithm.TOKEN_BUCKET, 6, 1), _limit(Algorithm.FIXED_WINDOW, 10, 3)),
        ),
        Rule(name="slots", limits=(_limit(Algorithm.CONCURRENCY, 3, 3),)),
        Rule(
            name="leased",
            limits=(_LOG,),
            mode=Mode.LOCAL,
            batch=2,
            lease_us=500_000,
            instances=_INSTANCES,
        ),
    )
}


def promises(rule: Rule) -> list[dict[str, Any]]:
    """What the judge is told of a rule: plain data, for it shares no code with the limiter."""
    return [
        {
            "kind": _KINDS[limit.algorithm],
            "amount": limit.amount,
            "period": limit.period_us / 1_000_000,
            "burst": limit.burst,
            "beyond": rule.over_admission_max(limit),
        }
        for limit in rule.limits
    ]


class RateLimits:
    """Check, hold and release, peek."""

    linearizable = True
    keys_are_stored = False

    def __init__(self) -> None:
        self._limiters: dict[str, Limiter] = {}

    async def step(self, seat: Seat) -> None:
        """Mostly checks, far more than any limit allows."""
        rule = seat.dice.choice(sorted(_RULES))
        if seat.dice.random() < 0.1:
            await self._peek(seat, rule, "hot")
            return
        op, outcome = await self._check(seat, rule, "hot", cost=seat.dice.choice((1, 1, 1, 2, 3)))
        if outcome is not None and outcome.lease and op.outcome == "ok":
            await asyncio.sleep(seat.dice.choice((0.0, 0.05, 0.3)))
            await self._release(seat, outcome)

    async def _check(self, seat: Seat, rule: str, key: str, *, cost: int) -> tuple[Operation, Outcome | None]:
        told: list[Outcome] = []

        async def ask(op: Operation) -> None:
            outcome = await self._limiter(seat).check(rule, key, cost)
            told.append(outcome)
            op.observed, op.seen = True, outcome.lease or outcome.verdict.remaining
            if outcome.failed:
                op.outcome, op.error = "unknown", outcome.source.value
            elif not outcome.allowed:
                op.outcome, op.error = "fail", "refused"

        op = await seat.call("check", f"{rule}:{key}", ask, value=cost, expected=promises(_RULES[rule]))
        return op, told[0] if told else None

    async def _release(self, seat: Seat, outcome: Outcome) -> None:
        async def ask(_op: Operation) -> None:
            await self._limiter(seat).release(outcome.rule, outcome.key, outcome.lease)

        await seat.call("release", f"{outcome.rule}:{outcome.key}", ask, value=outcome.lease)

    async def _peek(self, seat: Seat, rule: str, key: str) -> Operation:
        async def ask(op: Operation) -> None:
            outcome = await self._limiter(seat).peek(rule, key)
            op.value = outcome.verdict.remaining
            if outcome.failed:
                op.outcome, op.error = "unknown", outcome.source.value

        return await seat.call("peek", f"{rule}:{key}", ask)

    def _limiter(self, seat: Seat) -> Limiter:
        """The instance of this seat; clients of the last reads are gone when they are done."""
        found = seat.memory.get("limiter") if seat.final else self._limiters.get(seat.node)
        if isinstance(found, Limiter):
            return found
        made = Limiter(
            seat.kv,
            _RULES,
            clock=lambda: _EPOCH_US + round(seat.now() * 1_000_000),
            dice=seat.dice,
            timeout_s=_CALL_S,
            # Every call is to find out for itself: a circuit that opens would hide most of a fault.
            breaker=Breaker(failures_max=1_000_000_000),
        )
        if seat.final:
            seat.memory["limiter"] = made
        else:
            self._limiters[seat.node] = made
        return made

    async def close(self) -> None:
        """End what the instances do beside their calls, where a run outlives its clients."""
        for limiter in self._limiters.values():
            await limiter.close()

    async def finish(self, seat: Seat) -> None:
        """Look at all keys, and let one call in by each strict rule, under a key that nobody else has."""
        for name, rule in sorted(_RULES.items()):
            await self._peek(seat, name, "hot")
            if rule.over_admission_max(rule.limits[0]) == 0:
                _, outcome = await self._check(seat, name, f"after-{seat.node}", cost=1)
                if outcome is not None and outcome.lease:
                    await self._release(seat, outcome)
        await self._limiter(seat).close()

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """Never more than promised; and never less than was left, so no call is charged twice."""
        return [
            guarded("admitted", lambda: check_admitted(operations)),
            guarded("refused", lambda: check_refused(operations)),
            guarded("peeked", lambda: check_peeked(operations)),
        ]
