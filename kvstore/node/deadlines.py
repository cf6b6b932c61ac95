"""Deadlines of many operations, with one timer for all.

A `call_later` for each request costs more than the request's own bookkeeping; a deadline is
met to within one step of the wheel (10 ms), which is far finer than any deadline in use.
"""

from __future__ import annotations

from typing import Protocol

STEP_S = 0.01


class Expiring(Protocol):
    """What can be put on the wheel."""

    def expire(self) -> None:
        """The deadline has passed and nobody took it off."""
        ...


Bucket = dict[int, Expiring]


class Deadlines:
    """A wheel of buckets, one for each step of time. Times are the loop's, in seconds."""

    __slots__ = ("_buckets", "_next")

    def __init__(self, now: float) -> None:
        self._buckets: dict[int, Bucket] = {}
        self._next = int(now / STEP_S)

    def add(self, deadline: float, what: Expiring) -> Bucket:
        """Remember `what`; to take it off again: `bucket.pop(id(what), None)`."""
        step = max(int(deadline / STEP_S) + 1, self._next)
        bucket = self._buckets.get(step)
        if bucket is None:
            bucket = self._buckets[step] = {}
        bucket[id(what)] = what
        return bucket

    def advance(self, now: float) -> int:
        """Expire all that is due; returns how many."""
        reached = int(now / STEP_S)
        if reached - self._next > len(self._buckets):  # after a pause: visit what exists, not every step
            due = sorted(step for step in self._buckets if step <= reached)
        else:
            due = [step for step in range(self._next, reached + 1) if step in self._buckets]
        self._next = reached + 1
        expired = 0
        for step in due:
            for what in list(self._buckets.pop(step).values()):
                what.expire()
                expired += 1
        return expired

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))
