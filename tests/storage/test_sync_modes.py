"""When the log is synced: always, within an interval, or when the system likes."""

from __future__ import annotations

import pytest
from crash_disk import HandWorker
from store_rig import ME, NOW, StoreRig, contents, skey, value

from kvstore.storage.memory_engine import MemoryEngine
from kvstore.storage.options import StoreOptions
from kvstore.storage.store import Store

Answers = list[BaseException | None]


def stage(store: Store, count: int, *, start: int = 1, size: int = 10) -> None:
    for version in range(start, start + count):
        store.apply(skey(f"k{version}"), value(version, b"x" * size), NOW)


def steps(rig: StoreRig, since: int) -> list[str]:
    return [what for what, path in rig.disk.journal[since:] if path.endswith(".wal")]


def test_mode_os_writes_and_does_not_sync() -> None:
    rig = StoreRig()
    store = rig.open(sync="os", segment_bytes=1 << 20)
    before = len(rig.disk.journal)
    stage(store, 3)
    rig.commit(store)
    assert steps(rig, before) == ["write"]
    store.tick(NOW + 100_000)
    rig.settle()
    assert steps(rig, before) == ["write"]
    assert contents(rig.crash().open()) == {}, "a power cut loses it, as the mode says"


@pytest.mark.parametrize("mode", ["os", "interval:50"])
def test_a_write_that_asks_for_a_sync_gets_one_in_every_mode(mode: str) -> None:
    rig = StoreRig()
    store = rig.open(sync=mode, segment_bytes=1 << 20)
    stage(store, 1)
    rig.commit(store)
    stage(store, 1, start=2)
    rig.commit(store)
    before = len(rig.disk.journal)
    rig.commit(store, sync=True)
    assert steps(rig, before) == ["sync"], "earlier bytes are synced too"
    rig.commit(store, sync=True)
    assert steps(rig, before) == ["sync"], "nothing is left to sync"
    stage(store, 1, start=5)
    rig.commit(store, sync=True)
    assert steps(rig, before) == ["sync", "write", "sync"]
    assert len(contents(rig.crash().open())) == 3


def test_mode_interval_syncs_at_least_that_often() -> None:
    rig = StoreRig()
    store = rig.open(sync="interval:50", segment_bytes=1 << 20)
    store.tick(NOW)
    rig.settle()
    store.apply(skey("a"), value(1), NOW + 1)
    rig.commit(store)
    before = len(rig.disk.journal)
    store.apply(skey("b"), value(2), NOW + 20)
    rig.commit(store)
    assert steps(rig, before) == ["write"]
    store.apply(skey("c"), value(3), NOW + 60)
    rig.commit(store)
    assert steps(rig, before) == ["write", "write", "sync"]
    store.apply(skey("d"), value(4), NOW + 70)
    rig.commit(store)
    store.tick(NOW + 80)
    rig.settle()
    assert steps(rig, before) == ["write", "write", "sync", "write"]
    store.tick(NOW + 111)
    rig.settle()
    assert steps(rig, before) == ["write", "write", "sync", "write", "sync"]
    store.tick(NOW + 500)
    rig.settle()
    assert len(steps(rig, before)) == 5, "nothing new, nothing to sync"


class _SteppedClock:
    def __init__(self) -> None:
        self.now = 0.0

    def wall_ms(self) -> int:
        return NOW

    def monotonic(self) -> float:
        self.now += 0.25
        return self.now


def test_a_clock_measures_the_sync() -> None:
    rig = StoreRig()
    rig.open().abandon()
    worker = HandWorker()
    store = Store.open(
        files=rig.disk,
        worker=worker,
        flusher=HandWorker(),
        engine=MemoryEngine(rig.backing),
        directory="/data",
        identity=ME,
        options=StoreOptions(),
        clock=_SteppedClock(),
    )
    assert store.stats().last_fsync_ms == 0
    stage(store, 1)
    store.commit(lambda _error: None)
    worker.run()
    assert store.stats().last_fsync_ms == 250


@pytest.mark.parametrize("written_before", [False, True])
def test_a_clock_that_is_set_back_does_not_put_off_the_sync(written_before: bool) -> None:
    rig = StoreRig()
    store = rig.open(sync="interval:100")
    store.tick(NOW)
    rig.put(store, skey("a"), value(1))
    store.apply(skey("x"), value(1), NOW + 200)
    rig.commit(store)
    back = NOW - 3_600_000
    if not written_before:
        store.tick(back)
        rig.settle()
    store.apply(skey("b"), value(2), NOW + 250 if written_before else back)
    rig.commit(store)
    for n in range(1, 5):
        store.tick(back + 100 * n)
        rig.settle()
    assert rig.crash().open().get(skey("b")) is not None


@pytest.mark.parametrize("mode", ["os", "interval:100"])
def test_a_flush_that_waits_for_a_sync_gets_it_although_memory_is_full(mode: str) -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=2_000, segment_bytes=1 << 20, sync=mode)
    store.tick(NOW)
    rig.put(store, skey("first"), value(1))
    stage(store, 10, size=1_000)
    rig.commit(store)
    answers: Answers = []
    store.apply(skey("later"), value(99), NOW)
    store.commit(answers.append)
    rig.settle()
    assert answers == [None]
    assert store.stats().memtable_bytes < 2_000, "it has moved down"
