"""What `kv wal dump` and `kv wal verify` are made of: they see everything and touch nothing."""

from __future__ import annotations

import pytest
from crash_disk import CrashDisk
from store_rig import DIR, NOW, WAL, StoreRig, skey, tombstone, value

from kvstore import errors
from kvstore.io.disk import SystemFiles
from kvstore.storage import inspect, recovery
from kvstore.storage.inspect import EndSeen, EntrySeen, RecordSeen, SegmentSeen
from kvstore.storage.tail import Verdict


@pytest.fixture
def disk() -> CrashDisk:
    """Three segments with ten records."""
    rig = StoreRig()
    store = rig.open()
    for version in range(1, 10):
        rig.put(store, skey(f"k{version}", partition=3), value(version, b"x" * 900, expires_ms=NOW))
        rig.flusher.run()
    store.apply(skey("gone"), tombstone(10), NOW)
    store.stage_ceiling(77)
    rig.commit(store)
    store.abandon()
    made: CrashDisk = rig.disk
    return made


def paths(disk: CrashDisk) -> list[str]:
    return [recovery.segment_path(WAL, number) for number in recovery.segment_numbers(disk, WAL)]


def flip(disk: CrashDisk, path: str, offset: int) -> None:
    data = bytearray(disk.read(path))
    data[offset] ^= 1
    disk.poke(path, bytes(data))


@pytest.mark.parametrize("directory", [DIR, WAL])
def test_dump_shows_every_segment_record_and_entry(disk: CrashDisk, directory: str) -> None:
    before = list(disk.journal)
    seen = list(inspect.dump(disk, directory))
    assert disk.journal == before
    assert [s.path for s in seen if isinstance(s, SegmentSeen)] == paths(disk)
    records = [s for s in seen if isinstance(s, RecordSeen)]
    assert [r.sequence for r in records] == list(range(1, 11))
    assert [r.synced for r in records] == list(range(10))
    assert records[4].entries == (EntrySeen(3, b"k5", 5, NOW, 1, 0, 900),)
    assert records[9].entries == (EntrySeen(1, b"gone", 10, 0, 2, 0, 0),)
    assert (records[9].ceiling, records[9].keys, records[9].tombstones) == (77, 9, 1)
    ends = [s for s in seen if isinstance(s, EndSeen)]
    assert {end.verdict for end in ends} == {Verdict.CLEAN}
    assert records[-1].offset + records[-1].bytes == ends[-1].offset
    assert records[-1].path == ends[-1].path


def test_verify_finds_nothing_wrong_with_a_healthy_log(disk: CrashDisk) -> None:
    report = inspect.verify(disk, DIR)
    assert (report.verdict, report.problems, report.directory) == (Verdict.CLEAN, (), WAL)
    assert [part.path for part in report.segments] == paths(disk)
    assert (
        sum(part.records for part in report.segments) == sum(part.entries for part in report.segments) == 10
    )
    assert report.segments[0].first_sequence == 1
    assert report.segments[-1].last_sequence == 10


def test_verify_names_every_damaged_place(disk: CrashDisk) -> None:
    first, second, *_ = paths(disk)
    flip(disk, first, 150)
    flip(disk, second, 2)
    report = inspect.verify(disk, DIR)
    assert report.verdict is Verdict.CORRUPT
    assert [part.verdict for part in report.segments] == [Verdict.CORRUPT, Verdict.CORRUPT, Verdict.CLEAN]
    assert [problem.split(":")[0] for problem in report.problems] == [
        f"{first} at byte 64",
        f"{second} at byte 0",
    ]
    with pytest.raises(errors.CorruptLog):
        list(inspect.dump(disk, DIR))


def test_verify_tells_a_torn_tail_from_damage(disk: CrashDisk) -> None:
    last = paths(disk)[-1]
    disk.poke(last, disk.read(last).rstrip(b"\0")[:-2])
    report = inspect.verify(disk, DIR)
    assert report.verdict is Verdict.TORN
    assert "not written to its end" in report.problems[0]
    end = list(inspect.dump(disk, DIR))[-1]
    assert isinstance(end, EndSeen)
    assert end.verdict is Verdict.TORN
    flip(disk, paths(disk)[0], 150)
    assert inspect.verify(disk, DIR).verdict is Verdict.CORRUPT, "the worst counts"


def test_verify_notices_a_segment_missing_between_others(disk: CrashDisk) -> None:
    disk.remove(paths(disk)[1])
    report = inspect.verify(disk, DIR)
    assert report.verdict is Verdict.CORRUPT
    assert "does not continue" in report.problems[0]


def test_verify_notices_a_segment_under_another_name(disk: CrashDisk) -> None:
    disk.rename(recovery.segment_path(WAL, 3), recovery.segment_path(WAL, 7))
    report = inspect.verify(disk, DIR)
    assert report.verdict is Verdict.CORRUPT
    assert "segment 3" in report.problems[0]
    with pytest.raises(errors.CorruptLog):
        StoreRig(disk).open()


def test_an_empty_or_absent_directory_is_said_to_be_so() -> None:
    disk = CrashDisk()
    disk.make_dir(WAL)
    assert inspect.verify(disk, DIR).verdict is Verdict.CORRUPT
    assert "no segment" in inspect.verify(disk, DIR).problems[0]
    assert list(inspect.dump(disk, DIR)) == []
    for look in (inspect.verify, lambda files, where: list(inspect.dump(files, where))):
        with pytest.raises(errors.DataDirUnusable, match="no such file"):
            look(SystemFiles(), "/nowhere/at/all")
