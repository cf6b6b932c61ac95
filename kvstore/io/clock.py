"""The machine's clocks."""

from __future__ import annotations

import time


class SystemClock:
    """`ports.Clock` over the operating system."""

    __slots__ = ()

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01Z."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds; on Linux this clock goes on while the machine sleeps, like the wall clock."""
        return time.clock_gettime(_MONOTONIC)


# With plain CLOCK_MONOTONIC a laptop that wakes up looks like a wall clock that jumped.
_MONOTONIC = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
