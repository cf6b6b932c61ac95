"""The part of the disk that client writes may not use.

A full disk must not stop deletes, expiry and repair, which are the way out of it, nor the log, whose
failure would end the node. So client writes stop while there is still space, and come back by
themselves when there is enough again.
"""

from __future__ import annotations

from kvstore.ports import Files, Worker

RECHECK_MS = 1_000
"""Space is looked at once in so long, not with every write."""


class Reserve:
    """Whether client writes must stop. On the loop; asks the disk through a worker."""

    def __init__(
        self, *, files: Files, path: str, worker: Worker, ratio: float, bytes_max: int, room: int
    ) -> None:
        self._files = files
        self._path = path
        self._worker = worker
        self._room = room
        self._ran_out = False
        self._checked_ms = 0
        self._asking = False
        self.reserve = min(int(files.total_bytes(path) * ratio), bytes_max)
        """Bytes kept free."""
        self.free = files.free_bytes(path)
        """Bytes free when last looked."""
        self.full = self.free < self.reserve

    def check(self, now_ms: int) -> None:
        """Look again if the last look is a second old (or the clock went back)."""
        if self._asking or 0 <= now_ms - self._checked_ms < RECHECK_MS:
            return
        self._asking = True
        self._checked_ms = now_ms
        self._worker.submit(lambda: self._files.free_bytes(self._path), self._checked)

    def ran_out(self) -> None:
        """A write other than the log's found no space, whatever the last look said.

        There is enough again when a segment would fit.
        """
        self.full = self._ran_out = True

    def _checked(self, free: int | None, error: BaseException | None) -> None:
        self._asking = False
        if error is None and free is not None:
            self.free = free
            self.full = free < (max(self.reserve, self._room) if self._ran_out else self.reserve)
            self._ran_out = self._ran_out and self.full
