"""A disk that fills up, and one that damages what it holds."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from store_rig import NOW, StoreRig, skey, tombstone, value

from kvstore import errors
from kvstore.io.disk import SystemFiles
from kvstore.storage.lmdb_engine import LmdbEngine
from kvstore.types import Applied

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
    assert store.apply(skey("new"), value(4), NOW + 900) == Applied.DISK_FULL
    rig.flusher.run()
    assert store.stats().disk_free == 49_000_000, "looked at once a second"
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


def test_after_a_write_that_found_no_room_there_is_enough_when_a_segment_fits() -> None:
    """Also on a disk that is smaller than a segment of the default size."""
    rig = StoreRig()
    rig.disk.total, rig.disk.free = 10_000_000, 100_000
    store = rig.open(disk_reserve_ratio=0.0, segment_bytes=200_000)
    rig.disk.fail[("create", "spare")] = OSError(errno.ENOSPC, "No space left on device")
    rig.put(store, skey("k"), value(1, b"x" * 150_000))
    rig.flusher.run()
    rig.disk.fail.clear()
    for seconds, free, full in ((2, 199_999, True), (4, 200_000, False), (6, 50_000, False)):
        rig.disk.free = free
        store.tick(NOW + seconds * 1_000)
        rig.settle()
        assert store.stats().full is full
