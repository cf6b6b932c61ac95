"""Locks with fencing tokens, and a resource that heeds them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from jepsen_lite.checks_lock import check_lock
from jepsen_lite.history import Operation
from jepsen_lite.seat import Seat
from jepsen_lite.verdict import Verdict, guarded
from jepsen_lite.workloads.registers import LINEAR

TTL_S = 1.0


class Locks:
    """Acquire, act on what the lock guards, release; some hold it longer than they may.

    What is guarded is a register that remembers the highest token, changed by compare-and-set: it refuses
    whoever comes with a lower one.
    """

    linearizable = True
    keys_are_stored = False
    locks = 2

    async def step(self, seat: Seat) -> None:
        """Acquire and act."""
        name = f"job-{seat.dice.randrange(self.locks)}"
        await self._turn(seat, name, wait=0.5, holds=seat.dice.choice((0.0, 0.05, 0.2)))

    async def _turn(self, seat: Seat, name: str, *, wait: float, holds: float) -> None:
        lock = seat.kv.lock(name, ttl=TTL_S, wait=wait)

        async def acquire(op: Operation) -> None:
            op.value = op.version = await lock.acquire()

        try:
            taken = await seat.call("acquire", name, acquire)
            if taken.outcome == "ok":
                await asyncio.sleep(holds)
                await self._act(seat, name, int(taken.value))
        finally:
            await lock.release()

    async def _act(self, seat: Seat, name: str, token: int) -> None:
        """Change what the lock guards, unless somebody with a higher token was there."""
        key = f"guarded:{name}"

        async def ask(op: Operation) -> None:
            entry = await seat.kv.get(key, consistency=LINEAR)
            if entry is not None and int(entry.value) > token:
                op.outcome, op.error = "fail", "fenced off"
                return
            version = entry.version if entry is not None else 0
            done = await seat.kv.cas(key, new=b"%d" % token, expected_version=version)
            if not done:
                op.outcome, op.error = "fail", "overtaken"

        await seat.call("guarded", name, ask, value=token)

    async def finish(self, seat: Seat) -> None:
        """Take each lock once: nobody else does, so what was left behind has to end with its ttl."""
        for number in range(self.locks):
            await self._turn(seat, f"job-{number}", wait=TTL_S * 5, holds=0.0)

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """Tokens grow, and no effect passes with an overtaken one."""
        return [guarded("lock", lambda: check_lock(operations))]
