"""Where a worker sits: its client, its dice, its process number; and the record of what it does.

Rules of recording (see `history`): one monotonic clock; definite errors are `fail`, all others `unknown`;
whoever had an unknown outcome goes on under a new process number.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

from jepsen_lite.history import Operation
from kvstore import Applied, Client, NotApplied, errors
from kvstore.ports import Clock

Ask = Callable[[Operation], Awaitable[None]]
"""Makes the call and notes on the operation what came of it; what it leaves alone is ok."""
ASKED_AFTER = ", asked after"
"""Stands behind the error of a change whose outcome was asked for: that took a second call."""


class Recorder:
    """The history of a run, as it grows."""

    def __init__(self, clock: Clock) -> None:
        self.operations: list[Operation] = []
        self._clock = clock
        self._zero = clock.monotonic()
        self._processes = 0

    def restart_clock(self) -> None:
        """Time counts from now on."""
        self._zero = self._clock.monotonic()

    def now(self) -> float:
        """Seconds since the run began."""
        return round(self._clock.monotonic() - self._zero, 6)

    def process(self) -> int:
        """A number that nobody had."""
        self._processes += 1
        return self._processes - 1


class Seat:
    """One worker: at most one operation at a time."""

    def __init__(
        self, kv: Client, recorder: Recorder, dice: random.Random, *, node: str = "", final: bool = False
    ) -> None:
        self.kv = kv
        self.dice = dice
        self.node = node
        """The node that it is pinned to; empty: it may ask any."""
        self.final = final
        self.process = recorder.process()
        self.memory: dict[str, Any] = {}
        """What the workload keeps here."""
        self._recorder = recorder
        self._count = 0

    def unique(self) -> str:
        """A value that nobody else writes."""
        self._count += 1
        return f"{self.process}.{self._count}"

    def now(self) -> float:
        """Seconds since the run began."""
        return self._recorder.now()

    async def call(self, kind: str, key: str, ask: Ask, **known: Any) -> Operation:
        """Make one call and record it; `known`: fields of the operation that are known before."""
        op = Operation(self.process, kind, key, self.now(), node=self.node, final=self.final, **known)
        self._recorder.operations.append(op)
        op.outcome = "open"
        try:
            await ask(op)
        except errors.Refused as error:
            op.outcome, op.error = "fail", error.name
        except errors.KVError as error:
            op.outcome, op.error = "unknown", error.name
            await self._resolve(op, error)
        except BaseException:
            op.outcome = "unknown"
            raise
        else:
            if op.outcome == "open":
                op.outcome = "ok"
        op.ended = self.now()
        if op.outcome == "unknown":
            self.process = self._recorder.process()
        return op

    async def _resolve(self, op: Operation, error: errors.KVError) -> None:
        """Half of the changes of unknown outcome are asked after: the answer has to hold."""
        operation = getattr(error, "operation", None)
        if operation is None or op.kind not in ("write", "cas") or self.dice.random() < 0.5:
            return
        op.error += ASKED_AFTER
        try:
            done = await self.kv.resolve(operation)
        except errors.KVError:
            return
        if done:
            op.outcome, op.version = "ok", done.version
        else:
            op.outcome = "fail"


def note_change(op: Operation, done: Applied | NotApplied, found: Callable[[Any], Any]) -> None:
    """What a conditional change came to; `found` makes a recorded value of what was there instead."""
    op.version = done.version
    if done:
        return
    op.outcome = "fail"
    # An answer that is remembered rather than found out (to a retry, also one inside the cluster) has the
    # version of what was there, and not the value. Only version 0 is surely an absence.
    if done.value is not None:
        op.observed, op.seen = True, found(done.value)
    elif done.version == 0:
        op.observed = True
