"""A store: merging, counting, scanning, expiry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_rig import NOW, StoreRig, contents, skey, tombstone, value

from kvstore.core import record as records
from kvstore.io.disk import SystemFiles
from kvstore.storage import tables
from kvstore.storage.lmdb_engine import LmdbEngine
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
        (value(9, flags=records.FLAG_STRONG), value(10), Applied.NEEDS_REGISTER),
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


@settings(max_examples=60)
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


@settings(max_examples=200)
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
            # The newer the smaller: a page of the base store may be full of what newer layers hide.
            record = value(version, b"x" * (70 - version))
            if store.apply(name, record, NOW) <= Applied.REPLACED:
                model[name] = record
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


def test_what_a_flush_brings_into_the_index_behind_the_last_look_is_found() -> None:
    rig, store = held_in("base", value(5, expires_ms=NOW + 100))
    assert store.tick(NOW + 100) == 1
    rig.settle()
    # Overdue when it comes, and in the base store before anybody looks.
    rig.put(store, skey("late"), value(6, expires_ms=NOW + 50))
    rig.settle()
    assert store.due_ms() == NOW + 50
    assert store.tick(NOW + 101) == 1
    rig.settle()


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
