"""Clicks: noted in memory by the redirect, written to a journal in batches, counted from there at leisure.

A redirect calls `note`, which waits for nothing. Every `flush_s` what is there becomes one record of this
process's journal in the store, one write for all links together. From then on a crash loses nothing of it
but the portion that is being counted. Counting goes on beside, at no more than `counters_per_s` additions a
second, fewer while the process is busy: a rush of visitors is redirected first and counted after.

What `kill -9` can lose: what came since the last record (`flush_s`, and the time of a write), and one
portion, which is of one record: together less than two seconds' clicks. Beyond that only what `dropped`
counts: clicks for which there was no room, because the store took nothing for a long time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

import kvstore
from kvstore import errors
from kvstore.apps.shortener.codes import new_id
from kvstore.apps.shortener.counting import Click, Counting
from kvstore.apps.shortener.journal import FullError, Journal, Lookout, TakenOver, encode

CLICKS_MAX = 20_000
"""Different clicks (link, hour, referrer, country, device) in memory; the same ones are only a number."""
_RECORD_CLICKS = 2_000
"""Different clicks in one record: some 150 KB."""
_PORTION = 50
_LOOK_S = 10.0
_LATE_S = 0.005
_BUSY_PART = 10
"""While this process wakes up late, because visitors keep it busy, it counts at a tenth of its pace."""
_PAUSE_S = 0.2
_LAST_S = 8.0
"""How long a stop may take for clicks; what is not counted then, another process does."""


class Clicks:
    """Counts for all links. `run` is a task of whoever owns this; it writes once more when it stops."""

    def __init__(
        self, kv: kvstore.Client, *, flush_s: float, monotonic: Callable[[], float], counters_per_s: int = 500
    ) -> None:
        self._kv = kv
        self._flush_s = flush_s
        self._pace_s = 1 / counters_per_s
        self._noted: Counter[Click] = Counter()
        self._record: tuple[bytes, int] | None = None
        """What could not be written yet, and how many clicks that is."""
        self._counting = Counting(kv)
        self._journal = Journal(kv, new_id())
        self._lookout = Lookout(kv, monotonic)
        self._stopping = False
        self._filled = asyncio.Event()
        self.noted = 0
        self._dropped = 0
        self._failed = 0

    @property
    def waiting(self) -> int:
        """Clicks in memory."""
        return self._noted.total() + (0 if self._record is None else self._record[1])

    @property
    def journal_waiting(self) -> int:
        """Records that are written and not counted."""
        return self._journal.waiting

    @property
    def dropped(self) -> int:
        """Clicks that are never counted."""
        return self._dropped + self._counting.dropped

    @property
    def failed(self) -> int:
        """Writes that were tried again."""
        return self._failed + self._counting.failed

    def note(self, click: Click) -> None:
        """Count a visit. Never waits."""
        if click in self._noted or len(self._noted) < CLICKS_MAX:
            self._noted[click] += 1
            self.noted += 1
        else:
            self._dropped += 1

    async def run(self, stop: asyncio.Event) -> None:
        """Write and count until `stop` is set, and then what is left, as far as the store allows."""
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(self._look())
            beating = tasks.create_task(self._beat())
            counting = tasks.create_task(self._count())
            writing = tasks.create_task(self._write(stop))
            await stop.wait()
            looking.cancel()
            beating.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await asyncio.shield(writing)
                    self._stopping = True
                    self._filled.set()
                    await asyncio.shield(counting)
                    with suppress(errors.KVError):
                        await self._journal.close()
            writing.cancel()
            counting.cancel()

    async def flush(self) -> bool:
        """Make records of what is there now. What could not be written stays for the next time: False."""
        left = len(self._noted)
        while left > 0 or self._record is not None:
            if self._record is None:
                first = list(islice(self._noted, min(left, _RECORD_CLICKS)))
                entries = [(click, self._noted.pop(click)) for click in first]
                left -= len(entries)
                self._record = encode(entries), sum(n for _, n in entries)
            try:
                await self._journal.append(self._record[0])
            except (errors.KVError, FullError):
                self._failed += 1
                return False
            except TakenOver:
                self._begin_anew()
                continue
            self._record = None
            self._filled.set()
        return True

    async def settle(self) -> None:
        """Count what our journal has now. Raises errors.KVError; what is left then stays there."""
        try:
            await self._work_off(self._journal)
        except TakenOver:
            self._begin_anew()

    async def adopt(self) -> bool:
        """Take over one journal that stood still for long, and count it. Raises TakenOver, errors.KVError."""
        orphan = await self._lookout.orphan(self._journal.name)
        if orphan is None:
            return False
        await self._work_off(orphan)
        await orphan.close()
        return True

    async def _write(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._flush_s):
                    await stop.wait()
            await self.flush()
        while self.waiting:  # the store failed: again, until `run` gives up
            await asyncio.sleep(self._flush_s)
            await self.flush()

    async def _count(self) -> None:
        """Work our journal off, until it is empty and we are stopping."""
        while True:
            self._filled.clear()
            if not self._journal.waiting:
                if self._stopping:
                    return
                await self._filled.wait()
                continue
            try:
                await self.settle()
            except errors.KVError:
                self._failed += 1
                await asyncio.sleep(_PAUSE_S)

    async def _work_off(self, journal: Journal) -> None:
        """To its end. Raises TakenOver, errors.KVError."""
        loop = asyncio.get_running_loop()
        pace_s = self._pace_s
        while portion := await journal.take(_PORTION):
            began = loop.time()
            added = await self._counting.count(portion)
            if not self._stopping:
                pause_s = max(added * pace_s - (loop.time() - began), 0)
                began = loop.time()
                await asyncio.sleep(pause_s)
                is_busy = loop.time() - began - pause_s > _LATE_S
                pace_s = self._pace_s * (_BUSY_PART if is_busy else 1)

    async def _beat(self) -> None:
        """Show that our journal is in good hands."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._journal.beat()
            except TakenOver:
                self._begin_anew()
            except errors.KVError:
                self._failed += 1

    async def _look(self) -> None:
        """Take over journals that are in nobody's hands."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.adopt()
            except (TakenOver, errors.KVError):
                self._failed += 1

    def _begin_anew(self) -> None:
        """Somebody took our journal over, with all records in it: perhaps the one under way as well."""
        self._journal = Journal(self._kv, new_id())
        if self._record is not None:
            self._dropped += self._record[1]
            self._record = None
