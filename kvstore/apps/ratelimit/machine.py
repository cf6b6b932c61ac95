"""The clock and the dice of this machine: the one place of the rate limiter that asks for them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
ClockUs = Callable[[], int]
"""Microseconds since 1970-01-01Z."""


class Moment(NamedTuple):
    """What time it is: `us` at the earliest, and `doubt_us` later at the latest."""

    us: int
    """Since 1970-01-01Z."""
    doubt_us: int = 0


Moments = Callable[[], Moment]


def certain(clock: ClockUs) -> Moments:
    """A clock that is taken at its word."""
    return lambda: Moment(clock())


def wall_us() -> int:
    """What this machine's clock says."""
    return time.time_ns() // 1000  # noqa: TID251  an application is handed no clock by anybody


def steady_us() -> int:
    """A clock that nobody sets, since the machine was started; on Linux it counts what the machine slept."""
    return time.clock_gettime_ns(_STEADY) // 1000


def system_dice() -> random.Random:
    """Dice that nobody can guess, for the names of leases."""
    return random.SystemRandom()
