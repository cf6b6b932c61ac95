"""Which keys this node leads: a majority accepted its last record there, so the next needs no prepare.

What is kept is a hint in memory, for the keys changed last: forgetting one costs a prepare, nothing else.
Why nothing has to be kept by anybody else: docs/decisions/0004-a-record-promises-its-successor.md.

Rules kept here:
- a lead is taken by one round, and is there again only when that round was accepted by a majority;
- an owner that refuses our record ends the lead: it promised more, and only a prepare gets above that;
- leads end with the owners they were won from.
"""

from __future__ import annotations

from kvstore.types import Version

LEADS_MAX = 65_536
"""Some 12 MB."""


class Leads:
    """Ballots by key, newest last."""

    __slots__ = ("_ballots", "_capacity", "_epoch")

    def __init__(self, capacity: int = LEADS_MAX) -> None:
        self._capacity = capacity
        self._epoch = 0
        self._ballots: dict[bytes, Version] = {}

    def take(self, key: bytes, epoch: int) -> Version | None:
        """The ballot at which a majority of that epoch's owners accepted our record; None: not known."""
        return self._ballots.pop(key, None) if epoch == self._epoch else None

    def won(self, key: bytes, ballot: Version, epoch: int) -> None:
        """A majority of that epoch's owners accepted our record."""
        ballots = self._ballots
        if epoch != self._epoch:
            ballots.clear()
            self._epoch = epoch
        ballots[key] = ballot
        if len(ballots) > self._capacity:
            del ballots[next(iter(ballots))]

    def drop(self, key: bytes) -> None:
        """An owner refused our record: the next round prepares."""
        self._ballots.pop(key, None)

    def __len__(self) -> int:
        return len(self._ballots)
