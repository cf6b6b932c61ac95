"""What the clients of a run do: random calls on few keys, each written value unique."""

from __future__ import annotations

import asyncio
import random

from kvstore import errors
from kvstore.client.client import Client
from kvstore.sim.judge import Operation
from kvstore.sim.loop import SimLoop
from kvstore.sim.register_workload import RegisterWorkload
from kvstore.sim.trace import Trace

PLAIN_KEYS = tuple(f"plain-{n}" for n in range(5))
TIMED_KEYS = tuple(f"timed-{n}" for n in range(2))
TOUCHED_KEYS = ("touched-0",)
_LEVELS = ("quorum",) * 8 + ("one", "all")


class Workload:
    """Runs clients and keeps their history."""

    def __init__(
        self, loop: SimLoop, trace: Trace, dice: random.Random, registers: float | None = None
    ) -> None:
        self._loop = loop
        self._trace = trace
        self._dice = dice
        self._count = 0
        self.registers = RegisterWorkload(loop, trace, random.Random(dice.getrandbits(64)))
        drawn = dice.choice((0.0, 0.4, 0.4, 0.8))
        self._register_share = drawn if registers is None else registers
        self.history: list[Operation] = []

    async def drive(self, number: int, client: Client, until: float) -> None:
        """One client, one call after the other."""
        dice = self._dice
        pace = dice.choice((0.005, 0.02, 0.08))
        while self._loop.time() < until:
            if dice.random() < self._register_share:
                await self.registers.step(number, client)
                await asyncio.sleep(dice.expovariate(1 / pace))
                continue
            timed = dice.random() < 0.3
            keys = TIMED_KEYS + TOUCHED_KEYS if timed else PLAIN_KEYS
            key = dice.choice(keys)
            lot = dice.random()
            kind = (
                "get"
                if lot < 0.5
                else "put"
                if lot < 0.85
                else "delete"
                if lot < 0.93 or key not in TOUCHED_KEYS
                else "touch"
            )
            ttl = (
                dice.choice((0.2, 1.0, 3.0))
                if timed and kind in ("put", "touch") and dice.random() < 0.7
                else 0.0
            )
            await self.call(
                client, number, kind, key, dice.choice(_LEVELS), ttl=ttl, timeout=dice.choice((0.5, 1.5, 3.0))
            )
            await asyncio.sleep(dice.expovariate(1 / pace))

    async def call(
        self,
        client: Client,
        number: int,
        kind: str,
        key: str,
        level: str,
        *,
        ttl: float = 0.0,
        timeout: float,
        final: bool = False,
    ) -> Operation:
        """Make one call and write down what came of it."""
        self._count += 1
        value = f"{key}/{self._count}".encode() if kind == "put" else None
        op = Operation(
            number, kind, key, level, self._loop.time(), timeout, value=value, ttl=ttl, final=final
        )
        self.history.append(op)
        try:
            await self._ask(client, op)
            op.outcome = "ok"
        except errors.KVError as error:
            op.outcome = "refused" if error.definite else "unresolved"
            op.error = error.name
        op.ended = self._loop.time()
        self._trace("call", str(op))
        return op

    async def _ask(self, client: Client, op: Operation) -> None:
        terms = {"consistency": op.level, "timeout": op.timeout}
        match op.kind:
            case "put":
                receipt = await client.put(op.key, op.value, ttl=op.ttl or None, **terms)  # type: ignore[arg-type]
                op.version, op.superseded = receipt.version, receipt.superseded
            case "delete":
                receipt = await client.delete(op.key, **terms)  # type: ignore[arg-type]
                op.version, op.superseded = receipt.version, receipt.superseded
            case "touch":
                touched = await client.touch(op.key, op.ttl or 5.0, **terms)  # type: ignore[arg-type]
                op.version = touched.version if touched is not None else 0
            case _:
                # Below the public face, because that does not tell the version of what is absent.
                raw, level = op.key.encode(), op.level
                seen, _, _ = await client._caller.call(  # noqa: SLF001
                    "get", lambda t: (raw, {"c": level, "t": t}), key=raw, timeout=op.timeout, writes=False
                )
                op.version, op.value = seen[1], seen[0]
