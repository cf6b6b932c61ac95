"""Rules that follow their file: a changed file is read; one with mistakes is told of, and changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kvstore import errors
from kvstore.apps.ratelimit import rules
from kvstore.apps.ratelimit.limiter import Limiter
from kvstore.apps.ratelimit.metrics import Metrics


class RulesFile:
    """One file, and the limiter whose rules it holds."""

    def __init__(
        self, path: Path, limiter: Limiter, metrics: Metrics, *, log: Any, look_s: float = 1.0
    ) -> None:
        self._path = path
        self._limiter = limiter
        self._metrics = metrics
        self._log = log
        self._look_s = look_s
        self._seen = self._mark()

    def _mark(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return (0, 0, 0)
        # Editors that replace the file may keep its time and size, but not its inode.
        return (status.st_mtime_ns, status.st_size, status.st_ino)

    def reload(self) -> bool:
        """Read it now; False: it has mistakes, and the rules are as they were."""
        self._seen = self._mark()
        try:
            found = rules.load(self._path)
        except (errors.KVError, OSError) as error:
            self._metrics.reloads.labels("failed").inc()
            self._log.error("rules_refused", path=str(self._path), reason=str(error))
            return False
        self._limiter.rules = found
        self._metrics.reloads.labels("done").inc()
        self._log.info("rules_loaded", path=str(self._path), rules=sorted(found))
        return True

    async def follow(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await asyncio.sleep(self._look_s)
            if self._mark() != self._seen:
                self.reload()
