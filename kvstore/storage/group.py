"""Group commit: all that came while one fsync ran goes out with the next.

A record passes through three dicts: `staged` until its group is cut, `flying` while a worker
writes it, then it is handed to the store, which shows it to readers. So nobody ever reads what a
crash could undo, and a merge still sees what is on its way.

Rules kept here:
- a waiter is answered only when all that was applied before its `commit` is as durable as asked,
  and always from the loop, never from inside `commit`;
- one job at a time; a group is one record of the log, one write, at most one sync;
- an error ends it: everybody who waits gets `Crashed`, nothing is tried again, and what was in
  flight stays invisible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kvstore import errors
from kvstore.ports import Clock, Worker
from kvstore.storage import segment
from kvstore.storage.wal import Job, Log
from kvstore.types import Durability

Done = Callable[[BaseException | None], None]

GROUP_BYTES_MAX = 16 << 20
"""Above one record of the largest value. What is more waits for the next group."""


@dataclass(frozen=True, slots=True)
class Start:
    """What recovery found out."""

    ceiling: int
    highest_version: int
    keys: int
    tombstones: int


class Holder(Protocol):
    """The store, as far as its group commit knows it."""

    def absorb(self, batch: dict[bytes, bytes], written: int, retired: list[bytes]) -> None:
        """Show durable records to readers."""
        ...

    def may_write(self) -> bool:
        """False while memory must be emptied first; `resume` follows."""
        ...


def _nothing() -> None:
    """A job for those who only wait their turn."""


class Group:
    """What is staged, what is in flight, and who waits for it. On the loop, but for `finish` and `halt`."""

    __slots__ = (
        "_busy", "_clock", "_closing", "_flying_bytes", "_flying_ceiling", "_flying_counts",
        "_flying_error", "_flying_retired", "_flying_sync", "_flying_waiters", "_holder", "_interval_ms",
        "_log", "_log_dirty", "_on_failure", "_sync_always", "_sync_wanted", "_synced_ms", "_waiting",
        "_worker", "batches", "ceiling", "failed", "flying", "fsyncs", "highest", "keys", "landed",
        "landed_counts", "last_fsync_ms", "now_ms", "staged", "staged_bytes", "staged_ceiling",
        "staged_retired", "tombstones",
    )  # fmt: skip

    def __init__(
        self,
        *,
        log: Log,
        worker: Worker,
        holder: Holder,
        durability: Durability,
        interval_ms: int,
        clock: Clock | None,
        start: Start,
        on_failure: Callable[[errors.Crashed], None],
    ) -> None:
        self._log = log
        self._worker = worker
        self._holder = holder
        self._on_failure = on_failure
        self._clock = clock
        self._sync_always = durability is Durability.ALWAYS
        self._interval_ms = interval_ms
        self._synced_ms = 0
        self._log_dirty = False
        self._busy = False
        self._closing = False
        self._sync_wanted = False
        self._waiting: list[Done] = []
        self._flying_waiters: list[Done] = []
        self._flying_sync = False
        self._flying_error: BaseException | None = None
        self._flying_bytes = 0
        self._flying_ceiling = 0
        self._flying_retired: list[bytes] = []
        self.staged: dict[bytes, bytes] = {}
        self.staged_bytes = 0
        self.staged_retired: list[bytes] = []
        self.staged_ceiling = start.ceiling
        self.flying: dict[bytes, bytes] = {}
        self.landed = log.sequence
        """The last record of the log whose contents readers see."""
        self.ceiling = start.ceiling
        """Durable: the node has issued no version above it."""
        self.highest = start.highest_version.to_bytes(8, "big")
        """The highest version ever staged, as a record has it."""
        self.keys = start.keys
        self.tombstones = start.tombstones
        self.landed_counts = self._flying_counts = (start.keys, start.tombstones)
        """Keys and tombstones as of `landed`."""
        self.now_ms = 0
        """The latest instant anybody told the store; paces the syncs of mode `interval`."""
        self.failed: errors.Crashed | None = None
        self.batches = 0
        self.fsyncs = 0
        self.last_fsync_ms = 0.0

    def commit(self, done: Done, *, sync: bool) -> None:
        """Call `done` once all that is staged or in flight is as durable as asked."""
        failed = self.failed
        if failed is not None:
            self._worker.submit(_nothing, lambda _result, _error: done(failed))
            return
        self._waiting.append(done)
        self._sync_wanted = self._sync_wanted or sync
        if not self._busy:
            self.resume()

    def sync_if_due(self, now_ms: int) -> None:
        """In mode `interval`: sync what was written and has waited long enough."""
        self.now_ms = now_ms
        if self._log_dirty and self._interval_due() and not self._busy and self.failed is None:
            self._sync_wanted = True
            self.resume()

    def resume(self) -> None:
        """Begin the next group if anybody waits for one."""
        if self._busy or self._closing or self.failed is not None:
            return
        if not (self._waiting or self._sync_wanted):
            return
        if not self._holder.may_write():
            return
        payload = self._cut()
        if not self.staged:
            # Else the group was cut in two, and all wait for the second half.
            self._flying_waiters, self._waiting = self._waiting, []
            sync, self._sync_wanted = self._sync_wanted, False
        else:
            sync = False
        job = self._job(payload, sync=sync or self._sync_always or self._interval_due())
        self._busy = True
        self._flying_error = None
        self._worker.submit(lambda: self._run(job), self._done)

    def _run(self, job: Job) -> None:
        """On the worker. Its end is written down for `finish`, which cannot wait for the loop."""
        try:
            job()
        except BaseException as error:
            self._flying_error = error
            raise

    def _interval_due(self) -> bool:
        # A clock that was set back says nothing of how long it has been.
        return self._interval_ms > 0 and not 0 <= self.now_ms - self._synced_ms < self._interval_ms

    def _cut(self) -> bytes | None:
        """Move what is staged into flight; its bytes for the log, if there is anything to write."""
        ceiling = self.staged_ceiling
        if not self.staged and ceiling == self.ceiling:
            return None
        if self.staged_bytes <= GROUP_BYTES_MAX:
            self.flying, self.staged = self.staged, {}
            self._flying_bytes, self.staged_bytes = self.staged_bytes, 0
        else:
            self._cut_part()
        self._flying_ceiling = ceiling
        self._flying_counts = (self.keys, self.tombstones)
        # A ceiling alone is not absorbed, so it takes nothing along; and some may belong to what is left.
        if self.flying and not self.staged:
            self._flying_retired, self.staged_retired = self.staged_retired, []
        return segment.encode_batch(ceiling, self.keys, self.tombstones, self.flying)

    def _cut_part(self) -> None:
        """Take as many of the oldest as fit, and at least one."""
        self.flying, self._flying_bytes = {}, 0
        for skey, record in self.staged.items():
            size = len(skey) + len(record)
            if self.flying and self._flying_bytes + size > GROUP_BYTES_MAX:
                break
            self.flying[skey] = record
            self._flying_bytes += size
        for skey in self.flying:
            del self.staged[skey]
        # `staged_bytes` counts what was staged over as well; at the end it must come to nothing.
        self.staged_bytes = max(self.staged_bytes - self._flying_bytes, 0) if self.staged else 0

    def _job(self, payload: bytes | None, *, sync: bool) -> Job:
        if payload is None and not (sync and self._log_dirty):
            self._flying_sync = False
            return _nothing
        self._flying_sync = sync
        self._log_dirty = True
        if payload is None:
            return self._timed(self._log.sync())
        self.batches += 1
        return self._timed(self._log.append(payload, sync=sync))

    def _timed(self, job: Job) -> Job:
        clock = self._clock
        if clock is None or not self._flying_sync:
            return job

        def timed() -> None:
            began = clock.monotonic()
            job()
            self.last_fsync_ms = (clock.monotonic() - began) * 1000

        return timed

    def _done(self, _result: None, error: BaseException | None) -> None:
        if self.failed is not None or not self._busy:
            return
        if error is not None:
            self.fail(error)
            return
        waiters = self._land()
        # The disk gets its next group before anybody here reacts to this one.
        self.resume()
        for done in waiters:
            done(None)

    def _land(self) -> list[Done]:
        """The job of the group ended well: its records are visible from now on."""
        self._busy = False
        self._log.landed()
        if self._flying_sync:
            self.fsyncs += 1
            self._log.confirm(self._log.sequence)
            self._log_dirty = False
            self._synced_ms = self.now_ms
        self.landed = self._log.sequence
        self.landed_counts = self._flying_counts
        self.ceiling = max(self.ceiling, self._flying_ceiling)
        waiters, self._flying_waiters = self._flying_waiters, []
        if self.flying:
            batch, self.flying = self.flying, {}
            retired, self._flying_retired = self._flying_retired, []
            # Last, because the store may commit something from in there.
            self._holder.absorb(batch, self._flying_bytes, retired)
        return waiters

    def fail(self, cause: BaseException) -> None:
        """End it: the log is not written any more, and nobody knows what of the last group is there."""
        if self.failed is not None:
            return
        if isinstance(cause, errors.Crashed):
            self.failed = cause
        else:
            self.failed = errors.Crashed(reason=f"the log cannot be written: {cause}")
        self._busy = False
        waiters = self._flying_waiters + self._waiting
        self._flying_waiters, self._waiting = [], []
        self._on_failure(self.failed)
        for done in waiters:
            done(self.failed)

    def finish(self) -> None:
        """Write and sync all that is staged, on this thread. Blocks; the end of a store.

        Raises what the log raises.
        """
        self._closing = True
        self._worker.close()
        waiters: list[Done] = []
        if self._busy:
            if self._flying_error is not None:
                self.fail(self._flying_error)
            else:
                waiters = self._land()
        try:
            while self.failed is None and (
                self.staged or self.staged_ceiling > self.ceiling or self._log_dirty
            ):
                self._job(self._cut(), sync=True)()
                self._land()
        except BaseException as error:
            self.fail(error)
            raise
        waiters += self._waiting
        self._waiting = []
        for done in waiters:
            done(self.failed)

    def halt(self) -> None:
        """Begin nothing more, and wait for the job that runs. For tests that crash a store."""
        self._closing = True
        self._worker.close()
