"""The durable records: memtable, frozen memtable, base store; and how they move down.

Rules kept here:
- a newer table hides an older one, and both hide the base store;
- at most one table is frozen; while it moves, the next may grow to a few times its size, then
  writes wait, so memory is bounded;
- the mark that goes with a table names the last record of the log whose contents it holds, not one
  that is still in flight;
- segments go once everything in them is durable in the base store.
"""

from __future__ import annotations

from kvstore import errors
from kvstore.ports import Worker
from kvstore.storage.engine import Engine, Full, Mark
from kvstore.storage.flush import Flush
from kvstore.storage.group import Group
from kvstore.storage.memtable import Memtable
from kvstore.storage.paging import Page, merge_pages
from kvstore.storage.reserve import Reserve
from kvstore.storage.wal import Log

STALL_TABLES = 4
"""Tables' worth of memory, frozen one included, at which writes wait for the flush."""
DISSOLVE_RECORDS = 2_048
"""Freed in one step, a quarter of a millisecond."""


def _nothing() -> None:
    """The job between two steps: it lets the loop turn."""


class Tables:
    """What `get` and `scan` see. All on the loop, but for `finish` and `close`."""

    def __init__(
        self,
        *,
        engine: Engine,
        table: Memtable,
        log: Log,
        flusher: Worker,
        reserve: Reserve,
        table_bytes: int,
        owner: bytes,
    ) -> None:
        self._engine = engine
        self._log = log
        self._flusher = flusher
        self._reserve = reserve
        self._table_bytes = table_bytes
        self._owner = owner
        self._group: Group | None = None
        self._flush: Flush | None = None
        self._stopped = False
        self._awaits_sync = False
        """The flush of the frozen table begins when the log is synced up to its mark."""
        self._due_after = b""
        """Expiry keys of the base store up to here were taken since the last flush."""
        self.table = table
        self.frozen: Memtable | None = None

    def start(self, group: Group) -> None:
        """Begin to work with the group commit that fills the tables."""
        self._group = group
        self._freeze_if_full()

    # --- reading ------------------------------------------------------------------------

    def older(self, skey: bytes) -> bytes | None:
        """The record under a key that the memtable does not have. Raises DamagedRecord."""
        if self.frozen is not None:
            record = self.frozen.get(skey)
            if record is not None:
                return record
        return self._engine.get(skey)

    def scan(self, start: bytes, stop: bytes, *, limit: int, bytes_max: int) -> Page:
        """One page of durable records; see `Store.scan`."""
        sources = [self._engine.scan(start, stop, limit=limit, bytes_max=bytes_max)]
        if self.frozen is not None:
            sources.append(self.frozen.scan(start, stop, limit=limit, bytes_max=bytes_max))
        sources.append(self.table.scan(start, stop, limit=limit, bytes_max=bytes_max))
        return merge_pages(sources, limit=limit, bytes_max=bytes_max)

    def take_due(self, now_ms: int, limit: int) -> tuple[list[bytes], list[bytes]]:
        """Up to `limit` expiry keys that are due: of memory, and of the base store's index.

        Each is given once in this process's life, or so.
        """
        based: list[bytes] = []
        due = self.table.pop_due(now_ms, limit)
        if self.frozen is not None:
            due += self.frozen.pop_due(now_ms, limit - len(due))
        if len(due) < limit:
            based = self._engine.due(self._due_after, now_ms, limit - len(due))
            if based:
                # The next flush takes them out of the index; until then they must not be met again.
                self._due_after = based[-1]
        return due, based

    def first_due(self) -> bytes | None:
        """The first expiry key that is left."""
        heads = [table.due[0] for table in (self.table, self.frozen) if table is not None and table.due]
        based = self._engine.first_due(self._due_after)
        if based is not None:
            heads.append(based)
        return min(heads, default=None)

    def expiring(self) -> int:
        """Expiry keys held, obsolete ones included."""
        frozen = len(self.frozen.due) if self.frozen is not None else 0
        return self._engine.expiring() + len(self.table.due) + frozen

    def memory_bytes(self) -> int:
        """Written bytes that are not in the base store."""
        return self.table.bytes + (self.frozen.bytes if self.frozen is not None else 0)

    # --- moving down --------------------------------------------------------------------

    def absorb(self, batch: dict[bytes, bytes], written: int, retired: list[bytes]) -> None:
        """Show a durable batch to readers."""
        self.table.absorb(batch, written)
        self.table.retired += retired
        if not self._stopped:
            self._freeze_if_full()
            if not self._reserve.full:
                self._log.keep_spare(self._flusher, self._reserve.ran_out)

    def may_write(self) -> bool:
        """Whether memory has room for another batch. A flush that waits for a sync needs one to begin."""
        return (
            self.frozen is None or self._awaits_sync or self.memory_bytes() < STALL_TABLES * self._table_bytes
        )

    def tick(self) -> None:
        """Try again what a full disk held up."""
        if not self._reserve.full:
            self._log.keep_spare(self._flusher, self._reserve.ran_out)
            if self._flush is not None:
                self._flush.retry()

    def _freeze_if_full(self) -> None:
        if self.frozen is not None or self.table.bytes < self._table_bytes:
            return
        group, mark = self._group, self._mark()
        assert group is not None
        self.frozen, self.table = self.table, Memtable()
        flush = self._flush = Flush(
            table=self.frozen,
            mark=mark,
            engine=self._engine,
            worker=self._flusher,
            holder=self,
            is_late=lambda: self.table.bytes >= self._table_bytes,
        )
        if self._log.synced >= mark.position:
            flush.start()
            return

        def synced(error: BaseException | None) -> None:
            self._awaits_sync = False
            if error is None:
                flush.start()

        self._awaits_sync = True
        group.commit(synced, sync=True)

    def _mark(self) -> Mark:
        group = self._group
        assert group is not None
        return Mark(
            position=group.landed,
            segment=self._log.standing,
            highest_version=int.from_bytes(group.highest, "big"),
            ceiling=group.ceiling,
            keys=group.landed_counts[0],
            tombstones=group.landed_counts[1],
            owner=self._owner,
        )

    def on_flushed(self, mark: Mark) -> None:
        """The frozen table is in the base store, durably."""
        assert self._group is not None
        if self.frozen is not None:
            self._dissolve(self.frozen)
        self.frozen, self._flush = None, None
        # What was taken meanwhile is met once more and found done; what the flush brought is met.
        self._due_after = b""
        job = self._log.release(mark.position)
        if job is not None:
            self._flusher.submit(job, self._released)
        self._freeze_if_full()
        self._group.resume()

    def _dissolve(self, table: Memtable) -> None:
        """Free a table's memory a step a turn of the loop."""

        def step(_none: None, _error: BaseException | None) -> None:
            if table.dissolve(DISSOLVE_RECORDS) and not self._stopped:
                self._flusher.submit(_nothing, step)

        self._flusher.submit(_nothing, step)

    def _released(self, _none: None, error: BaseException | None) -> None:
        if error is not None:
            self.on_flush_failure(error)

    def on_flush_stuck(self) -> None:
        """The disk is full; `tick` tries again when there is space."""
        self._reserve.ran_out()

    def on_flush_failure(self, error: BaseException) -> None:
        """The base store cannot be written any more: the store takes nothing more."""
        assert self._group is not None
        self._group.fail(errors.Crashed(reason=f"the base store cannot be written: {error}"))

    # --- the end ------------------------------------------------------------------------

    def halt(self) -> None:
        """Move nothing more by itself."""
        self._stopped = True
        if self._flush is not None:
            self._flush.stop()

    def finish(self) -> None:
        """Move everything into the base store on this thread, after `halt` and the last group. Blocks.

        A full disk leaves the rest in the log, where the next start finds it.
        """
        try:
            if self._flush is not None:
                self._flush.finish()
            mark = self._mark()
            last = Flush(table=self.table, mark=mark, engine=self._engine, worker=self._flusher, holder=self)
            last.finish()
        except Full:
            self._engine.abort()
            return
        job = self._log.release(mark.position)
        if job is not None:
            job()
