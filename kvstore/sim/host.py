"""A machine of the simulator, and the life of one process on it.

Everything a process does runs as callbacks of the loop, each in a context that names its
incarnation. So a crash is one flag: from then on no callback of that incarnation runs, whatever it
was in the middle of; a pause keeps them back until the process goes on.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

INCARNATION: contextvars.ContextVar[Incarnation | None] = contextvars.ContextVar("incarnation", default=None)


class Incarnation:
    """One process, from start to end."""

    __slots__ = ("context", "dead", "held", "host", "paused")

    def __init__(self, host: str) -> None:
        self.host = host
        """The address of the machine."""
        self.dead = False
        self.paused = False
        self.held: list[tuple[contextvars.Context, Callable[..., Any], tuple[Any, ...]]] = []
        self.context = contextvars.copy_context()
        self.context.run(INCARNATION.set, self)

    def run(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Run a callback of this process, keep it for later, or let it never happen."""
        if self.dead:
            return
        if self.paused:
            self.held.append((contextvars.copy_context(), callback, args))
            return
        callback(*args)


class SimClock:
    """`ports.Clock` of one machine: simulated time, plus what is wrong with its wall clock."""

    __slots__ = ("_drift", "_since", "_time", "offset_ms")

    EPOCH_MS = 1_790_000_000_000
    """Simulated time begins here; any instant after 2024 would do."""

    def __init__(self, time: Callable[[], float], *, offset_ms: float = 0.0, drift: float = 0.0) -> None:
        self._time = time
        self._since = time()
        self._drift = drift
        self.offset_ms = offset_ms
        """How far the wall clock is ahead, apart from what it gained since the drift was set."""

    @property
    def drift(self) -> float:
        """Seconds the wall clock gains for each second."""
        return self._drift

    @drift.setter
    def drift(self, drift: float) -> None:
        now = self._time()
        self.offset_ms += (now - self._since) * 1000 * self._drift
        self._since, self._drift = now, drift

    def wall_ms(self) -> int:
        """Milliseconds since 1970, as this machine believes."""
        now = self._time()
        return int(self.EPOCH_MS + now * 1000 + self.offset_ms + (now - self._since) * 1000 * self._drift)

    def monotonic(self) -> float:
        """Seconds of simulated time."""
        return self._time()
