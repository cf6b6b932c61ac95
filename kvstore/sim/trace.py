"""What happened in a run, as a running digest and, when asked for, as lines to read.

The digest covers every delivery, fault and completion in order. The same seed must give the same digest in
every process, whatever PYTHONHASHSEED is; a difference is a bug of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any


class Trace:
    """Events of one run."""

    def __init__(self, time: Callable[[], float], *, keep: bool) -> None:
        self._time = time
        self._hash = hashlib.blake2b(digest_size=16)
        self._keep = keep
        self.lines: list[str] = []
        self.bugs: list[str] = []
        """Mistakes of ours that a node logged; each fails the run."""
        self.events = 0

    def __call__(self, what: str, *details: Any) -> None:
        """Note an event. Details: text, numbers, bytes."""
        self.events += 1
        now = self._time()
        self._hash.update(f"{now:.9f} {what} {details!r}\n".encode())
        if self._keep and what != "deliver":
            shown = " ".join(str(detail) for detail in details)
            self.lines.append(f"{now:10.4f}  {what:<10}  {shown}")

    @property
    def digest(self) -> str:
        """Of everything so far, in hex."""
        return self._hash.hexdigest()


class TraceLog:
    """A node's log, into the trace."""

    def __init__(self, trace: Trace, node: str) -> None:
        self._trace = trace
        self._node = node

    def _note(self, event: str, **fields: Any) -> None:
        fields.pop("exc_info", None)
        shown = " ".join(f"{name}={value}" for name, value in fields.items())
        self._trace("log", self._node, event, shown)

    def error(self, event: str, **fields: Any) -> None:
        """An error: in a simulation a mistake of ours, so it fails the run."""
        cause = fields.get("exc_info")
        if isinstance(cause, BaseException):
            self._trace.bugs.append(f"{self._node} {event} {type(cause).__name__}: {cause}")
        self._note(event, **fields)

    debug = info = warning = critical = _note
