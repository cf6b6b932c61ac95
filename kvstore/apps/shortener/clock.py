"""The machine's wall clock, for a package that may use the public client alone (no `kvstore.io`)."""

from __future__ import annotations

import time
from collections.abc import Callable

NowMs = Callable[[], int]
"""Milliseconds since 1970-01-01Z; handed in wherever time matters."""


def wall_ms() -> int:
    """The real one."""
    return time.time_ns() // 1_000_000  # noqa: TID251  the one place of this package
