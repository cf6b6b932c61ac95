"""What every workload has: steps of a worker, final reads, and a judge; and the keys they share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jepsen_lite.history import Operation
from jepsen_lite.seat import Seat
from jepsen_lite.verdict import Verdict


class Workload(Protocol):
    """One kind of work. An instance serves one run; `judge` needs none of its state."""

    linearizable: bool
    """Whether a side without a majority has to refuse it."""
    keys_are_stored: bool
    """Whether the keys of its operations are keys of the store, so that one can tell who holds them."""

    async def step(self, seat: Seat) -> None:
        """Draw what to do next and do it: usually one operation."""
        ...

    async def finish(self, seat: Seat) -> None:
        """After healing, through one node, nobody else at work: read what there is, and write a little."""
        ...

    def judge(self, operations: Sequence[Operation]) -> list[Verdict]:
        """Verdicts on the promises that this workload is about."""
        ...


@dataclass(slots=True)
class KeyPool:
    """A few keys at a time, each for so many operations: contention, and histories of bounded length."""

    prefix: str
    active: int = 4
    uses_max: int = 150
    finals_max: int = 12
    keys: list[str] = field(default_factory=list)
    _current: dict[str, int] = field(default_factory=dict)

    def pick(self, dice: random.Random) -> str:
        """A key to work on now."""
        while len(self._current) < self.active:
            key = f"{self.prefix}{len(self.keys)}"
            self.keys.append(key)
            self._current[key] = 0
        key = dice.choice(sorted(self._current))
        self._current[key] += 1
        if self._current[key] >= self.uses_max:
            del self._current[key]
        return key

    def finals(self) -> list[str]:
        """The newest keys: whose final reads are worth their time."""
        return self.keys[-self.finals_max :]
