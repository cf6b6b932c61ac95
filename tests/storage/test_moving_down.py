"""The way from the memtable to the base store, and all that can come in between."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence

import pytest
from store_rig import DIR, NOW, StoreRig, contents, skey, value

from kvstore import errors
from kvstore.storage import flush, recovery, tables
from kvstore.storage.engine import Full, Grow, Mark
from kvstore.storage.memory_engine import Backing, MemoryEngine
from kvstore.storage.store import Store
from kvstore.types import Applied


@pytest.fixture(scope="module", autouse=True)
def _patience() -> Iterator[None]:
    """Let tests hold a frozen table as long as they like."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "STALL_TABLES", 1 << 30)
        yield


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush, "STEP_RECORDS", 4)
    monkeypatch.setattr(flush, "SLICE_PAGES", 12)
    monkeypatch.setattr(flush, "PAGE_RECORDS_MAX", 1)


def fill(rig: StoreRig, store: Store, count: int, *, start: int = 0) -> dict[bytes, bytes]:
    written = {
        skey(f"k{n:04}", partition=n % 5): value(n + 1, b"x" * 60) for n in range(start, start + count)
    }
    for key, record in written.items():
        store.apply(key, record, NOW)
    rig.commit(store)
    return written


def test_a_table_that_moved_down_begins_no_second_group_beside_the_one_in_flight() -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=5_000, segment_bytes=1 << 20)
    written = fill(rig, store, 100)
    answers: list[BaseException | None] = []
    for number in (1, 2):
        late = skey(f"late{number}")
        written[late] = value(1_000 + number)
        store.apply(late, written[late], NOW)
        store.commit(answers.append)
    rig.flusher.run()
    assert len(rig.backing.records) >= 90, "it moved down"
    assert rig.worker.step()
    assert answers == [None], "each group has its own write"
    rig.worker.run()
    assert answers == [None, None]
    assert contents(store) == written


def test_segments_of_before_a_crash_go_when_their_records_have_moved_down() -> None:
    rig = StoreRig()
    store = rig.open()
    written = fill(rig, store, 60) | fill(rig, store, 60, start=60)
    store.abandon()
    later = rig.crash()
    before = recovery.segment_numbers(later.disk, f"{DIR}/wal")
    assert before
    again = later.open(memtable_bytes=5_000)
    for start in range(120, 240, 20):
        written |= fill(later, again, 20, start=start)
        later.flusher.run()
    assert contents(again) == written
    assert set(before).isdisjoint(recovery.segment_numbers(later.disk, f"{DIR}/wal"))


def test_a_full_memtable_moves_down_and_its_segments_go() -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=5_000)
    written: dict[bytes, bytes] = {}
    for start in range(0, 400, 20):
        written |= fill(rig, store, 20, start=start)
        rig.flusher.run()
        assert contents(store) == written
    assert len(rig.backing.records) >= 300
    assert store.stats().segments <= 4
    assert len(recovery.segment_numbers(rig.disk, f"{DIR}/wal")) == store.stats().segments
    store.abandon()
    again = rig.crash().open()
    assert contents(again) == written
    assert again.stats().recovered_records <= 100


@pytest.mark.usefixtures("small_slices")
def test_segments_are_deleted_only_after_the_base_store_has_their_records() -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=5_000)
    written = fill(rig, store, 30) | fill(rig, store, 30, start=30)
    removed = 0
    while rig.flusher.step():
        gone = sum(what == "remove" for what, _ in rig.disk.journal)
        if gone > removed:
            assert rig.backing.mark.position > 0
            removed = gone
        found = contents(StoreRig(rig.disk.crash(), _copied(rig.backing)).open())
        assert written.items() <= found.items()
    assert removed > 0


def _copied(backing: Backing) -> Backing:
    return Backing(dict(backing.records), list(backing.keys), list(backing.expiring), backing.mark)


@pytest.mark.parametrize(
    ("leaves", "slices"),
    [(0, 2), (10, 2), (100, 4), (400, 16), (10_000, 16)],
    ids=["new base", "many records a leaf", "four a leaf", "one a leaf", "far apart"],
)
def test_a_slice_is_bounded_by_the_pages_it_changes(
    monkeypatch: pytest.MonkeyPatch, leaves: int, slices: int
) -> None:
    monkeypatch.setattr(flush, "STEP_RECORDS", 5)
    monkeypatch.setattr(flush, "SLICE_PAGES", 25)
    monkeypatch.setattr(flush, "PAGE_RECORDS_MAX", 8)
    monkeypatch.setattr(MemoryEngine, "leaves", lambda _engine: leaves)
    sealed: list[Mark | None] = []
    honest = MemoryEngine.seal

    def seal(engine: MemoryEngine, mark: Mark | None) -> Callable[[], None]:
        sealed.append(mark)
        return honest(engine, mark)

    monkeypatch.setattr(MemoryEngine, "seal", seal)
    rig = StoreRig()
    store = rig.open(memtable_bytes=20_000, segment_bytes=1 << 20)
    sealed.clear()
    for n in range(400):
        store.apply(skey(f"k{n:04}"), value(n + 1, b"x" * 60), NOW)
    rig.commit(store)
    rig.settle()
    assert len(rig.backing.records) == 400
    assert [mark is None for mark in sealed] == [True] * slices + [False]


def test_a_flush_hurries_when_the_next_table_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush, "STEP_RECORDS", 4)
    steps: list[int] = []
    for more in (0, 400):
        rig = StoreRig()
        store = rig.open(memtable_bytes=20_000, segment_bytes=1 << 20)
        fill(rig, store, 400)
        fill(rig, store, more, start=400)
        before = len(rig.backing.records)
        taken = 0
        while len(rig.backing.records) == before and rig.flusher.step():
            taken += 1
        steps.append(taken)
    assert steps[1] < steps[0] / 4


def test_a_table_that_has_moved_is_freed_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "DISSOLVE_RECORDS", 10)
    rig = StoreRig()
    store = rig.open(memtable_bytes=3_000)
    fill(rig, store, 50)
    frozen = store._tables.frozen
    assert frozen is not None
    held = set()
    while rig.flusher.step():
        held.add(sum(map(len, frozen.shards.values())))
    assert held == {50, 40, 30, 20, 10, 0}
    assert len(contents(store)) == 50


def test_a_mark_never_covers_what_is_still_in_flight() -> None:
    """The flush of one table ends while a batch is being written, and the next one is frozen."""
    rig = StoreRig()
    store = rig.open(memtable_bytes=3_000)
    fill(rig, store, 30)
    fill(rig, store, 40, start=100)
    store.apply(skey("late"), value(900), NOW)
    store.commit(lambda _error: None)
    rig.flusher.run()
    survivor = StoreRig(rig.disk, _copied(rig.backing))
    store.abandon()
    assert survivor.open().get(skey("late")) == value(900)


@pytest.mark.parametrize("mode", ["os", "interval:60000"])
def test_the_base_store_never_knows_what_the_log_could_lose(mode: str) -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=3_000, sync=mode, segment_bytes=1 << 20)
    fill(rig, store, 5)
    written = fill(rig, store, 60, start=5)
    rig.settle()
    assert rig.backing.mark.position > 0
    survivor = StoreRig(rig.disk.crash(), _copied(rig.backing)).open()
    assert written.items() <= contents(survivor).items()


def test_writes_wait_when_the_flush_falls_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "STALL_TABLES", 4)
    rig = StoreRig()
    store = rig.open(memtable_bytes=3_000, segment_bytes=1 << 20)
    answers: list[BaseException | None] = []
    for start in range(0, 400, 40):
        for n in range(start, start + 40):
            store.apply(skey(f"k{n:04}"), value(n + 1, b"x" * 60), NOW)
        store.commit(answers.append)
        rig.worker.run()
    assert 2 <= len(answers) < 10
    assert store.stats().memtable_bytes < 6 * 3_000
    rig.settle()
    assert answers == [None] * 10
    assert len(contents(store)) == 400


class _Troubled(MemoryEngine):
    """An engine that raises what the test puts into it, once each."""

    def __init__(self, backing: Backing) -> None:
        super().__init__(backing)
        self.trouble: dict[str, list[Exception]] = {}
        self.grown = 0

    def _meet(self, where: str) -> None:
        if self.trouble.get(where):
            raise self.trouble[where].pop(0)

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self._meet("put")
        super().put(pairs)

    def seal(self, mark: Mark | None) -> Callable[[], None]:
        job = super().seal(mark)

        def troubled() -> None:
            self._meet("job")
            job()

        return troubled

    def grow(self) -> None:
        self.grown += 1


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("where", ["put", "job"])
@pytest.mark.parametrize("closing", [False, True])
def test_an_engine_that_must_grow_loses_nothing(where: str, closing: bool) -> None:
    rig = StoreRig()
    engine = _Troubled(rig.backing)
    store = rig.open(engine=engine, memtable_bytes=3_000)
    rig.put(store, skey("gone"), value(1, expires_ms=NOW + 5))
    written = fill(rig, store, 50, start=10)
    engine.trouble[where] = [Grow(), Grow()]
    if closing:
        store.close()
    else:
        rig.settle()
    assert engine.grown == 2
    assert written.items() <= rig.backing.records.items()
    assert rig.backing.mark.position == 3 - (not closing) or closing
    assert rig.failures == []


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("where", ["put", "job"])
def test_a_flush_that_meets_a_full_disk_waits_and_goes_on(where: str) -> None:
    rig = StoreRig()
    engine = _Troubled(rig.backing)
    store = rig.open(engine=engine, memtable_bytes=3_000)
    written = fill(rig, store, 50)
    engine.trouble[where] = [Full()]
    rig.settle()
    assert store.stats().full
    assert rig.failures == []
    assert contents(store) == written
    assert rig.backing.mark.position == 0
    for later in (1_500, 3_000):
        store.tick(NOW + later)
        rig.settle()
    assert not store.stats().full
    assert rig.backing.records == written
    assert rig.backing.mark.position > 0


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("where", ["put", "job"])
def test_any_other_error_of_the_base_store_is_final(where: str) -> None:
    rig = StoreRig()
    engine = _Troubled(rig.backing)
    store = rig.open(engine=engine, memtable_bytes=3_000)
    fill(rig, store, 50)
    engine.trouble[where] = [OSError(errno.EIO, "Input/output error")]
    rig.settle()
    assert [type(failure) for failure in rig.failures] == [errors.Crashed]
    assert store.apply(skey("k"), value(999), NOW) == Applied.FAILED
    assert rig.backing.mark.position == 0
    removals = [path for what, path in rig.disk.journal if what == "remove"]
    assert removals == []
    store.close()
    assert len(contents(rig.open())) == 50


def test_a_segment_that_cannot_be_deleted_is_final() -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=3_000)
    fill(rig, store, 30)
    fill(rig, store, 30, start=30)
    rig.disk.fail[("remove", ".wal")] = PermissionError(errno.EACCES, "Permission denied")
    rig.settle()
    assert len(rig.failures) == 1
    assert "Permission denied" in str(rig.failures[0])


@pytest.mark.usefixtures("small_slices")
def test_close_in_the_middle_of_a_flush_finishes_it() -> None:
    for steps in range(12):
        rig = StoreRig()
        store = rig.open(memtable_bytes=3_000)
        written = fill(rig, store, 50) | fill(rig, store, 10, start=50)
        for _ in range(steps):
            rig.flusher.step()
        store.close()
        assert rig.backing.records == written
        assert rig.disk.open_handles == 0
        again = rig.open()
        assert again.stats().recovered_records == 0
        assert again.stats().segments == 1
        again.abandon()


def test_close_on_a_full_disk_leaves_the_rest_in_the_log() -> None:
    rig = StoreRig()
    engine = _Troubled(rig.backing)
    store = rig.open(engine=engine)
    written = fill(rig, store, 50)
    engine.trouble["job"] = [Full()]
    store.close()
    assert rig.backing.records == {}
    assert contents(rig.open()) == written


def test_a_cache_restarts_with_what_the_log_still_has() -> None:
    rig = StoreRig()
    store = rig.open(engine=MemoryEngine(), memtable_bytes=3_000)
    written: dict[bytes, bytes] = {}
    for start in range(0, 200, 20):
        written |= fill(rig, store, 20, start=start)
        rig.settle()
    store.abandon()
    again = rig.open(engine=MemoryEngine())
    found = contents(again)
    assert 0 < len(found) < 200
    assert found.items() <= written.items()
    assert again.stats().keys == len(found)
    assert again.highest_version == 200
    again.abandon()
    StoreRig().open(engine=MemoryEngine()).close()
