"""One node's store: a log, a memtable, and a base store in key order.

    apply -> staged -> in flight -> memtable -> frozen -> base store
                    log         visible from here on

Rules kept here:
- a record is visible to `get` and `scan` only once its log batch is durable, so nobody reads what a
  crash undoes; it is merged, though, against everything that is on its way;
- a record replaces another only if it is newer by `core.record`, so records may arrive in any order
  and any number of times;
- an expired record is replaced by a tombstone of the same version and stays
  (docs/decisions/0001-expired-records-become-tombstones.md);
- client writes stop before the disk is full; deletes, expiry and repair do not;
- once the log or the base store failed, the store takes nothing more and says so to everybody.

All methods run on the loop except `open`, `close` and `abandon`, which block.
"""

from __future__ import annotations

from collections.abc import Callable

from kvstore import errors
from kvstore.core import record as records
from kvstore.core.record import Order
from kvstore.ports import Clock, Files, Worker
from kvstore.storage import opening
from kvstore.storage.engine import Engine, expiry_key, split_expiry_key
from kvstore.storage.group import Done, Group
from kvstore.storage.identity import Identity
from kvstore.storage.memtable import PREFIX_BYTES
from kvstore.storage.options import StoreOptions
from kvstore.storage.promises import Promises
from kvstore.storage.reserve import Reserve
from kvstore.storage.stats import StoreStats
from kvstore.storage.tables import Tables
from kvstore.types import Applied, Kind

_APPLIED = int(Applied.APPLIED)
_REPLACED = int(Applied.REPLACED)
_SUPERSEDED = int(Applied.SUPERSEDED)
_DUPLICATE = int(Applied.DUPLICATE)
_DISK_FULL = int(Applied.DISK_FULL)
_FAILED = int(Applied.FAILED)
_NEEDS_REGISTER = int(Applied.NEEDS_REGISTER)
_TOMBSTONE = int(Kind.TOMBSTONE)
_ZERO8 = bytes(8)
_NONE: dict[bytes, bytes] = {}

OnFailure = Callable[[BaseException], None]


class Store:
    """Records by storage key. Build it with `open`."""

    def __init__(
        self,
        opened: opening.Opened,
        *,
        engine: Engine,
        worker: Worker,
        flusher: Worker,
        reserve: Reserve,
        options: StoreOptions,
        on_failure: OnFailure | None,
        clock: Clock | None,
    ) -> None:
        self._opened = opened
        self._engine = engine
        self._options = options
        self._on_failure = on_failure
        self._reserve = reserve
        self._flusher = flusher
        self._tables = Tables(
            engine=engine,
            table=opened.table,
            log=opened.log,
            flusher=flusher,
            reserve=reserve,
            table_bytes=options.memtable_bytes,
            owner=opened.owner,
        )
        self._group = Group(
            log=opened.log,
            worker=worker,
            holder=self._tables,
            durability=options.durability,
            interval_ms=options.sync_interval_ms,
            clock=clock,
            start=opened.start,
            on_failure=self._fail,
        )
        self.promises = Promises(opened.promises, group=self._group, reserve=reserve, get=self.get)
        """For the acceptor."""
        self._promised = opened.promises
        self.conflicts = 0
        """Records of equal version and different bytes that were met. Correct nodes make none."""
        self.failed: BaseException | None = None
        """Set once, when the log or the base store cannot be written any more."""

    @classmethod
    def open(
        cls,
        *,
        files: Files,
        worker: Worker,
        flusher: Worker,
        engine: Engine,
        directory: str,
        identity: Identity,
        options: StoreOptions,
        on_failure: OnFailure | None = None,
        clock: Clock | None = None,
    ) -> Store:
        """Lock the directory, recover, and return a store that serves. Blocks.

        `worker` writes the log, `flusher` does everything that may take long; both are closed with the
        store. `on_failure` is called once, on the loop, when the node must go down. `clock` only
        measures syncs. Raises DataDirInUse, DataDirForeign, DataDirFormat, DataDirUnusable, CorruptLog.
        """
        opened = opening.open_directory(
            files=files, engine=engine, directory=directory, identity=identity, options=options
        )
        reserve = Reserve(
            files=files,
            path=directory,
            worker=flusher,
            ratio=options.disk_reserve_ratio,
            bytes_max=options.disk_reserve_bytes_max,
            room=options.segment_bytes,
        )
        store = cls(
            opened,
            engine=engine,
            worker=worker,
            flusher=flusher,
            reserve=reserve,
            options=options,
            on_failure=on_failure,
            clock=clock,
        )
        store._tables.start(store._group)
        return store

    # --- reading ------------------------------------------------------------------------

    def get(self, skey: bytes) -> bytes | None:
        """The durable record, tombstones and expired ones as they are. Raises DamagedRecord."""
        tables = self._tables
        # Memtable.get, without the call.
        record = tables.table.shards.get(skey[:PREFIX_BYTES], _NONE).get(skey)
        return record if record is not None else tables.older(skey)

    def scan(
        self, start: bytes, stop: bytes, *, limit: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Durable records from `start` up to, not with, `stop`, in key order; True when there are more.

        Ends after `limit` records or with the one that reaches `bytes_max`; a page with more behind
        it is never empty. Raises DamagedRecord.
        """
        return self._tables.scan(start, stop, limit=limit, bytes_max=bytes_max)

    # --- writing ------------------------------------------------------------------------

    def apply(
        self, skey: bytes, record: bytes, now_ms: int, *, repair: bool = False, held: bytes | None = None
    ) -> int:
        """Stage a record if it is newer than what is held; returns an `Applied`.

        It is durable when a later `commit` says so. `repair` marks a copy that other replicas already
        hold: it is taken even when the disk is too full for clients. `held` saves a look for what is held,
        when it was looked up in this very turn. Raises DamagedRecord.
        """
        group = self._group
        if self.failed is not None:
            return _FAILED
        # No record is empty, so whatever is found first counts.
        old = held or group.staged.get(skey) or group.flying.get(skey) or self.get(skey)
        version = record[:8]
        # The first two conditions say for most records, without a call, that they are newer.
        if old is not None and (version <= old[:8] or (record[17] | old[17]) & records.SPECIAL):
            if not records.is_newer(record, old):
                return self._not_newer(record, old, repair=repair)
            if record[17] & records.FLAG_COUNTER:
                record = records.merged(record, old)
        if self._promised and self._is_promised_away(skey, record, repair=repair):
            return _NEEDS_REGISTER
        if self._reserve.full and record[16] != _TOMBSTONE and not repair:
            self._reserve.check(now_ms)
            return _DISK_FULL
        group.now_ms = now_ms
        self._stage(skey, record, old)
        if self._promised and record[17] & records.FLAG_STRONG:
            self.promises.kept_by(skey, record)
        if version > group.highest:  # noqa: PLR1730  half the price of max()
            group.highest = version
        if old is None or old[16] == _TOMBSTONE:
            return _APPLIED
        if old[:8] == version and records.compare(record, old) is Order.CONFLICT_WINS:
            self.conflicts += 1
        return _REPLACED if old[8:16] == _ZERO8 or old[8:16] > now_ms.to_bytes(8, "big") else _APPLIED

    def _is_promised_away(self, skey: bytes, record: bytes, *, repair: bool) -> bool:
        """Whether a live promise stands against a plain write."""
        return not repair and not record[17] & records.FLAG_STRONG and skey in self._promised

    def _not_newer(self, record: bytes, old: bytes, *, repair: bool) -> int:
        if not repair and old[17] & records.FLAG_STRONG and not record[17] & records.FLAG_STRONG:
            return _NEEDS_REGISTER
        match records.compare(record, old):
            case Order.SAME:
                return _DUPLICATE
            case Order.CONFLICT_LOSES:
                self.conflicts += 1
        return _SUPERSEDED

    def _stage(self, skey: bytes, record: bytes, old: bytes | None) -> None:
        """Put a record into the next batch, whatever is held; keeps the counts."""
        group = self._group
        group.staged[skey] = record
        group.staged_bytes += len(skey) + len(record)
        dies = record[16] == _TOMBSTONE
        if old is None:
            died = None
        else:
            died = old[16] == _TOMBSTONE
            if old[8:16] != _ZERO8 and not died and (dies or old[8:16] != record[8:16]):
                group.staged_retired.append(expiry_key(old[8:16], skey))
        if dies is not died:
            if died is None:
                group.tombstones += dies
                group.keys += not dies
            else:
                group.tombstones += 1 if dies else -1
                group.keys += -1 if dies else 1

    def stage_ceiling(self, version: int) -> None:
        """Put into the next batch that this node may have issued versions up to `version`."""
        self._group.staged_ceiling = max(self._group.staged_ceiling, version)

    def commit(self, done: Done, *, sync: bool = False) -> None:
        """Call `done(None)` once all that was applied before is as durable as the sync mode says.

        Or `done(Crashed)` when nobody can know. With `sync` it is synced in every mode. `done` is
        called on the loop, never from in here.
        """
        self._group.commit(done, sync=sync)

    @property
    def highest_version(self) -> int:
        """The highest version ever stored here."""
        return int.from_bytes(self._group.highest, "big")

    @property
    def ceiling(self) -> int:
        """The durable ceiling; see `stage_ceiling`."""
        return self._group.ceiling

    # --- in the background --------------------------------------------------------------

    def tick(self, now_ms: int, *, expire: bool = True) -> int:
        """Do a bounded piece of background work; several times a second. Returns how many records expired.

        `expire` False leaves expired records as they are: the caller does not trust its clock now.

        Mode `interval` syncs from here when nothing is written, so call it at least that often.
        """
        if self.failed is not None:
            return 0
        self._group.sync_if_due(now_ms)
        self._reserve.check(now_ms)
        self._tables.tick()
        reclaimed = 0
        if not expire:
            return 0
        due, based = self._tables.take_due(now_ms, self._options.expiry_keys_per_tick)
        for key in due:
            reclaimed += self._expire(key)
        for key in based:
            if self._expire(key):
                reclaimed += 1
            else:
                # Left behind by a crash, which forgets what was retired, or nothing to be done about it.
                self._group.staged_retired.append(key)
        if reclaimed:
            # Nobody waits for it; a failure reaches everybody through `on_failure`.
            self.commit(lambda _error: None)
        return reclaimed

    def _expire(self, key: bytes) -> bool:
        """Replace a record by its tombstone, if it is still the one that expires then, and whole."""
        expires, skey = split_expiry_key(key)
        try:
            old = self._group.staged.get(skey) or self._group.flying.get(skey) or self.get(skey)
        except errors.DamagedRecord:
            return False  # whoever asks for it is told; others are not disturbed
        if old is None or old[8:16] != expires or old[16] == _TOMBSTONE:
            return False
        self._stage(skey, records.reclaim(old), old)
        return True

    def due_ms(self) -> int | None:
        """The next instant known at which something may expire."""
        first = self._tables.first_due()
        return int.from_bytes(first[:8], "big") if first is not None else None

    def stats(self) -> StoreStats:
        """What there is to say."""
        group, log, reserve = self._group, self._opened.log, self._reserve
        return StoreStats(
            keys=group.keys,
            tombstones=group.tombstones,
            expiring=self._tables.expiring(),
            wal_bytes=log.size_bytes(),
            segments=log.segments,
            memtable_bytes=self._tables.memory_bytes(),
            base_bytes=self._engine.size_bytes(),
            batches=group.batches,
            fsyncs=group.fsyncs,
            last_fsync_ms=group.last_fsync_ms,
            recovered_records=self._opened.recovered.records,
            torn_tail=self._opened.recovered.torn,
            conflicts=self.conflicts,
            disk_free=reserve.free,
            disk_reserve=reserve.reserve,
            full=reserve.full,
            sync_mode=self._options.sync,
        )

    # --- the end ------------------------------------------------------------------------

    def _fail(self, error: errors.Crashed) -> None:
        self.failed = error
        self._tables.halt()
        if self._on_failure is not None:
            self._on_failure(error)

    def close(self) -> None:
        """Commit, move everything into the base store, and give the directory back. Blocks.

        Waiters are answered from in here. Closes both workers. Raises what the disk raises.
        """
        try:
            self._tables.halt()
            self._flusher.close()
            self._group.finish()
            if self.failed is None:
                self._tables.finish()
        finally:
            self._give_back()

    def abandon(self) -> None:
        """Give everything back as a crash would leave it: nothing is written. For tests."""
        self._tables.halt()
        self._flusher.close()
        self._group.halt()
        self._give_back()

    def _give_back(self) -> None:
        self._opened.log.close()
        self._engine.close()
        self._opened.release()
