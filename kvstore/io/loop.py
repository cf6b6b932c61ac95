"""The event loop of servers: uvloop where it runs, asyncio's own elsewhere."""

from __future__ import annotations

import asyncio
import gc
import sys

SWITCH_INTERVAL_S = 0.0005
"""The disk thread must get the interpreter soon after its fsync returns: with Python's 5 ms a
commit would wait for it longer than for the disk."""


GC_THRESHOLDS = (50_000, 50, 100)
"""Requests free what they made by reference counts; with Python's 700 the collector looked through them
for cycles that are not there, for 4 % of a put."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop for `asyncio.Runner(loop_factory=...)`."""
    try:
        import uvloop  # noqa: PLC0415  not on every platform, and not needed by clients
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def tune_for_serving() -> None:
    """Set process-wide knobs; only for processes that are a node and nothing else."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
