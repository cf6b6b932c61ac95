"""The clock and the dice of this machine: the one place of the rate limiter that asks for them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

ClockUs = Callable[[], int]
"""Microseconds since 1970-01-01Z."""


def wall_us() -> int:
    """What this machine's clock says."""
    return time.time_ns() // 1000  # noqa: TID251  an application is handed no clock by anybody


def system_dice() -> random.Random:
    """Dice that nobody can guess, for the names of leases."""
    return random.SystemRandom()
