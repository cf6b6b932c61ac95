"""Room for one more call on a connection, or a wait until there is."""

from __future__ import annotations

import asyncio


class Room:
    """Open, or closed with callers waiting. Who waits is woken all at once, and looks again."""

    __slots__ = ("_opened", "is_full")

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self.is_full = False

    def close(self) -> None:
        """No more for now."""
        self.is_full = True
        self._opened.clear()

    def open(self) -> None:
        """Go on."""
        self.is_full = False
        self._opened.set()

    async def wait(self) -> None:
        """Return when there is room."""
        while self.is_full:
            await self._opened.wait()
