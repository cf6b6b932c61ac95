"""A store: merging, counting, scanning, expiry, the way down to the base store, the disk's reserve."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_rig import DIR, NOW, StoreRig, contents, skey, tombstone, value

from kvstore import errors
from kvstore.core import record as records
from kvstore.io.disk import SystemFiles
from kvstore.storage import flush, recovery, tables
from kvstore.storage.engine import Full, Grow, Mark
from kvstore.storage.lmdb_engine import LmdbEngine
from kvstore.storage.memory_engine import Backing, MemoryEngine
from kvstore.storage.store import Store
from kvstore.types import Applied


@pytest.fixture(scope="module", autouse=True)
def _patience() -> Iterator[None]:
    """Let tests hold a frozen table as long as they like."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "STALL_TABLES", 1 << 30)
        yield


# --- merging ------------------------------------------------------------------------------

PLACES = ["staged", "flying", "memtable", "frozen", "base"]


def held_in(place: str, record: bytes) -> tuple[StoreRig, Store]:
    """A store that holds a record in one of the places a record passes through."""
    rig = StoreRig()
    store = rig.open(memtable_bytes=1 if place in ("frozen", "base") else 1 << 30)
    store.apply(skey("k"), record, NOW)
    if place != "staged":
        store.commit(lambda _error: None)
    if place in ("memtable", "frozen", "base"):
        rig.worker.run()
    if place == "base":
        rig.settle()
    return rig, store


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("held", "given", "applied"),
    [
        (value(5), value(6), Applied.REPLACED),
        (value(5), value(4), Applied.SUPERSEDED),
        (value(5), value(5), Applied.DUPLICATE),
        (value(5), tombstone(6), Applied.REPLACED),
        (tombstone(5), value(6), Applied.APPLIED),
        (value(5, b"a"), value(5, b"b"), Applied.REPLACED),
        (value(5, b"b"), value(5, b"a"), Applied.SUPERSEDED),
        (value(5, expires_ms=NOW), value(6), Applied.APPLIED),
        (value(5, expires_ms=NOW + 1), value(6), Applied.REPLACED),
        (value(5, expires_ms=NOW), records.reclaim(value(5, expires_ms=NOW)), Applied.DUPLICATE),
        (value(9, flags=records.FLAG_STRONG), value(10), Applied.SUPERSEDED),
        (value(10), value(9, flags=records.FLAG_STRONG), Applied.REPLACED),
    ],
)
def test_a_record_is_stored_iff_it_is_newer(place: str, held: bytes, given: bytes, applied: Applied) -> None:
    rig, store = held_in(place, held)
    assert store.apply(skey("k"), given, NOW) == applied
    rig.commit(store)
    stored = applied in (Applied.APPLIED, Applied.REPLACED)
    assert store.get(skey("k")) == (given if stored else held)
    assert store.conflicts == (
        1 if held[:8] == given[:8] and held[38:] != given[38:] and given[16] == 1 else 0
    )


def test_highest_version_counts_everything_stored_and_survives(tmp_path: Path) -> None:
    rig = StoreRig(SystemFiles())
    store = rig.open(engine=LmdbEngine(f"{tmp_path}/base"), directory=str(tmp_path))
    assert store.highest_version == 0
    rig.put(store, skey("a"), value(70))
    rig.put(store, skey("b"), value(60))
    assert store.highest_version == 70
    store.abandon()
    store = rig.open(engine=LmdbEngine(f"{tmp_path}/base"), directory=str(tmp_path))
    assert store.highest_version == 70, "from the log"
    store.stage_ceiling(99)
    store.close()
    store = rig.open(engine=LmdbEngine(f"{tmp_path}/base"), directory=str(tmp_path))
    assert (store.highest_version, store.ceiling) == (70, 99), "from the base store"
    assert store.stats().recovered_records == 0
    store.close()


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30), st.booleans()), max_size=40),
    table=st.sampled_from([1, 200, 1 << 30]),
)
def test_counts_are_exact(steps: list[tuple[int, int, bool]], table: int) -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=table)
    for at, (key, version, alive) in enumerate(steps):
        store.apply(skey(f"k{key}"), value(version) if alive else tombstone(version), NOW)
        if at % 3 == 0:
            rig.commit(store)
        if at % 7 == 0:
            rig.settle()
    rig.commit(store)
    for reopened in (False, True):
        found = contents(store)
        dead = sum(record[16] == 2 for record in found.values())
        stats = store.stats()
        assert (stats.keys, stats.tombstones) == (len(found) - dead, dead)
        if not reopened:
            store.abandon()
            store = rig.open()


# --- scanning -----------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    layers=st.lists(
        st.dictionaries(st.integers(0, 30), st.integers(1, 60), max_size=15), min_size=3, max_size=3
    ),
    limit=st.integers(1, 7),
    bytes_max=st.integers(1, 400),
    borders=st.tuples(st.integers(0, 31), st.integers(0, 31)),
)
def test_pages_of_all_layers_together_make_the_whole(
    layers: list[dict[int, int]], limit: int, bytes_max: int, borders: tuple[int, int]
) -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=1)
    model: dict[bytes, bytes] = {}
    for at, layer in enumerate(layers):
        if at == 2:
            # What comes now stays above a table that is frozen and not flushed.
            rig.flusher.run()
        for key, version in layer.items():
            name = skey(f"k{key:02}", partition=key % 3)
            if store.apply(name, value(version), NOW) <= Applied.REPLACED:
                model[name] = value(version)
        rig.commit(store)
    start, stop = (skey(f"k{border:02}", partition=border % 3) for border in borders)
    expected = [pair for pair in sorted(model.items()) if start <= pair[0] < stop]
    found: list[tuple[bytes, bytes]] = []
    at_key, more = start, True
    while more:
        page, more = store.scan(at_key, stop, limit=limit, bytes_max=bytes_max)
        assert len(page) <= limit
        assert page or not more
        found += page
        at_key = page[-1][0] + b"\0" if page else at_key
    assert found == expected


# --- expiry -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["memtable", "frozen", "base"])
def test_an_expired_record_becomes_a_tombstone_of_its_version_and_stays(place: str) -> None:
    old = value(5, b"secret", expires_ms=NOW + 10)
    rig, store = held_in(place, old)
    assert store.due_ms() == NOW + 10
    assert store.stats().expiring == 1
    assert store.tick(NOW + 9) == 0
    assert store.tick(NOW + 10) == 1
    rig.settle()
    left = store.get(skey("k"))
    assert left == records.reclaim(old)
    assert b"secret" not in left
    assert store.tick(NOW + 10_000) == 0
    assert store.due_ms() is None
    assert (store.stats().keys, store.stats().tombstones) == (0, 1)
    # docs/decisions/0001: an older copy from a replica that was away must not come back.
    assert store.apply(skey("k"), value(4, b"forever"), NOW + 20) == Applied.SUPERSEDED
    store.abandon()
    assert rig.crash().open().get(skey("k")) == left


def test_expired_records_are_returned_as_they_are_until_reclaimed() -> None:
    rig, store = held_in("memtable", value(5, b"x", expires_ms=NOW + 10))
    assert store.get(skey("k")) == value(5, b"x", expires_ms=NOW + 10)
    rig.settle()


@pytest.mark.parametrize("place", ["memtable", "frozen", "base"])
def test_only_the_record_that_expires_is_reclaimed(place: str) -> None:
    """A key that got another expiry, or none, outlives its old one; also across the layers."""
    for newer in (value(6, b"n"), value(6, b"n", expires_ms=NOW + 99), tombstone(6)):
        rig, store = held_in(place, value(5, expires_ms=NOW + 10))
        rig.put(store, skey("k"), newer)
        assert store.tick(NOW + 50) == 0
        rig.settle()
        assert store.get(skey("k")) == newer


def test_a_record_staged_over_an_expiring_one_is_not_lost_to_its_tombstone() -> None:
    rig, store = held_in("memtable", value(5, expires_ms=NOW + 10))
    store.apply(skey("k"), value(6), NOW)
    assert store.tick(NOW + 50) == 0
    rig.commit(store)
    assert store.get(skey("k")) == value(6)


def test_one_tick_looks_at_a_bounded_number_of_keys() -> None:
    rig = StoreRig()
    store = rig.open(expiry_keys_per_tick=10, segment_bytes=1 << 20)
    for n in range(35):
        store.apply(skey(f"k{n}"), value(n + 1, expires_ms=NOW + n % 3), NOW)
    rig.commit(store)
    counts = []
    while reclaimed := store.tick(NOW + 5):
        counts.append(reclaimed)
        rig.settle()
    assert counts == [10, 10, 10, 5]


def test_the_index_of_the_base_store_is_walked_in_steps_and_cleaned() -> None:
    rig = StoreRig()
    store = rig.open(expiry_keys_per_tick=4, memtable_bytes=2_000, segment_bytes=1 << 20)
    for n in range(50):
        store.apply(skey(f"k{n:02}"), value(n + 1, expires_ms=NOW + n), NOW)
    rig.commit(store)
    rig.settle()
    assert store.stats().memtable_bytes == 0
    reclaimed = 0
    for _ in range(20):
        reclaimed += store.tick(NOW + 1_000)
    rig.settle()
    assert reclaimed == 50
    assert store.due_ms() is None
    for n in range(100, 150):
        rig.put(store, skey(f"z{n}"), value(n))
    rig.settle()
    assert store.stats().expiring == 0, "the flush took the old entries out"
    assert store.stats().tombstones == 50


# --- the way down -------------------------------------------------------------------------


def fill(rig: StoreRig, store: Store, count: int, *, start: int = 0) -> dict[bytes, bytes]:
    written = {
        skey(f"k{n:04}", partition=n % 5): value(n + 1, b"x" * 60) for n in range(start, start + count)
    }
    for key, record in written.items():
        store.apply(key, record, NOW)
    rig.commit(store)
    return written


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


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush, "STEP_RECORDS", 4)
    monkeypatch.setattr(flush, "SLICE_RECORDS", 12)


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


# --- the disk's reserve -------------------------------------------------------------------


def test_client_writes_stop_before_the_disk_is_full_and_come_back_by_themselves() -> None:
    rig = StoreRig()
    rig.disk.total, rig.disk.free = 1_000_000_000, 60_000_000
    store = rig.open(disk_reserve_ratio=0.05, segment_bytes=1 << 20)
    rig.put(store, skey("old"), value(1, expires_ms=NOW + 5))
    rig.disk.free = 49_000_000
    store.tick(NOW)
    rig.flusher.run()
    stats = store.stats()
    assert (stats.full, stats.disk_free, stats.disk_reserve) == (True, 49_000_000, 50_000_000)
    assert store.apply(skey("new"), value(2), NOW) == Applied.DISK_FULL
    assert store.apply(skey("old"), value(2), NOW) == Applied.DISK_FULL
    assert store.apply(skey("old"), value(1, expires_ms=NOW + 5), NOW) == Applied.DUPLICATE
    assert store.apply(skey("repaired"), value(2), NOW, repair=True) == Applied.APPLIED
    assert store.apply(skey("deleted"), tombstone(3), NOW) == Applied.APPLIED
    assert store.tick(NOW + 6) == 1, "expiry goes on"
    rig.commit(store)
    rig.disk.free = 500_000_000
    assert store.apply(skey("new"), value(4), NOW + 900) == Applied.DISK_FULL, "looked at once a second"
    assert store.apply(skey("new"), value(4), NOW + 1_100) == Applied.DISK_FULL, "this one asks"
    rig.flusher.run()
    assert store.apply(skey("new"), value(4), NOW + 1_101) == Applied.APPLIED


def test_the_reserve_is_a_part_of_the_disk_but_bounded() -> None:
    rig = StoreRig()
    rig.disk.total = 10 << 40
    store = rig.open()
    assert store.stats().disk_reserve == 5 << 30
    store.abandon()
    rig.disk.total = 10 << 30
    assert rig.open().stats().disk_reserve == (10 << 30) // 20


# --- damage -------------------------------------------------------------------------------


def test_a_damaged_record_of_the_base_store_is_never_served(tmp_path: Path) -> None:
    rig = StoreRig(SystemFiles())
    store = rig.open(engine=LmdbEngine(f"{tmp_path}/base"), directory=str(tmp_path))
    rig.put(store, skey("k"), value(5, b"precious payload"))
    rig.put(store, skey("l"), value(5))
    store.close()
    path = tmp_path / "base" / "data.mdb"
    data = path.read_bytes()
    assert data.count(b"precious payload") >= 1
    path.write_bytes(data.replace(b"precious payload", b"precious paylobd"))
    store = rig.open(engine=LmdbEngine(f"{tmp_path}/base"), directory=str(tmp_path))
    for look in (
        lambda: store.get(skey("k")),
        lambda: store.scan(b"", b"\xff", limit=9, bytes_max=999),
        lambda: store.apply(skey("k"), value(6), NOW),
    ):
        with pytest.raises(errors.DamagedRecord):
            look()
    assert store.get(skey("l")) == value(5), "one damaged key takes nothing else with it"
    store.close()
