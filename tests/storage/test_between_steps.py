"""What a crash, a full disk or another job finds between two steps of the log and the flush."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from store_rig import NOW, WAL, StoreRig, contents, skey, value

from kvstore import errors
from kvstore.core import record as records
from kvstore.io.disk import SystemFiles
from kvstore.storage import recovery
from kvstore.storage.lmdb_engine import LmdbEngine
from kvstore.storage.memory_engine import MemoryEngine
from kvstore.storage.store import Store
from kvstore.types import Applied, Kind, Version

Answers = list[BaseException | None]
KEY = skey("k")
MANY_BYTES = 8 << 20


def asked(store: Store, number: int, size: int) -> Answers:
    """A record under way to the log; who waits for it is told here."""
    answers: Answers = []
    store.apply(skey(f"k{number}"), value(number + 1, b"x" * size), NOW)
    store.commit(answers.append)
    return answers


def strong(version: int, payload: bytes = b"v") -> bytes:
    return records.encode(Version(version), 0, Kind.VALUE, payload, flags=records.FLAG_STRONG)


# --- promises and what ends them -------------------------------------------------------------


@pytest.mark.parametrize("promised_once_more", [False, True])
def test_a_group_that_is_cut_in_two_does_not_end_a_promise_before_its_record(
    promised_once_more: bool,
) -> None:
    """The promise forgotten and the record not held: a lower ballot would be taken, an update lost."""
    rig = StoreRig()
    store = rig.open()
    store.promises.promise(KEY, 100)
    rig.commit(store, sync=True)
    if promised_once_more:
        store.promises.promise(KEY, 150)
    store.apply(skey("a"), value(5, b"x" * MANY_BYTES), NOW)
    store.apply(skey("b"), value(5, b"y" * (1 << 20)), NOW)
    store.apply(KEY, strong(150, b"z" * MANY_BYTES), NOW, repair=True)
    answers: Answers = []
    store.commit(answers.append, sync=True)
    rig.worker.step()
    assert answers == [], "the first of two groups"
    again = rig.crash().open()
    assert again.get(KEY) is not None or again.promises.promised(KEY) >= 100


def test_a_record_that_the_disk_has_no_room_for_ends_no_promise() -> None:
    rig = StoreRig()
    rig.disk.total, rig.disk.free = 1_000_000_000, 1_000
    store = rig.open(segment_bytes=1 << 20)
    store.promises.promise(KEY, 100)
    rig.commit(store, sync=True)
    store.tick(NOW)
    rig.flusher.run()
    assert store.apply(KEY, strong(100), NOW) == Applied.DISK_FULL
    assert store.promises.promised(KEY) == 100


# --- a new segment that is asked for, and not there yet -----------------------------------------


def test_a_mark_names_no_segment_that_is_not_there_yet() -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=1_500)
    asked(store, 0, 1_500)
    rig.worker.run()
    asked(store, 1, 1_500)
    rig.worker.run()
    waiting = asked(store, 2, 1_500)  # in a segment that is being made
    rig.flusher.run()  # and both tables move down meanwhile
    assert waiting == []
    assert set(contents(rig.crash().open())) == {skey("k0"), skey("k1")}


@pytest.mark.parametrize("why", ["power cut", "no space"])
def test_the_last_segment_stays_until_the_next_is_there(why: str) -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=3_000)
    asked(store, 0, 3_000)
    rig.worker.run()
    waiting = asked(store, 1, 1_500)
    if why == "no space":
        rig.disk.fail["create", "fresh"] = OSError(28, "No space left on device")
    while rig.flusher.step():
        pass
    assert waiting == []
    assert recovery.segment_numbers(rig.disk, WAL)
    if why == "no space":
        rig.worker.step()
        assert isinstance(waiting[0], errors.Crashed)
        rig.disk.fail.clear()
    assert set(contents(rig.crash().open())) == {skey("k0")}


def test_no_spare_is_made_while_the_last_one_is_taken() -> None:
    rig = StoreRig()
    store = rig.open(segment_bytes=64 << 10)
    for number, size in enumerate((50_000, 5_000)):
        asked(store, number, size)
        rig.settle()
        store.tick(NOW)
        rig.settle()
    assert "spare" in rig.disk.list_dir(WAL)
    asked(store, 2, 50_000)  # takes it, and has not given it its name
    store.tick(NOW)
    rig.flusher.run()
    rig.worker.run()
    rig.settle()
    assert store.apply(skey("more"), value(9), NOW) == Applied.APPLIED


# --- recovery ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["always", "os"])
def test_what_recovery_serves_is_synced_also_in_a_segment_that_is_full(mode: str) -> None:
    rig = StoreRig()
    store = rig.open(sync=mode)
    store.apply(KEY, value(1, b"x" * 9_000), NOW)  # a segment of its own size
    store.commit(lambda _error: None)
    rig.disk.fail["sync", "000000000002.wal"] = OSError("killed")
    rig.worker.step()
    rig.disk.fail.clear()
    store.abandon()
    after = StoreRig(rig.disk, rig.backing)  # the process ended, the page cache is there
    assert after.open(sync=mode).get(KEY) is not None
    assert after.crash().open(sync=mode).get(KEY) is not None


def test_a_store_in_memory_does_not_open_what_a_durable_one_wrote(tmp_path: Path) -> None:
    """At its clean stop it deleted the log, and with it what the durable one had not moved down."""
    directory = str(tmp_path)
    rig = StoreRig(SystemFiles())
    store = rig.open(engine=LmdbEngine(f"{directory}/base"), directory=directory)
    rig.put(store, KEY, value(2))
    store.abandon()
    with pytest.raises(errors.DataDirUnusable) as caught:
        rig.open(engine=MemoryEngine(), directory=directory)
    assert "lmdb" in caught.value.message
    again = rig.open(engine=LmdbEngine(f"{directory}/base"), directory=directory)
    assert again.get(KEY) == value(2)
    again.close()


# --- expiry -----------------------------------------------------------------------------------


def renewed_and_crashed(count: int, **options: Any) -> StoreRig:
    """Keys that were in the base store with an end, and were renewed just before a power cut."""
    rig = StoreRig()
    store = rig.open(**options)
    for number in range(count):
        store.apply(skey(f"k{number:04}"), value(number + 1, b"x" * 100, expires_ms=NOW + 1_000), NOW)
    rig.commit(store)
    rig.settle()
    assert len(rig.backing.expiring) == count
    for number in range(count):
        store.apply(skey(f"k{number:04}"), value(1_000 + number), NOW)
    rig.commit(store)
    store.abandon()
    return rig.crash()


def test_entries_of_the_expiry_index_that_a_crash_left_behind_do_not_stand_in_the_way() -> None:
    options: dict[str, Any] = {"memtable_bytes": 20_000, "segment_bytes": 1 << 20, "expiry_keys_per_tick": 10}
    rig = renewed_and_crashed(200, **options)
    store = rig.open(**options)
    now = NOW + 5_000
    for number in range(200):
        store.apply(skey(f"t{number:04}"), value(5_000 + number, b"x" * 100, expires_ms=NOW + 10_000), now)
    rig.commit(store)
    rig.settle()
    now, reclaimed = NOW + 20_000, 0
    for turn in range(60):
        for number in range(200):
            store.apply(skey(f"o{number:04}"), value(10_000 + 1_000 * turn + number, b"z" * 100), now)
        rig.commit(store)
        rig.settle()
        reclaimed += store.tick(now)
        rig.settle()
    assert reclaimed == 200
    store.close()
    assert [key for key in rig.backing.expiring if int.from_bytes(key[:8], "big") < now] == []


def test_a_damaged_record_that_is_due_is_left_and_the_others_expire(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    rig = StoreRig()
    store = rig.open(engine=LmdbEngine(str(base)))
    for name in ("a", "bad", "c"):
        rig.put(store, skey(name), value(1, b"PAYLOAD-" + name.encode(), expires_ms=NOW + 1_000))
    store.close()
    data = base / "data.mdb"
    found = data.read_bytes()
    data.write_bytes(found.replace(b"PAYLOAD-bad", b"PAYLOAD-baD"))
    store = rig.open(engine=LmdbEngine(str(base)))
    assert store.tick(NOW + 2_000) == 2
    with pytest.raises(errors.DamagedRecord):
        store.get(skey("bad"))
    rig.settle()
    store.close()


def test_what_was_retired_is_not_forgotten_by_a_group_of_nothing_but_a_ceiling() -> None:
    rig = renewed_and_crashed(200, memtable_bytes=20_000)
    store = rig.open()
    assert store.tick(NOW + 5_000) == 0, "left behind by the crash, each renewed without an end"
    store.stage_ceiling(1 << 40)
    rig.commit(store)
    rig.put(store, KEY, value(1 << 20))
    store.close()
    assert rig.backing.expiring == []


def test_what_expires_is_retired_once() -> None:
    rig = StoreRig()
    store = rig.open()
    rig.put(store, KEY, value(1, expires_ms=NOW + 1_000))
    store.close()
    store = rig.open()
    assert len(rig.backing.expiring) == 1
    assert store.tick(NOW + 2_000) == 1
    assert len(store._group._flying_retired) == 1
    rig.settle()
    store.close()
    assert rig.backing.expiring == []
