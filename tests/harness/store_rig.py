"""A store with everything around it that a test wants to hold in its hand."""

from __future__ import annotations

from typing import Any

from crash_disk import CrashDisk, HandWorker

from kvstore.core import record as records
from kvstore.ports import Files
from kvstore.storage.engine import Engine
from kvstore.storage.identity import Identity
from kvstore.storage.memory_engine import Backing, MemoryEngine
from kvstore.storage.options import StoreOptions
from kvstore.storage.store import Store
from kvstore.types import Kind, NodeId, Version

ME = Identity("c0ffee" * 5 + "01", "ab" * 16, NodeId(3), "5e" * 16)
DIR = "/data"
WAL = f"{DIR}/wal"
NOW = 1_800_000_000_000


def value(version: int, payload: bytes = b"v", *, expires_ms: int = 0, flags: int = 0) -> bytes:
    """A record that holds a value."""
    return records.encode(Version(version), expires_ms, Kind.VALUE, payload, flags=flags)


def tombstone(version: int) -> bytes:
    """A record that says deleted."""
    return records.encode(Version(version), 0, Kind.TOMBSTONE, b"")


def skey(text: str, partition: int = 1) -> bytes:
    """A storage key."""
    return partition.to_bytes(2, "big") + text.encode()


class StoreRig:
    """Opens stores on one disk, one after the other."""

    def __init__(self, disk: Files | None = None, backing: Backing | None = None) -> None:
        self.disk: Any = disk if disk is not None else CrashDisk()
        self.backing = backing if backing is not None else Backing()
        self.worker = HandWorker()
        self.flusher = HandWorker()
        self.failures: list[BaseException] = []

    def open(
        self, *, identity: Identity = ME, engine: Engine | None = None, directory: str = DIR, **options: Any
    ) -> Store:
        """A store with small segments, unless the options say otherwise."""
        self.worker, self.flusher = HandWorker(), HandWorker()
        return Store.open(
            files=self.disk,
            worker=self.worker,
            flusher=self.flusher,
            engine=engine if engine is not None else MemoryEngine(self.backing),
            directory=directory,
            identity=identity,
            options=StoreOptions(**{"segment_bytes": 4_096, "memtable_bytes": 1 << 30} | options),
            on_failure=self.failures.append,
        )

    def commit(self, store: Store, *, sync: bool = False) -> None:
        """Commit and wait; an error is raised."""
        answers: list[BaseException | None] = []
        store.commit(answers.append, sync=sync)
        assert answers == [], "commit answered from inside the call"
        self.worker.run()
        assert len(answers) == 1
        if answers[0] is not None:
            raise answers[0]

    def put(self, store: Store, key: bytes, record: bytes) -> int:
        """Apply and commit one record."""
        applied = store.apply(key, record, NOW)
        self.commit(store)
        return applied

    def settle(self) -> None:
        """Run both workers until nothing is left."""
        while self.worker.step() or self.flusher.step():
            pass

    def crash(self) -> StoreRig:
        """The rig of the process after a power cut that lost everything unsynced."""
        return StoreRig(self.disk.crash(), self.backing)


def contents(store: Store) -> dict[bytes, bytes]:
    """Everything a scan finds."""
    page, more = store.scan(b"", b"\xff" * 3, limit=1 << 30, bytes_max=1 << 40)
    assert not more
    return dict(page)
