"""Clocks of node processes, turned by libfaketime through a control file: wall clocks, not monotonic ones."""

from __future__ import annotations

import os
from pathlib import Path

from jepsen_lite.nemesis import Fault

REMEDY = "apt-get install libfaketime, or JEPSEN_LITE_FAKETIME=/path/to/libfaketimeMT.so.1"
_PLACES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib64/faketime/libfaketimeMT.so.1")


def library() -> str:
    """Where libfaketime is; empty when it is nowhere."""
    given = os.environ.get("JEPSEN_LITE_FAKETIME", "")
    if given:
        return given if Path(given).exists() else ""
    found = [path for place in _PLACES for path in sorted(Path("/").glob(place.removeprefix("/")))]
    return str(found[0]) if found else ""


def environment(faketime: str, control: Path) -> dict[str, str]:
    """What makes a process obey a control file, which it reads once a second."""
    return {
        "LD_PRELOAD": faketime,
        "FAKETIME_TIMESTAMP_FILE": str(control.resolve()),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # Its remedy for the waits of an old glibc makes those of Python's locks on a new one late:
        # with it the calls of ten clients take 300 ms instead of 4.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        "FAKETIME_DONT_RESET": "1",
    }


def turn(control: Path, fault: Fault | None) -> None:
    """Set a clock; None: right. A drift counts from the start of the process: it begins with a small jump."""
    ahead = fault.amount if fault is not None and fault.kind == "clock" else 0.0
    rate = 1 + fault.amount if fault is not None and fault.kind == "drift" else 1.0
    # The rate is always told: without one libfaketime goes on with the last.
    text = f"{ahead:+g} x{rate:g}"
    # By rename: a process must not meet half a file.
    fresh = control.with_suffix(".new")
    fresh.write_text(text + "\n", encoding="utf-8")
    fresh.replace(control)
