"""A durable promise about the versions this node has issued: none is above the ceiling.

After a restart the clock resumes above the ceiling found in the log, so that a version is
never issued twice, even if the wall clock went back or the versions only ever lived in messages
(RELIABILITY statement T7, P6). The ceiling is raised in steps of a second, ahead of need, so
under load nobody waits for it; after an idle time the first write waits for one log batch.
"""

from __future__ import annotations

from collections.abc import Callable

from kvstore.core import version as versions
from kvstore.node.turn import Turn
from kvstore.storage.store import Store
from kvstore.types import NodeId, Version

STEP_MS = 1_000
"""How far ahead the ceiling is put. A restart waits until the clock is within the drift of it,
so it must stay small."""
AHEAD_MS = 500
"""When less than this is left, it is raised."""


class Ceiling:
    """The highest version this node may issue, as the log knows it."""

    __slots__ = ("_asked", "_due_ms", "_store", "_turn", "_waiting", "durable")

    def __init__(self, *, store: Store, turn: Turn) -> None:
        self._store = store
        self._turn = turn
        self._asked = 0
        self._due_ms = versions.millis_of(store.ceiling) - AHEAD_MS
        """After this instant it should be raised."""
        self._waiting: list[tuple[Version, Callable[[bool], None]]] = []
        self.durable: int = store.ceiling
        """Versions up to here may be issued."""

    def keep_ahead(self, now_ms: int) -> None:
        """Raise it in time, in the background."""
        if now_ms > self._due_ms:
            self._raise(versions.pack(now_ms + STEP_MS, 0, NodeId(0)))

    def when_above(self, version: Version, now_ms: int, then: Callable[[bool], None]) -> None:
        """Call `then(True)` once the ceiling is durably above `version`, `then(False)` if it cannot be."""
        if self._store.failed is not None:
            then(False)
            return
        self._waiting.append((version, then))
        if version > self._asked:
            target = max(versions.pack(now_ms + STEP_MS, 0, NodeId(0)), version)
            self._raise(Version(target))

    def _raise(self, target: Version) -> None:
        self._asked = target
        self._due_ms = versions.millis_of(target) - AHEAD_MS
        self._store.stage_ceiling(target)

        def durable(failure: BaseException | None) -> None:
            if failure is None:
                self.durable = max(self.durable, target)
            waiting, self._waiting = self._waiting, []
            for version, then in waiting:
                if failure is not None or version <= self.durable:
                    then(failure is None)
                else:
                    self._waiting.append((version, then))

        # The ceiling protects against our own restart, so it is synced in every sync mode.
        self._store.commit(durable, sync=True)
