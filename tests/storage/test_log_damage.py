"""What recovery makes of every way a log can be cut or damaged (RELIABILITY 2.3).

The promise: either every acknowledged write is there, or the store refuses to open and says where.
Cutting the file itself takes acknowledged bytes away; then what is left is a prefix in order.
"""

from __future__ import annotations

import random

import pytest
from crash_disk import CrashDisk, PowerCut
from store_rig import NOW, WAL, StoreRig, contents, skey, tombstone, value

from kvstore import errors
from kvstore.storage import inspect, recovery, segment, tail

OPERATIONS = 200
State = dict[bytes, bytes]


class Recording:
    """A stream of operations over several segments, with the state after each."""

    def __init__(self, seed: int) -> None:
        dice = random.Random(seed)
        rig = StoreRig()
        store = rig.open()
        self.states: list[State] = [{}]
        for version in range(1, OPERATIONS + 1):
            key = skey(f"k{dice.randrange(40)}")
            alive = dice.random() < 0.8
            rig.put(
                store,
                key,
                value(version, dice.randbytes(dice.randrange(120))) if alive else tombstone(version),
            )
            rig.flusher.run()
            self.states.append(contents(store))
        self.disk: CrashDisk = rig.disk
        self.segments = [recovery.segment_path(WAL, n) for n in recovery.segment_numbers(rig.disk, WAL)]
        store.abandon()

    @property
    def last(self) -> str:
        return self.segments[-1]


@pytest.fixture(scope="module")
def recording() -> Recording:
    """One whose last segment has a good number of records."""
    made = next(
        made for made in map(Recording, range(50)) if len(made.disk.read(made.last).rstrip(b"\0")) > 1_500
    )
    assert len(made.segments) >= 4
    return made


def reopened(disk: CrashDisk) -> State:
    """What a store finds on a disk; opened twice, because the second time must find the same."""
    rig = StoreRig(disk)
    store = rig.open()
    found = contents(store)
    store.abandon()
    again = StoreRig(disk).open()
    assert contents(again) == found
    again.abandon()
    return found


@pytest.mark.slow
def test_every_truncation_of_the_last_segment_leaves_a_prefix(recording: Recording) -> None:
    data = recording.disk.read(recording.last)
    end = len(data.rstrip(b"\0"))
    known = {tuple(sorted(state.items())): at for at, state in enumerate(recording.states)}
    before = -1
    for size in range(segment.SEGMENT_HEADER_BYTES, end + 1):
        disk = recording.disk.copy()
        disk.poke(recording.last, data[:size])
        store = StoreRig(disk).open()
        at = known[tuple(sorted(contents(store).items()))]
        store.abandon()
        assert at >= before, "a longer log holds less"
        before = at
    assert before == OPERATIONS


def test_a_segment_cut_inside_its_header_is_refused(recording: Recording) -> None:
    data = recording.disk.read(recording.last)
    for size in range(segment.SEGMENT_HEADER_BYTES):
        disk = recording.disk.copy()
        disk.poke(recording.last, data[:size])
        with pytest.raises(errors.CorruptLog):
            reopened(disk)


def test_every_truncation_of_an_earlier_segment_is_refused(recording: Recording) -> None:
    path = recording.segments[1]
    data = recording.disk.read(path)
    end = len(data.rstrip(b"\0"))
    seen = [part for part in inspect.dump(recording.disk, WAL) if isinstance(part, inspect.RecordSeen)]
    borders = [part.offset for part in seen if part.path == path]
    for size in [*range(0, end, 7), *borders]:
        disk = recording.disk.copy()
        disk.poke(path, data[:size])
        with pytest.raises(errors.CorruptLog) as caught:
            reopened(disk)
        # Between two records (or in the zeros a length begins with) the cut itself leaves no trace:
        # then the next segment does not continue this one.
        traceless = any(border <= size <= border + 3 for border in borders) or size == end
        header = size < segment.SEGMENT_HEADER_BYTES
        assert caught.value.fields["path"] == (recording.segments[2] if traceless and not header else path)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_flipped_bit_loses_nothing_in_silence(recording: Recording, which: int) -> None:
    path = recording.segments[which]
    data = recording.disk.read(path)
    dice = random.Random(which)
    end = len(data.rstrip(b"\0"))
    refused = 0
    for offset in [*range(segment.SEGMENT_HEADER_BYTES + 64), *dice.sample(range(128, end), 250)]:
        damaged = bytearray(data)
        damaged[offset] ^= 1 << dice.randrange(8)
        disk = recording.disk.copy()
        disk.poke(path, bytes(damaged))
        try:
            assert reopened(disk) == recording.states[-1]
        except (errors.CorruptLog, errors.DataDirForeign, errors.DataDirFormat):
            refused += 1
    assert refused == 378, "every byte counts, so every flip is noticed"


def test_a_lost_sector_of_an_acknowledged_record_is_not_taken_for_a_torn_write() -> None:
    """It has the zeros of a write cut short; the record behind it proves that it had been synced."""
    rig = StoreRig()
    store = rig.open(segment_bytes=65_536)
    for version in range(1, 4):
        rig.put(store, skey(f"k{version}"), value(version, b"x" * 2_000))
    store.abandon()
    path = recovery.segment_path(WAL, 1)
    data = bytearray(rig.disk.read(path))
    lost = range(segment.SEGMENT_HEADER_BYTES + 960, segment.SEGMENT_HEADER_BYTES + 960 + 512)
    assert lost.start % 512 == 0
    data[lost.start : lost.stop] = bytes(512)
    disk = rig.disk.copy()
    disk.poke(path, bytes(data))
    with pytest.raises(errors.CorruptLog, match="was synced before record 2"):
        reopened(disk)
    end = tail.written_end(bytes(data), 0)
    disk = rig.disk.copy()
    disk.poke(path, rig.disk.read(path)[: end - 600] + bytes(600))
    assert len(reopened(disk)) == 2, "the last record may be torn"


@pytest.mark.slow
def test_a_flipped_bit_in_reserved_space_is_no_loss(recording: Recording) -> None:
    data = recording.disk.read(recording.last)
    end = len(data.rstrip(b"\0"))
    for offset in range(end, min(end + 200, len(data))):
        disk = recording.disk.copy()
        disk.poke(recording.last, data[:offset] + b"\x10" + data[offset + 1 :])
        assert reopened(disk) == recording.states[-1]


def test_damage_names_file_and_offset(recording: Recording) -> None:
    path = recording.segments[1]
    damaged = bytearray(recording.disk.read(path))
    damaged[segment.SEGMENT_HEADER_BYTES + segment.FRAME_BYTES + 3] ^= 1
    disk = recording.disk.copy()
    disk.poke(path, bytes(damaged))
    with pytest.raises(errors.CorruptLog) as caught:
        reopened(disk)
    assert caught.value.fields["path"] == path
    assert caught.value.fields["offset"] == segment.SEGMENT_HEADER_BYTES
    assert "kv wal verify" in caught.value.one_line()


@pytest.mark.parametrize("sync", ["always", "os"])
@pytest.mark.parametrize("seed", range(4))
def test_a_power_cut_in_the_last_write_never_refuses_and_loses_nothing_acknowledged(
    seed: int, sync: str
) -> None:
    """The write may arrive as nothing, all, a first part, or any of its sectors."""
    dice = random.Random(seed)
    for _ in range(40):
        rig = StoreRig()
        store = rig.open(sync=sync)
        for version in range(1, dice.randrange(2, 9)):
            rig.put(store, skey(f"k{version}"), value(version, dice.randbytes(dice.randrange(1_500))))
        rig.commit(store, sync=True)
        acknowledged = contents(store)
        for version in range(20, dice.randrange(21, 25)):
            store.apply(skey(f"k{version}"), value(version, dice.randbytes(dice.randrange(1, 3_000))), NOW)
            store.commit(lambda _error: None)
            if sync == "os":
                rig.worker.step()
        # The disk gets the bytes, and the power goes before it is asked to sync them.
        rig.disk.fail[("sync", ".wal")] = OSError(5, "gone")
        rig.worker.run()
        found = reopened(rig.disk.crash(dice))
        assert acknowledged.items() <= found.items()


def test_a_torn_tail_is_saved_aside_before_it_is_cut() -> None:
    rig = StoreRig()
    store = rig.open()
    for version in range(1, 4):
        rig.put(store, skey(f"k{version}"), value(version))
    store.abandon()
    path = recovery.segment_path(WAL, 1)
    data = rig.disk.read(path)
    end = len(data.rstrip(b"\0"))
    disk = rig.disk.copy()
    disk.poke(path, data[: end - 3])
    store = StoreRig(disk).open()
    torn = store.stats().torn_tail
    assert torn.startswith(path)
    assert torn.endswith(".torn")
    offset = int(torn.split(".")[-2])
    assert disk.read(torn) == data[offset : end - 3]
    assert len(disk.read(path)) == offset
    store.abandon()
    steps = [step for step in disk.journal if step[1] in (torn, path)]
    assert steps == [("write_atomic", torn), ("truncate", path), ("sync", path)]


def test_a_power_cut_at_any_step_of_recovery_changes_nothing(recording: Recording) -> None:
    data = recording.disk.read(recording.last)
    torn = recording.disk.copy()
    torn.poke(recording.last, data[: len(data.rstrip(b"\0")) - 3])
    expected = reopened(torn.copy())
    steps = 0
    while True:
        disk = torn.copy()
        disk.power_cut_at = steps
        try:
            StoreRig(disk).open().abandon()
        except PowerCut:
            for dice in (None, random.Random(steps), random.Random(-steps)):
                assert reopened(disk.crash(dice)) == expected
            steps += 1
        else:
            break
    assert steps > 8


def test_a_missing_segment_is_refused(recording: Recording) -> None:
    for path in recording.segments[:-1]:
        disk = recording.disk.copy()
        disk.remove(path)
        with pytest.raises(errors.CorruptLog):
            reopened(disk)


def test_an_empty_log_directory_of_a_used_store_is_refused() -> None:
    rig = StoreRig()
    rig.open().abandon()
    for number in recovery.segment_numbers(rig.disk, WAL):
        rig.disk.remove(recovery.segment_path(WAL, number))
    with pytest.raises(errors.CorruptLog, match="no segment"):
        rig.open()


def rewritten(disk: CrashDisk, path: str, change: str) -> None:
    """Write the last segment again with one thing wrong that its checksums do not show."""
    data = disk.read(path)
    header = segment.decode_header(data, path)
    records: list[bytes] = []
    offset, sequence = segment.SEGMENT_HEADER_BYTES, header.first_sequence
    while (frame := segment.decode_frame(data, offset, header.salt_crc)) is not None:
        payload = segment.payload_of(data, frame)
        assert payload is not None
        if not (change == "gap" and sequence == header.first_sequence + 1):
            number = sequence - 1 if change == "twice" and len(records) == 2 else sequence
            made, _ = segment.encode_record(
                payload, sequence=number, synced=sequence - 1, salt_crc=header.salt_crc
            )
            records.append(made)
        offset, sequence = frame.end, sequence + 1
        if len(records) > 4:
            break
    disk.poke(path, data[: segment.SEGMENT_HEADER_BYTES] + b"".join(records) + bytes(4_096))


@pytest.mark.parametrize("change", ["gap", "twice"])
def test_sequence_numbers_are_dense(change: str) -> None:
    rig = StoreRig()
    store = rig.open()
    for version in range(1, 9):
        rig.put(store, skey(f"k{version}"), value(version))
    store.abandon()
    path = recovery.segment_path(WAL, recovery.segment_numbers(rig.disk, WAL)[-1])
    rewritten(rig.disk, path, "none")
    reopened(rig.disk.copy())
    rewritten(rig.disk, path, change)
    with pytest.raises(errors.CorruptLog, match="stands where"):
        rig.open()
