"""When to try again: full jitter, and a budget so that retries never become the load.

Sources: "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015); retry budgets as in Finagle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Dice(Protocol):
    """What is needed of `ports.Dice`, which is a floor above."""

    def random(self) -> float:
        """A float in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Times in milliseconds."""

    base_ms: float = 5.0
    """The longest pause before the first retry; doubles with each."""
    cap_ms: float = 500.0

    def delay_ms(self, attempt: int, dice: Dice) -> float:
        """A pause before retry number `attempt` (from 1): anywhere in [0, min(cap, base * 2^(attempt-1)))."""
        longest = min(self.cap_ms, self.base_ms * 2.0 ** min(max(attempt - 1, 0), 30))
        return dice.random() * longest


class RetryBudget:
    """Retries may be a fifth of the calls, plus a small reserve for quiet times."""

    __slots__ = ("_tokens", "cost", "reserve")

    def __init__(self, *, ratio: float = 0.2, reserve: float = 50.0) -> None:
        self.cost = 1.0 / ratio
        self.reserve = reserve * self.cost
        self._tokens = self.reserve

    def call(self) -> None:
        """A first try earns a part of a retry."""
        if self._tokens < self.reserve:
            self._tokens += 1.0

    def retry(self) -> bool:
        """Spend one retry, if there is one to spend."""
        if self._tokens < self.cost:
            return False
        self._tokens -= self.cost
        return True
