"""Open a data directory: everything that happens before a store serves. Blocks.

Order: lock, identity, base store, log. Nothing is written before the checks that may refuse the
directory, except the lock file; and an error gives everything back that was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kvstore import errors
from kvstore.ports import Files
from kvstore.storage import identity as identities
from kvstore.storage import promises, recovery, segment, wal
from kvstore.storage.engine import Engine, Mark
from kvstore.storage.group import Start
from kvstore.storage.identity import Identity
from kvstore.storage.memtable import Memtable
from kvstore.storage.options import StoreOptions
from kvstore.storage.recovery import Owner, Recovered
from kvstore.storage.segment import Batch
from kvstore.types import Kind


@dataclass(slots=True)
class Opened:
    """A directory that is ours, with its log recovered and a new segment begun."""

    release: Callable[[], None]
    owner: bytes
    log: wal.Log
    table: Memtable
    recovered: Recovered
    start: Start
    promises: dict[bytes, int]
    """Live ones, by storage key."""


def open_directory(
    *, files: Files, engine: Engine, directory: str, identity: Identity, options: StoreOptions
) -> Opened:
    """Raises DataDirInUse, DataDirForeign, DataDirFormat, DataDirUnusable, CorruptLog."""
    release = identities.lock(files, directory)
    try:
        with identities.usable(directory):
            return _open_locked(files, engine, directory, identity, options, release)
    except BaseException:
        engine.close()
        release()
        raise


def _open_locked(
    files: Files,
    engine: Engine,
    directory: str,
    identity: Identity,
    options: StoreOptions,
    release: Callable[[], None],
) -> Opened:
    ours = identities.check(files, directory, identity)
    cluster = segment.cluster_fingerprint(ours.cluster_id)
    owner = cluster + ours.node.to_bytes(2, "big")
    logs = f"{directory}/{identities.WAL_DIR}"
    files.make_dir(logs)
    base = f"{directory}/{identities.BASE_DIR}"
    files.make_dir(base)
    files.sync_dir(directory)
    if not engine.outlives_process and files.list_dir(base):
        # It would delete the log on the word of a base store that forgets.
        reason = "it holds a durable store, which `engine = memory` would lose; set `engine = lmdb`"
        raise errors.DataDirUnusable(path=directory, reason=reason)
    engine.open()
    # Its file may be new; segments will be deleted on its word.
    files.sync_dir(base)
    mark = engine.mark()
    if mark.owner not in (b"", owner):
        raise errors.DataDirForeign(path=base, expected=str(ours), found=f"owner {mark.owner.hex()}")
    if not engine.outlives_process:
        mark = recovery.first_mark(files, logs)
    salted = Owner(cluster, ours.node, bytes.fromhex(ours.secret))
    replay = _Replay(mark)
    recovered = recovery.recover(files, logs, owner=salted, mark=mark, replay=replay.take)
    wal.sweep(files, logs)
    log = wal.Log(
        files=files, directory=logs, owner=salted, segment_bytes=options.segment_bytes, recovered=recovered
    )
    log.begin()()
    log.landed()
    wal.remove_all(files, logs, recovered.needless)
    covered = log.release(mark.position)
    if covered is not None:
        covered()
    if mark.segment == 0:
        # From now on a missing log is a loss, not a new store.
        engine.begin()
        engine.seal(Mark(segment=log.number, owner=owner))()
        engine.adopt()
    start = replay.start()
    if not engine.outlives_process:
        start = replay.recounted(start)
    live = promises.load(engine, replay.table)
    return Opened(release, owner, log, replay.table, recovered, start, live)


@dataclass(slots=True)
class _Replay:
    """Collects what recovery replays."""

    mark: Mark
    table: Memtable = field(default_factory=Memtable)
    last: Batch | None = None
    ceiling: int = 0
    highest: bytes = bytes(8)

    def take(self, _sequence: int, batch: Batch) -> None:
        """One record of the log. Records were merged before they were logged, so the last one wins."""
        self.last = batch
        self.ceiling = max(self.ceiling, batch.ceiling)
        if batch.entries:
            self.highest = max(self.highest, *(record[:8] for _, record in batch.entries))
            written = sum(len(skey) + len(record) for skey, record in batch.entries)
            self.table.absorb(dict(batch.entries), written)

    def start(self) -> Start:
        """The numbers to go on with."""
        mark, last = self.mark, self.last
        return Start(
            ceiling=max(mark.ceiling, self.ceiling),
            highest_version=max(mark.highest_version, int.from_bytes(self.highest, "big")),
            keys=last.keys if last is not None else mark.keys,
            tombstones=last.tombstones if last is not None else mark.tombstones,
        )

    def recounted(self, start: Start) -> Start:
        """Counts of what was replayed, for a base store that lost the rest."""
        kinds = [
            record[16]
            for prefix, shard in self.table.shards.items()
            if prefix < promises.FIRST
            for record in shard.values()
        ]
        dead = kinds.count(Kind.TOMBSTONE)
        return replace(start, keys=len(kinds) - dead, tombstones=dead)
