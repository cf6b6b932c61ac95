"""Group commit: one write and one sync a group, answers after it, and no second try."""

from __future__ import annotations

import errno
from functools import partial

import pytest
from crash_disk import CrashDisk
from store_rig import NOW, WAL, StoreRig, contents, skey, tombstone, value

from kvstore import errors
from kvstore.storage import group, recovery, wal
from kvstore.storage.store import Store
from kvstore.types import Applied

Answers = list[BaseException | None]


def stage(store: Store, count: int, *, start: int = 1, size: int = 10) -> None:
    for version in range(start, start + count):
        store.apply(skey(f"k{version}"), value(version, b"x" * size), NOW)


def steps(rig: StoreRig, since: int) -> list[str]:
    return [what for what, path in rig.disk.journal[since:] if path.endswith(".wal")]


def _note(answers: list[int], member: int, _error: BaseException | None) -> None:
    answers.append(member)


def test_all_that_came_during_one_sync_goes_out_with_one_write_and_one_sync() -> None:
    rig = StoreRig()
    store = rig.open(segment_bytes=1 << 20)
    answers: list[int] = []
    stage(store, 1)
    store.commit(lambda _error: answers.append(0))
    before = len(rig.disk.journal)
    for group_member in range(1, 100):
        stage(store, 1, start=100 + group_member)
        store.commit(partial(_note, answers, group_member))
    assert rig.worker.step()
    assert steps(rig, before) == ["write", "sync"]
    assert answers == [0]
    assert rig.worker.step()
    assert steps(rig, before) == ["write", "sync", "write", "sync"]
    assert answers == list(range(100))
    assert not rig.worker.step()
    assert (store.stats().batches, store.stats().fsyncs) == (2, 2)


def test_a_record_is_visible_only_when_its_group_is_durable() -> None:
    rig = StoreRig()
    store = rig.open()
    key = skey("k")
    rig.put(store, key, value(1))
    store.apply(key, value(2), NOW)
    assert store.get(key) == value(1)
    store.commit(lambda _error: None)
    assert store.get(key) == value(1), "in flight is not durable"
    assert contents(store) == {key: value(1)}
    rig.worker.run()
    assert store.get(key) == value(2)
    assert contents(store) == {key: value(2)}


def test_a_merge_sees_what_is_staged_and_what_is_in_flight() -> None:
    rig = StoreRig()
    store = rig.open()
    key = skey("k")
    assert store.apply(key, value(5), NOW) == Applied.APPLIED
    assert store.apply(key, value(4), NOW) == Applied.SUPERSEDED
    assert store.apply(key, value(5), NOW) == Applied.DUPLICATE
    store.commit(lambda _error: None)
    assert store.apply(key, value(4), NOW) == Applied.SUPERSEDED
    assert store.apply(key, value(6), NOW) == Applied.REPLACED
    rig.worker.run()
    assert store.get(key) == value(5), "six was staged after the commit"
    rig.commit(store)
    assert store.get(key) == value(6)


def test_a_commit_with_nothing_new_waits_for_what_is_in_flight() -> None:
    """A duplicate is acknowledged when the first copy is durable, not before."""
    rig = StoreRig()
    store = rig.open()
    answers: Answers = []
    store.apply(skey("k"), value(1), NOW)
    store.commit(lambda _error: None)
    assert store.apply(skey("k"), value(1), NOW) == Applied.DUPLICATE
    store.commit(answers.append)
    assert answers == []
    rig.worker.step()
    rig.worker.step()
    assert answers == [None]


def test_a_commit_never_answers_from_inside() -> None:
    rig = StoreRig()
    store = rig.open()
    answers: Answers = []
    store.commit(answers.append)
    assert answers == []
    rig.worker.run()
    assert answers == [None]


@pytest.mark.parametrize("what", ["write", "sync"])
def test_a_failed_write_or_sync_is_final(what: str) -> None:
    rig = StoreRig()
    store = rig.open()
    rig.put(store, skey("old"), value(1))
    answers: Answers = []
    stage(store, 3, start=10)
    store.commit(answers.append)
    stage(store, 3, start=20)
    store.commit(answers.append)
    rig.disk.fail[(what, ".wal")] = OSError(errno.EIO, "Input/output error")
    rig.worker.run()
    assert [type(answer) for answer in answers] == [errors.Crashed, errors.Crashed]
    assert rig.failures == [store.failed]
    assert isinstance(store.failed, errors.Crashed)
    assert not store.failed.definite, "the bytes may be there"
    # The disk is well again, and nobody asks it.
    rig.disk.fail.clear()
    before = len(rig.disk.journal)
    assert store.apply(skey("late"), value(50), NOW) == Applied.FAILED
    store.commit(answers.append)
    rig.worker.run()
    assert isinstance(answers[2], errors.Crashed)
    assert store.tick(NOW) == 0
    assert rig.disk.journal[before:] == []
    assert contents(store) == {skey("old"): value(1)}, "what failed stays invisible"
    store.close()
    assert rig.disk.journal[before:] == []
    assert rig.disk.open_handles == 0


def test_a_flush_that_was_running_does_not_wake_a_failed_log() -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=2_000, sync="os", segment_bytes=1 << 20)
    stage(store, 50)
    rig.commit(store)
    rig.worker.run()
    assert rig.flusher.step()
    stage(store, 1, start=100)
    store.commit(lambda _error: None)
    stage(store, 1, start=101)
    store.commit(lambda _error: None, sync=True)
    rig.disk.fail[("write", ".wal")] = OSError(errno.EIO, "Input/output error")
    rig.worker.run()
    assert store.failed is not None
    rig.disk.fail.clear()
    before = len(rig.disk.journal)
    rig.settle()
    assert rig.disk.journal[before:] == []


def test_a_new_segment_is_durable_before_a_record_goes_into_it() -> None:
    rig = StoreRig()
    store = rig.open(sync="os")
    stage(store, 10, size=300)
    rig.commit(store)
    before = len(rig.disk.journal)
    stage(store, 10, start=100, size=300)
    rig.commit(store)
    old, new = (recovery.segment_path(WAL, number) for number in (1, 2))
    fresh = f"{WAL}/fresh"
    assert rig.disk.journal[before:] == [
        ("sync", old),
        ("create", fresh),
        ("write", fresh),
        ("sync", fresh),
        ("rename", new),
        ("sync_dir", WAL),
        ("write", new),
    ], "also in mode os the old segment is synced first, for only the last one may be torn"


def test_the_next_segment_is_reserved_ahead_of_need() -> None:
    rig = StoreRig()
    store = rig.open()
    stage(store, 8, size=300)
    rig.commit(store)
    assert rig.flusher.step(), "half of the segment is used"
    before = len(rig.disk.journal)
    stage(store, 8, start=100, size=300)
    rig.commit(store)
    assert ("create", f"{WAL}/fresh") not in rig.disk.journal[before:]
    assert ("write", f"{WAL}/spare") in rig.disk.journal[before:]
    store.abandon()
    assert contents(rig.crash().open()).keys() == {skey(f"k{n}") for n in (*range(1, 9), *range(100, 108))}


def test_a_segment_is_reserved_step_by_step_while_the_one_before_fills(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wal, "RESERVE_STEP_BYTES", 4_096)
    monkeypatch.setattr(wal, "_ZEROS", bytes(4_096))
    rig = StoreRig()
    store = rig.open(segment_bytes=65_536, memtable_bytes=1 << 20)
    reserved: dict[int, int] = {}
    for start in range(0, 128, 4):
        stage(store, 4, start=start + 1, size=400)
        rig.commit(store)
        rig.flusher.run()
        spare = f"{WAL}/spare"
        size = len(rig.disk.read(spare)) if rig.disk.exists(spare) else 0
        reserved[store.stats().wal_bytes] = size
    half, most = 32_768, 49_152
    assert {size for used, size in reserved.items() if used <= half} == {0}
    between = [size for used, size in reserved.items() if half < used < most]
    assert between == sorted(set(between)), "one step a commit"
    assert len(between) > 5
    assert {size for used, size in reserved.items() if most < used} == {65_536}
    before = len(rig.disk.journal)
    stage(store, 40, start=910, size=400)
    rig.commit(store)
    assert ("create", f"{WAL}/fresh") not in rig.disk.journal[before:]
    assert store.stats().segments == 2


def test_a_reserve_that_ends_half_way_gives_back_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "RESERVE_STEP_BYTES", 4_096)
    monkeypatch.setattr(wal, "_ZEROS", bytes(4_096))
    rig = StoreRig()
    store = rig.open(segment_bytes=65_536, memtable_bytes=1 << 20)
    stage(store, 90, size=400)
    rig.commit(store)
    assert rig.flusher.step()
    assert rig.disk.exists(f"{WAL}/spare")
    stage(store, 20, start=100, size=400)
    rig.disk.fail[("write", "spare")] = OSError(errno.ENOSPC, "No space left on device")
    rig.commit(store)
    rig.flusher.run()
    assert store.stats().full
    assert not rig.disk.exists(f"{WAL}/spare")
    rig.disk.fail.clear()
    for later in range(2_000, 60_000, 2_000):
        store.tick(NOW + later)
        rig.settle()
    assert len(rig.disk.read(f"{WAL}/spare")) == 65_536
    store.close()
    assert rig.disk.open_handles == 0


def test_a_segment_needed_before_its_reserve_is_ready_is_made_on_the_spot() -> None:
    rig = StoreRig()
    store = rig.open()
    for start in range(0, 100, 8):
        stage(store, 8, start=start + 1, size=300)
        rig.commit(store)
    assert rig.flusher.step()
    stage(store, 8, start=200, size=300)
    rig.commit(store)
    rig.commit(store)
    store.abandon()
    assert len(contents(rig.crash().open())) == 112


def test_a_reserve_that_cannot_be_made_stops_clients_and_is_tried_again() -> None:
    rig = StoreRig()
    store = rig.open(segment_bytes=65_536)
    rig.disk.fail[("create", "spare")] = OSError(errno.ENOSPC, "No space left on device")
    stage(store, 80, size=500)
    rig.commit(store)
    rig.flusher.run()
    assert store.stats().full
    assert store.failed is None
    assert store.apply(skey("new"), value(900), NOW) == Applied.DISK_FULL
    assert store.apply(skey("k1"), tombstone(901), NOW) == Applied.REPLACED
    rig.commit(store)
    rig.disk.fail.clear()
    for later in (2_000, 4_000):
        store.tick(NOW + later)
        rig.settle()
    assert not store.stats().full
    assert rig.disk.exists(f"{WAL}/spare")


def test_a_group_too_large_for_one_record_is_cut_and_nobody_is_answered_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group, "GROUP_BYTES_MAX", 1_000)
    rig = StoreRig()
    store = rig.open(segment_bytes=1 << 20)
    stage(store, 5, size=400)
    store.apply(skey("k3"), value(50, b"y" * 3_000), NOW)
    answers: Answers = []
    store.commit(answers.append)
    groups = 0
    while not answers:
        assert rig.worker.step()
        groups += 1
    assert groups == 3
    assert store.stats().batches == 3
    expected = {skey(f"k{n}"): value(n, b"x" * 400) for n in range(1, 6)} | {
        skey("k3"): value(50, b"y" * 3_000)
    }
    assert contents(store) == expected
    store.abandon()
    assert contents(rig.crash().open()) == expected


def test_a_record_larger_than_a_segment_gets_one_of_its_own() -> None:
    rig = StoreRig()
    store = rig.open()
    large = value(9, b"z" * 20_000)
    stage(store, 3)
    rig.commit(store)
    rig.put(store, skey("large"), large)
    stage(store, 3, start=20)
    rig.commit(store)
    store.abandon()
    again = rig.crash().open()
    assert again.get(skey("large")) == large
    assert len(contents(again)) == 7


def test_ceilings_are_durable_with_their_group_and_only_rise() -> None:
    rig = StoreRig()
    store = rig.open()
    store.stage_ceiling(500)
    assert store.ceiling == 0
    rig.commit(store)
    store.stage_ceiling(400)
    rig.commit(store)
    assert store.ceiling == 500
    store.stage_ceiling(900)
    store.abandon()
    assert rig.crash().open().ceiling == 500


# --- the end ------------------------------------------------------------------------------


def test_close_writes_what_is_staged_and_answers_everybody() -> None:
    rig = StoreRig()
    store = rig.open(sync="os")
    answers: Answers = []
    stage(store, 1)
    store.commit(answers.append)
    stage(store, 1, start=2)
    store.commit(answers.append)
    stage(store, 1, start=3)
    store.stage_ceiling(77)
    store.close()
    assert answers == [None, None]
    assert rig.disk.open_handles == 0
    again = StoreRig(rig.disk.crash(), rig.backing).open()
    assert len(contents(again)) == 3
    assert again.ceiling == 77


def test_close_reports_a_disk_that_fails_in_the_end() -> None:
    rig = StoreRig()
    store = rig.open()
    answers: Answers = []
    stage(store, 1)
    store.commit(answers.append)
    stage(store, 1, start=2)
    rig.disk.fail[("sync", ".wal")] = OSError(errno.EIO, "Input/output error")
    store.close()
    assert isinstance(answers[0], errors.Crashed)
    assert rig.disk.open_handles == 0

    rig = StoreRig()
    store = rig.open()
    stage(store, 1)
    rig.disk.fail[("sync", ".wal")] = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        store.close()
    assert rig.disk.open_handles == 0


def test_the_disk_is_free_for_the_next_process_after_close() -> None:
    rig = StoreRig()
    rig.open().close()
    store = rig.open()
    with pytest.raises(errors.DataDirInUse):
        rig.open()
    store.abandon()
    rig.open().close()
    assert isinstance(rig.disk, CrashDisk)
