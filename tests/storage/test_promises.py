"""Promises: as durable as records, wherever the record is, and gone when they are over."""

from __future__ import annotations

import pytest
from store_rig import NOW, StoreRig, skey, value

from kvstore.core import record as records
from kvstore.core import window
from kvstore.storage import promises
from kvstore.storage.lmdb_engine import LmdbEngine
from kvstore.storage.store import Store
from kvstore.types import Applied, Kind, Version

KEY = skey("k")


def strong(version: int) -> bytes:
    payload = window.encode(version, window.Window(), b"v")
    return records.encode(Version(version), 0, Kind.VALUE, payload, flags=records.FLAG_STRONG)


def promise(rig: StoreRig, store: Store, ballot: int) -> None:
    store.promises.promise(KEY, ballot)
    rig.commit(store, sync=True)


@pytest.mark.parametrize("place", ["memtable", "base"])
def test_a_promise_outlives_a_power_cut(place: str) -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=1 if place == "base" else 1 << 30)
    promise(rig, store, 77)
    rig.settle()
    store.abandon()
    later = rig.crash()
    again = later.open()
    assert again.promises.promised(KEY) == 77
    assert again.highest_version >= 77, "the clock must resume above every ballot"
    assert again.scan(b"\0", promises.FIRST, limit=9, bytes_max=99) == ([], False), "a promise is no record"
    assert again.stats().keys == again.stats().tombstones == 0


def test_a_promise_that_was_not_synced_was_not_given() -> None:
    rig = StoreRig()
    store = rig.open()
    store.promises.promise(KEY, 77)
    assert store.promises.promised(KEY) == 77, "the acceptor decides by what is on its way"
    assert rig.crash().open().promises.promised(KEY) == 0


def test_an_acceptor_is_shown_what_is_on_its_way() -> None:
    """Else two accepts at once would both be judged by the record before them."""
    rig = StoreRig()
    store = rig.open()
    rig.put(store, KEY, strong(5))
    store.apply(KEY, strong(6), NOW, repair=True)
    assert store.promises.latest(KEY) == strong(6), "staged"
    store.commit(lambda _error: None, sync=True)
    assert store.promises.latest(KEY) == strong(6), "in flight"
    store.apply(KEY, strong(7), NOW, repair=True)
    assert store.promises.latest(KEY) == strong(7), "staged, with another in flight"
    assert store.get(KEY) == strong(5)
    rig.commit(store, sync=True)
    assert store.promises.latest(KEY) == store.get(KEY) == strong(7)


@pytest.mark.parametrize("place", ["memtable", "base"])
def test_a_record_of_its_ballot_ends_it_for_good(place: str) -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=1 if place == "base" else 1 << 30)
    promise(rig, store, 77)
    rig.settle()
    assert store.apply(KEY, strong(77), NOW, repair=True) == Applied.APPLIED
    rig.commit(store, sync=True)
    rig.settle()
    assert store.promises.promised(KEY) == 0
    store.abandon()
    again = rig.crash().open()
    assert again.promises.promised(KEY) == 0
    assert again.get(KEY) == strong(77)
    if place == "base":
        assert list(rig.backing.records) == [KEY], "what is over takes no space"


def test_a_record_below_the_promise_leaves_it() -> None:
    rig = StoreRig()
    store = rig.open()
    promise(rig, store, 77)
    assert store.apply(KEY, strong(76), NOW, repair=True) == Applied.APPLIED
    assert store.promises.promised(KEY) == 77


def test_plain_writes_are_refused_while_a_promise_is_live_and_merges_are_not() -> None:
    rig = StoreRig()
    store = rig.open()
    promise(rig, store, 77)
    assert store.apply(KEY, value(80), NOW) == Applied.NEEDS_REGISTER
    assert store.apply(KEY, value(80), NOW, repair=True) == Applied.APPLIED
    assert store.promises.promised(KEY) == 77


def test_plain_writes_never_replace_a_strong_record() -> None:
    rig = StoreRig()
    store = rig.open()
    rig.put(store, KEY, strong(5))
    assert store.apply(KEY, value(80), NOW) == Applied.NEEDS_REGISTER
    assert store.apply(KEY, value(80), NOW, repair=True) == Applied.SUPERSEDED
    assert store.promises.latest(KEY) == strong(5)


def test_promises_in_a_real_base_store_are_found_again_and_dropped(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = str(tmp_path_factory.mktemp("base"))
    rig = StoreRig()
    for number in range(20):  # each life ends with a flush
        store = rig.open(engine=LmdbEngine(path))
        store.promises.promise(skey(f"k{number}"), 100 + number)
        if number < 10:
            store.close()
            store = rig.open(engine=LmdbEngine(path))
            store.apply(skey(f"k{number}"), strong(200 + number), NOW, repair=True)
        store.close()
    engine = LmdbEngine(path)
    again = rig.open(engine=engine)
    live = {number: again.promises.promised(skey(f"k{number}")) for number in range(20)}
    assert live == {number: 0 if number < 10 else 100 + number for number in range(20)}
    kept, _ = engine.scan(promises.FIRST, b"\xff\xff\xff", limit=100, bytes_max=1 << 20)
    assert len(kept) == 10
    again.close()
