"""Move a frozen memtable into the base store without anybody noticing.

The table goes in key order and in slices. A slice is put together on the loop in steps of a fraction of
a millisecond, one a loop turn, and made durable by the flush worker.

Why not all of it in the thread: LMDB's binding gives the interpreter lock back for every record and then
waits for it again. Next to a loop that is busy in Python this comes to 70 to 2,000 records a second
(measured; 3 million without the loop's company), so the flush would never keep up with
the writes. One step on the loop costs what the records cost and nothing else. The blocking part,
writing and syncing the pages, runs in C without the lock.

Rules kept here:
- the log is synced up to the table's last record before the first slice, so the base store never knows
  what the log could still lose;
- slices without the mark may become durable at any time: replaying the log from the old mark
  over them gives the same state, because the log has the same records and newer ones;
- the mark goes in with the last slice; segments are deleted only after its job has ended well;
- a full disk makes it wait and try again; any other error is final.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from kvstore.ports import Worker
from kvstore.storage import promises
from kvstore.storage.engine import Engine, Full, Grow, Mark
from kvstore.storage.memtable import Memtable

STEP_RECORDS = 64
STEP_BYTES = 256 << 10
"""One step on the loop: some 0.1 ms, or one large value; a small part of a turn that is full of requests."""
HURRIED = 8
"""Steps in one, when the next table is full before this one has moved."""
SLICE_PAGES = 512
SLICE_BYTES = 2 << 20
"""One transaction. It bounds the pages the engine keeps in memory until they are written, and, what counts
more, how many of them one sync writes while the log waits for the same disk. Not smaller either: the log
waits for each of these syncs, and the pages above the leaves are written anew with each."""
PAGE_RECORDS_MAX = 16
"""Records of one table that are taken to share a page of the base store, at most."""

_Chunk = tuple[list[bytes], list[tuple[bytes, bytes]]]
"""What one step does: expiry keys to retire, records to put."""


class Flushed(Protocol):
    """Who wants to know how it ended."""

    def on_flushed(self, mark: Mark) -> None:
        """The table is in the base store, durably."""
        ...

    def on_flush_stuck(self) -> None:
        """The disk is full; call `Flush.retry` when there may be space."""
        ...

    def on_flush_failure(self, error: BaseException) -> None:
        """The base store cannot be written any more."""
        ...


def _nothing() -> None:
    """The job between two steps: it lets the loop turn."""


class Flush:
    """One table on its way into the base store."""

    def __init__(
        self,
        *,
        table: Memtable,
        mark: Mark,
        engine: Engine,
        worker: Worker,
        holder: Flushed,
        is_late: Callable[[], bool] = bool,
    ) -> None:
        """`is_late` tells whether the next table is full already."""
        self._table = table
        self._mark = mark
        self._engine = engine
        self._worker = worker
        self._holder = holder
        self._is_late = is_late
        self._chunks = self._cut()
        self._slice: list[_Chunk] = []
        """What the open slice was given, to give it again if the slice must be repeated."""
        self._slice_bytes = 0
        self._slice_pages = 0.0
        self._page_records = 1.0
        self._open = False
        self._stuck = False
        self._stopped = False

    def start(self) -> None:
        """Begin, with the next turn of the loop."""
        if not self._stopped:
            # Keys are spread evenly: a table with more records than there are leaves puts several into each.
            share = self._table.count() / max(self._engine.leaves(), 1)
            self._page_records = min(max(share, 1.0), float(PAGE_RECORDS_MAX))
            self._worker.submit(_nothing, self._turn)

    def retry(self) -> None:
        """There may be space again."""
        if self._stuck:
            self._stuck = False
            self._guard(self._repeat_slice)

    def stop(self) -> None:
        """Do nothing more by itself; `finish` or nothing follows."""
        self._stopped = True

    def finish(self) -> None:
        """Do the rest on this thread, after `stop` and after the worker was closed. Blocks.

        Raises what the engine raises.
        """
        while True:
            self._engine.abort()
            # From the beginning: which slices became durable does not matter, they may be put again.
            self._chunks = self._cut()
            self._forget_slice()
            try:
                self._finish_from_here()
            except Grow:
                self._engine.abort()
                self._engine.grow()
            else:
                return

    def _finish_from_here(self) -> None:
        more = True
        while more:
            while more and not self._slice_is_full():
                more = self._add_chunk()
            self._engine.seal(None if more else self._mark)()
            self._adopt()

    # --- steps ---------------------------------------------------------------------------

    def _turn(self, _result: None, error: BaseException | None) -> None:
        assert error is None
        self._guard(self._step)

    def _guard(self, step: Callable[[], None]) -> None:
        """Run a step; sort its errors."""
        if self._stopped:
            return
        try:
            step()
        except Grow:
            self._engine.abort()
            self._engine.grow()
            self._guard(self._repeat_slice)
        except Full:
            self._hold()
        except Exception as error:  # noqa: BLE001  whatever it is, the base store is not to be trusted
            self._engine.abort()
            self._stopped = True
            self._holder.on_flush_failure(error)

    def _step(self) -> None:
        more = True
        for _ in range(HURRIED if self._is_late() else 1):
            more = self._add_chunk()
            if not more or self._slice_is_full():
                break
        if more and not self._slice_is_full():
            self._worker.submit(_nothing, self._turn)
            return
        job = self._engine.seal(None if more else self._mark)
        self._worker.submit(job, lambda _none, error: self._sealed(error, is_last=not more))

    def _sealed(self, error: BaseException | None, *, is_last: bool) -> None:
        if self._stopped:
            return
        if error is not None:
            self._guard(lambda: _raise(error))
            return
        self._adopt()
        if is_last:
            self._holder.on_flushed(self._mark)
        else:
            self._worker.submit(_nothing, self._turn)

    def _add_chunk(self) -> bool:
        """Put the next chunk into the slice, beginning one if needed; False when there is none left."""
        if not self._open:
            self._engine.begin()
            self._open = True
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._slice.append(chunk)
        self._slice_bytes += sum(len(record) for _, record in chunk[1])
        self._slice_pages += len(chunk[0]) + len(chunk[1]) / self._page_records
        self._give(chunk)
        return True

    def _cut(self) -> Iterator[_Chunk]:
        # Retired first: a key that was retired and then written with the same expiry stays.
        retired = self._table.retired
        for at in range(0, len(retired), STEP_RECORDS):
            yield retired[at : at + STEP_RECORDS], []
        for pairs in self._table.in_order(STEP_RECORDS, STEP_BYTES):
            yield [], pairs

    def _give(self, chunk: _Chunk) -> None:
        retired, pairs = chunk
        if retired:
            self._engine.retire(retired)
        if pairs and pairs[-1][0] >= promises.FIRST:
            self._engine.retire((), [key for key, record in pairs if promises.is_over(key, record)])
            pairs = [pair for pair in pairs if not promises.is_over(*pair)]
        if pairs:
            self._engine.put(pairs)

    def _slice_is_full(self) -> bool:
        return self._slice_pages >= SLICE_PAGES or self._slice_bytes >= SLICE_BYTES

    def _adopt(self) -> None:
        self._engine.adopt()
        self._forget_slice()

    def _forget_slice(self) -> None:
        self._slice, self._slice_bytes, self._slice_pages, self._open = [], 0, 0.0, False

    def _hold(self) -> None:
        self._engine.abort()
        self._stuck = True
        self._holder.on_flush_stuck()

    def _repeat_slice(self) -> None:
        """After `abort`: begin the same slice again, and go on."""
        self._restore()
        self._worker.submit(_nothing, self._turn)

    def _restore(self) -> None:
        self._engine.begin()
        self._open = True
        for chunk in self._slice:
            self._give(chunk)


def _raise(error: BaseException) -> None:
    raise error
