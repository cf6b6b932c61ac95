"""Plain keys at quorum: nothing acknowledged is lost, reads never go back, what expired stays gone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from jepsen_lite.checks_session import (
    check_convergence,
    check_lost,
    check_session,
    check_stale,
    check_ttl,
    check_versions,
)
from jepsen_lite.history import Operation, by_key
from jepsen_lite.seat import Seat
from jepsen_lite.verdict import Verdict, guarded

SKEW_S = 0.8
"""Clocks may differ by 0.5 s before writes are refused; the rest is for a busy machine."""
_FAR = 1e12
_ANY_VERSION = 1 << 70


async def read(seat: Seat, key: str) -> Operation:
    """Read at quorum."""

    async def ask(op: Operation) -> None:
        entry = await seat.kv.get(key)
        if entry is not None:
            op.value, op.version = entry.value.decode(), entry.version

    return await seat.call("read", key, ask)


async def write(seat: Seat, key: str, *, ttl: float | None = None) -> Operation:
    """Write a unique value at quorum."""
    value = seat.unique()

    async def ask(op: Operation) -> None:
        receipt = await seat.kv.put(key, value.encode(), ttl=ttl)
        op.version = receipt.version
        if receipt.superseded:
            op.error = "superseded"

    return await seat.call("write", key, ask, value=value, ttl=ttl or 0.0)


async def delete(seat: Seat, key: str) -> Operation:
    """Delete at quorum."""

    async def ask(op: Operation) -> None:
        receipt = await seat.kv.delete(key)
        op.version = receipt.version
        if receipt.superseded:
            op.error = "superseded"

    return await seat.call("delete", key, ask)


def explained(operations: Sequence[Operation]) -> list[Operation]:
    """Give every read of absence the highest version of a delete that may explain it.

    An absence does not tell its version. So it is judged by the most lenient one, and is no evidence against
    what others see: to them it never ended.
    """
    result: list[Operation] = []
    for part in by_key(operations).values():
        deletes = [op for op in part if op.kind == "delete" and op.outcome != "fail"]
        for op in part:
            if op.kind != "read" or op.outcome != "ok" or op.value is not None:
                result.append(op)
                continue
            by = [each for each in deletes if op.ended is None or each.began <= op.ended]
            version = max((each.version if each.outcome == "ok" else _ANY_VERSION for each in by), default=0)
            result.append(replace(op, version=version, ended=_FAR))
    return result


def _seen(operations: Sequence[Operation]) -> list[Operation]:
    """Without writes that lost to a newer one: their version is below what the process may have seen."""
    return [op for op in operations if op.error != "superseded"]


class Quorum:
    """Put, get and delete of a few keys."""

    linearizable = False
    keys_are_stored = True
    keys = 8
    with_deletes = True

    async def step(self, seat: Seat) -> None:
        """Half of it reads."""
        key = f"key:{seat.dice.randrange(self.keys)}"
        draw = seat.dice.random()
        if draw < 0.5:
            await read(seat, key)
        elif draw < 0.9 or not self.with_deletes:
            await write(seat, key)
        else:
            await delete(seat, key)

    async def finish(self, seat: Seat) -> None:
        """Read all keys, and write one that nobody else has."""
        for number in range(self.keys):
            await read(seat, f"key:{number}")
        await write(seat, f"after:{seat.node}")

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """Nothing lost, nothing back, one value a version, and all nodes agree in the end."""
        clear = explained(operations)
        return [
            guarded("lost-writes", lambda: check_lost(clear)),
            guarded("stale-reads", lambda: check_stale(clear)),
            guarded("session", lambda: check_session(_seen(clear))),
            guarded("versions", lambda: check_versions([op for op in clear if op.value is not None])),
            guarded("convergence", lambda: check_convergence(operations)),
        ]


class Monotonic(Quorum):
    """Writes and reads without deletes: every process reads forwards, and its own writes."""

    keys = 3
    with_deletes = False


class Expiry:
    """Values that end, read around their end."""

    linearizable = False
    keys_are_stored = True
    keys = 6

    async def step(self, seat: Seat) -> None:
        """Write with a ttl, or read now or when the last value that was written here is about to end."""
        key = f"timed:{seat.dice.randrange(self.keys)}"
        if seat.dice.random() < 0.3:
            ttl = seat.dice.choice((0.5, 1.0, 2.0))
            op = await write(seat, key, ttl=ttl)
            if op.outcome == "ok":
                seat.memory["ends"] = key, op.end + ttl
            return
        key, ends = seat.memory.pop("ends", (key, -math.inf))
        wait = ends - seat.now() + seat.dice.uniform(-0.1, 1.2)
        if wait > 0:
            await asyncio.sleep(min(wait, 3.0))
        await read(seat, key)

    async def finish(self, seat: Seat) -> None:
        """All of it ended long ago."""
        for number in range(self.keys):
            await read(seat, f"timed:{number}")
        await write(seat, f"after:{seat.node}")

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """See check_ttl. What lost to a newer write from the start never had its time."""
        judged = _seen(operations)
        return [
            guarded("ttl", lambda: check_ttl(judged, skew_s=SKEW_S)),
            guarded("versions", lambda: check_versions([op for op in operations if op.value is not None])),
        ]
