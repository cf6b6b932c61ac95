"""Do once at the end of a loop turn what many callbacks of that turn asked for.

A turn is one pass of the event loop over the sockets that were readable. Everything that the
requests of one turn produce leaves together: one log batch, one message a peer, one write a
connection (DESIGN 13). Whoever has something to send marks itself; each mark runs once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Turn:
    """The list of things to do when this loop turn ends."""

    __slots__ = ("_loop", "_marks")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._marks: list[Callable[[], None]] = []

    def mark(self, flush: Callable[[], None]) -> None:
        """Run `flush` when the turn ends. The caller remembers that it has marked itself."""
        if not self._marks:
            self._loop.call_soon(self._end)
        self._marks.append(flush)

    def _end(self) -> None:
        # A flush may mark again (a reply that fails over to another peer); that is the next turn.
        marks, self._marks = self._marks, []
        for flush in marks:
            flush()
