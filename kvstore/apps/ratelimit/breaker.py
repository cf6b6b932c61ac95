"""A circuit breaker: who has failed often enough is not asked for a while.

    CLOSED --failures in a row--> OPEN --after a pause--> HALF_OPEN --one try--> CLOSED or OPEN

Pure: `now` is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Circuit(StrEnum):
    """Whether the store is asked."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Breaker:
    """Counts failures in a row; a success forgets them."""

    failures_max: int = 5
    pause_us: int = 1_000_000
    _failures: int = 0
    _circuit: Circuit = Circuit.CLOSED
    _until_us: int = 0

    @property
    def circuit(self) -> Circuit:
        """The state."""
        return self._circuit

    def admits(self, now_us: int) -> bool:
        """Whether to ask the store. After the pause one caller is let through, as the probe."""
        if self._circuit is Circuit.CLOSED:
            return True
        if now_us < self._until_us:
            return False
        # A probe that never reports back must not keep the circuit open for ever.
        self._circuit, self._until_us = Circuit.HALF_OPEN, now_us + self.pause_us
        return True

    def succeeded(self) -> None:
        """The store has answered."""
        self._failures, self._circuit = 0, Circuit.CLOSED

    def failed(self, now_us: int) -> None:
        """It has not."""
        self._failures += 1
        if self._circuit is Circuit.HALF_OPEN or self._failures >= self.failures_max:
            self._circuit, self._until_us = Circuit.OPEN, now_us + self.pause_us
