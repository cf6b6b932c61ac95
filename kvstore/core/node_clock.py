"""The steady clock of the node at the other end, learned from answers: good to half a round trip."""

from __future__ import annotations

from typing import Any

COMPARE_EVERY_S = 30.0


class NodeClock:
    """Loop time in seconds goes in; instants on the node's steady clock come out."""

    __slots__ = ("_ahead_s", "_compared_at")

    def __init__(self) -> None:
        self._ahead_s = 0.0
        """The node's steady clock minus our loop's time."""
        self._compared_at = 0.0

    def is_due(self, now: float) -> bool:
        """Whether to compare again."""
        return now - self._compared_at > COMPARE_EVERY_S

    def comparing(self, now: float) -> None:
        """The question is on its way: nobody else need ask."""
        self._compared_at = now

    def learn(self, told_ms: Any, *, asked_at: float, now: float) -> None:
        """The node told its clock, somewhere between the question and now."""
        self._compared_at = now
        if type(told_ms) is int:
            self._ahead_s = told_ms / 1000 - (asked_at + now) / 2

    def instant_ms(self, at: float) -> int:
        """A point of our loop's time on the node's clock, in milliseconds."""
        return int((at + self._ahead_s) * 1000)
