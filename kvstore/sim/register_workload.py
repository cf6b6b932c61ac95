"""Linearizable calls on few keys: reads, writes, compare-and-set, increments, and what became of them."""

from __future__ import annotations

import random

from kvstore import errors
from kvstore.client.change import Applied, NotApplied
from kvstore.client.client import Client
from kvstore.sim.judge import Operation
from kvstore.sim.loop import SimLoop
from kvstore.sim.trace import Trace

REGISTER_KEYS = tuple(f"register-{n}" for n in range(3))
MIXED_KEYS = ("mixed-0",)
"""Written by plain writes too, which turn into changes when they meet the register."""
COUNTER_KEYS = ("counter-0",)
LEVEL = "linearizable"
_RESOLVE_CHANCE = 0.5
_TTL_S = 86_400.0
"""No run is as long: what ends all the same was given its end by a clock that was off."""


class RegisterWorkload:
    """Makes calls and keeps their history. Written values are unique."""

    def __init__(self, loop: SimLoop, trace: Trace, dice: random.Random) -> None:
        self._loop = loop
        self._trace = trace
        self._dice = dice
        self._count = 0
        self._seen: dict[tuple[int, str], int] = {}
        """The version a client saw last, for its next compare-and-set."""
        self.history: list[Operation] = []
        self.resolved = 0

    async def step(self, number: int, client: Client) -> None:
        """One call of one client, drawn."""
        dice = self._dice
        timeout = dice.choice((0.5, 1.5, 3.0))
        if dice.random() < 0.2:
            kind = "incr" if dice.random() < 0.7 else "get"
            await self.call(client, number, kind, dice.choice(COUNTER_KEYS), timeout=timeout)
            return
        key = dice.choice(REGISTER_KEYS + MIXED_KEYS)
        lot = dice.random()
        kind = "get" if lot < 0.4 else "put" if lot < 0.6 else "cas" if lot < 0.93 else "delete"
        level = "quorum" if key in MIXED_KEYS and kind in ("put", "delete") and dice.random() < 0.5 else LEVEL
        await self.call(client, number, kind, key, timeout=timeout, level=level)

    async def call(
        self,
        client: Client,
        number: int,
        kind: str,
        key: str,
        *,
        timeout: float,
        level: str = LEVEL,
        final: bool = False,
    ) -> Operation:
        """Make one call and write down what came of it."""
        self._count += 1
        value = f"{key}/{self._count}".encode() if kind in ("put", "cas") else None
        op = Operation(number, kind, key, level, self._loop.time(), timeout, value=value, final=final)
        self.history.append(op)
        try:
            await self._ask(client, op)
        except errors.KVError as error:
            op.outcome = "refused" if error.definite else "unresolved"
            op.error = error.name
            if isinstance(error, errors.Unresolved) and error.operation is not None:
                op.ended = self._loop.time()
                await self._resolve(client, op, error)
        op.ended = self._loop.time()
        if op.version:
            self._seen[number, key] = op.version
        self._trace("call", str(op))
        return op

    async def _ask(self, client: Client, op: Operation) -> None:
        match op.kind:
            case "get":
                found, _, _ = await client._caller.call(  # noqa: SLF001  to see the version of what is absent
                    "get",
                    lambda t: (op.key.encode(), {"c": LEVEL, "t": t}),
                    key=op.key.encode(),
                    timeout=op.timeout,
                    writes=False,
                )
                op.version, op.value, op.outcome = found[1], found[0], "ok"
            case "put":
                receipt = await client.put(
                    op.key, op.value, ttl=_TTL_S, consistency=op.level, timeout=op.timeout
                )
                op.version, op.outcome, op.superseded = receipt.version, "ok", receipt.superseded
            case "delete":
                receipt = await client.delete(op.key, consistency=op.level, timeout=op.timeout)
                op.version, op.outcome, op.superseded = receipt.version, "ok", receipt.superseded
            case "incr":
                self._settle(op, await client.incr(op.key, ttl=_TTL_S, timeout=op.timeout))
            case _:
                op.expected = self._seen.get((op.client, op.key), 0)
                done = await client.cas(
                    op.key, new=op.value, expected_version=op.expected, ttl=_TTL_S, timeout=op.timeout
                )
                self._settle(op, done)

    @staticmethod
    def _settle(op: Operation, done: Applied | NotApplied) -> None:
        op.version = done.version
        op.outcome = "ok" if done else "lost"
        if done and op.kind == "incr":
            op.number = int(done.value)

    async def _resolve(self, client: Client, op: Operation, error: errors.Unresolved) -> None:
        """Sometimes ask what became of it, and write that down as the outcome."""
        if self._dice.random() > _RESOLVE_CHANCE:
            return
        try:
            done = await client.resolve(error.operation, timeout=op.timeout)
        except errors.KVError:
            return
        self.resolved += 1
        if not done:
            op.outcome = "refused"  # a fact from now on: it must never be seen
            return
        op.outcome, op.version = "ok", done.version
        if op.kind == "incr":
            op.number = int(done.value)
