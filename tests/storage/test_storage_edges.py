"""Corners of the log, the memtable and the options that no ordinary run reaches."""

from __future__ import annotations

import pytest
from crash_disk import CrashDisk
from store_rig import DIR, NOW, WAL, StoreRig, contents, skey, value

from kvstore import errors
from kvstore.storage import memtable, recovery, segment
from kvstore.storage.engine import Mark
from kvstore.storage.memory_engine import Backing
from kvstore.storage.memtable import Memtable
from kvstore.storage.options import StoreOptions
from kvstore.storage.paging import merge_pages
from kvstore.types import Durability

# --- options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "durability", "interval"),
    [
        ("always", Durability.ALWAYS, 0),
        ("os", Durability.OS, 0),
        ("interval:1", Durability.INTERVAL, 1),
        ("interval:60000", Durability.INTERVAL, 60_000),
    ],
)
def test_sync_modes(text: str, durability: Durability, interval: int) -> None:
    options = StoreOptions(sync=text)
    assert (options.durability, options.sync_interval_ms) == (durability, interval)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sync": "never"},
        {"sync": "interval"},
        {"sync": "interval:"},
        {"sync": "interval:0"},
        {"sync": "interval:60001"},
        {"sync": "interval:-5"},
        {"sync": "interval:½"},
        {"sync": "always:1"},
        {"sync": "os:"},
        {"segment_bytes": 4_095},
        {"segment_bytes": (1 << 30) + 1},
        {"memtable_bytes": 0},
        {"disk_reserve_ratio": 1.0},
        {"disk_reserve_ratio": -0.1},
        {"disk_reserve_bytes_max": -1},
        {"expiry_keys_per_tick": 0},
    ],
)
def test_an_option_out_of_range_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(errors.BadOption) as caught:
        StoreOptions(**wrong)  # type: ignore[arg-type]
    assert caught.value.fields["option"] == next(iter(wrong))


# --- log and base store disagree ------------------------------------------------------------


@pytest.fixture
def three_records() -> CrashDisk:
    rig = StoreRig()
    store = rig.open()
    for version in (1, 2, 3):
        rig.put(store, skey(f"k{version}"), value(version))
    store.abandon()
    disk: CrashDisk = rig.disk
    return disk


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        (Mark(position=5, segment=1), "the log ends at record 3, the base store has 5"),
        (Mark(position=1, segment=9), "segment 9 is missing"),
    ],
)
def test_a_log_that_ends_before_the_base_store_is_refused(
    three_records: CrashDisk, mark: Mark, reason: str
) -> None:
    with pytest.raises(errors.CorruptLog, match=reason):
        StoreRig(three_records, Backing(mark=mark)).open()


def test_a_log_that_begins_after_the_base_store_is_refused() -> None:
    rig = StoreRig()
    store = rig.open(memtable_bytes=100)
    for version in range(1, 80):
        rig.put(store, skey(f"k{version}"), value(version, b"x" * 200))
        rig.settle()
    store.abandon()
    assert recovery.segment_numbers(rig.disk, WAL)[0] > 1
    with pytest.raises(errors.CorruptLog, match="the base store ends at 0"):
        StoreRig(rig.disk, Backing()).open()


def test_only_what_the_base_store_lacks_is_replayed(three_records: CrashDisk) -> None:
    rig = StoreRig(three_records, Backing(mark=Mark(position=2, segment=1, keys=2)))
    store = rig.open()
    assert contents(store) == {skey("k3"): value(3)}
    assert store.stats().recovered_records == 1


def test_files_that_are_no_segments_are_left_alone(three_records: CrashDisk) -> None:
    for name in ("readme.txt", "1.wal", "x00000000001.wal", "000000000001.wal.96.torn"):
        three_records.poke(f"{WAL}/{name}", b"mine")
    store = StoreRig(three_records).open()
    assert len(contents(store)) == 3
    assert three_records.read(f"{WAL}/readme.txt") == b"mine"


# --- bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["short", "cut", "long", "count"])
def test_a_payload_that_does_not_add_up_is_refused_although_its_checksum_is_right(change: str) -> None:
    rig = StoreRig()
    rig.open().abandon()
    path = recovery.segment_path(WAL, 1)
    header = segment.decode_header(rig.disk.read(path), path)
    whole = segment.encode_batch(0, 1, 0, {skey("k"): value(1)})
    payload = {
        "short": whole[:20],
        "cut": whole[:-1],
        "long": whole + b"x",
        "count": whole[:27] + b"\x02" + whole[28:],
    }[change]
    with pytest.raises(ValueError, match="batch"):
        segment.decode_batch(payload)
    record, _ = segment.encode_record(payload, sequence=1, synced=0, salt_crc=header.salt_crc)
    rig.disk.poke(path, header.encode() + record)
    with pytest.raises(errors.CorruptLog, match="batch"):
        rig.open()


def test_a_frame_of_an_unknown_type_is_no_record() -> None:
    record, _ = segment.encode_record(b"payload", sequence=1, synced=0, salt_crc=5)
    for at, byte in ((4, 2), (5, 1), (6, 1), (7, 1)):
        changed = bytearray(record)
        changed[at] = byte
        changed[28:32] = segment.crc32(bytes(changed[:28]), 5).to_bytes(4, "big")
        assert segment.decode_frame(bytes(changed), 0, 5) is None
    assert segment.decode_frame(record, 0, 5) is not None


def test_a_record_in_another_place_is_no_record() -> None:
    """Misdirected writes: another segment's salt, another record's header."""
    record, crc = segment.encode_record(b"payload", sequence=1, synced=0, salt_crc=5)
    assert segment.decode_frame(record, 0, 6) is None
    other, _ = segment.encode_record(b"payload", sequence=2, synced=0, salt_crc=5)
    assert other[32:] == record[32:]
    assert other[24:28] != crc.to_bytes(4, "big"), "the same payload has another checksum there"


@pytest.mark.parametrize("length", range(17))
def test_a_whole_record_never_ends_in_zero(length: int) -> None:
    record, _ = segment.encode_record(bytes(length), sequence=1, synced=0, salt_crc=5)
    assert len(record) % segment.ALIGNMENT == 0
    assert len(record) == segment.record_end(0, length)
    assert record[-1] != 0


# --- memtable -----------------------------------------------------------------------------


def filled(count: int) -> tuple[Memtable, dict[bytes, bytes]]:
    table = Memtable()
    batch = {skey(f"k{n * 7919 % count:05}"): value(n + 1, expires_ms=NOW + n) for n in range(count)}
    table.absorb(batch, 0)
    return table, batch


def test_a_large_partition_is_sorted_in_runs_and_comes_out_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memtable, "RUN_KEYS", 50)
    table, batch = filled(1_000)
    chunks = []
    for chunk in table.in_order(64, 1 << 20):
        chunks.append(chunk)
        # A scan between two steps must not disturb it.
        table.scan(b"", b"\xff", limit=3, bytes_max=1 << 20)
    assert sum(not chunk for chunk in chunks) == 20, "others get a turn after each run"
    assert max(map(len, chunks)) <= 64
    assert [pair for chunk in chunks for pair in chunk] == sorted(batch.items())


def test_chunks_are_bounded_in_bytes() -> None:
    table, batch = filled(20)
    size = len(next(iter(batch.values())))
    assert [len(chunk) for chunk in table.in_order(100, 5 * size)] == [5, 5, 5, 5]


def test_a_table_dissolves_in_steps() -> None:
    table, _ = filled(1_000)
    table.retired = [b"x"] * 300
    steps = 1
    while table.dissolve(100):
        steps += 1
        assert sum(map(len, table.shards.values())) == 1_000 - 100 * (steps - 1)
    assert steps == 10
    assert (table.shards, table.due, table.retired) == ({}, [], [])


def test_due_keys_come_in_order_and_once() -> None:
    table, _ = filled(100)
    first = table.pop_due(NOW + 49, 30)
    second = table.pop_due(NOW + 49, 30)
    assert (len(first), len(second)) == (30, 20)
    assert first + second == sorted(first + second)
    assert table.pop_due(NOW + 49, 30) == []
    assert len(table.due) == 50


def test_a_record_that_ends_with_the_one_it_replaces_is_waited_for_once() -> None:
    table, key = Memtable(), skey("k")
    for version in range(1, 50):
        table.absorb({key: value(version, expires_ms=NOW + 9)}, 1)
    assert len(table.due) == 1
    table.absorb({key: value(50, expires_ms=NOW + 5)}, 1)
    assert len(table.due) == 2
    assert len(table.pop_due(NOW + 9, 10)) == 2
    # It came late: nobody waits for it any more.
    table.absorb({key: value(51, expires_ms=NOW + 5)}, 1)
    assert len(table.pop_due(NOW + 9, 10)) == 1


def test_a_caller_that_distrusts_its_clock_expires_nothing() -> None:
    rig = StoreRig()
    store = rig.open()
    rig.put(store, skey("k"), value(1, expires_ms=NOW))
    assert store.tick(NOW + 99, expire=False) == 0
    assert store.get(skey("k")) == value(1, expires_ms=NOW)
    assert store.tick(NOW + 99) == 1


def test_a_store_without_anybody_to_tell_still_says_no(three_records: CrashDisk) -> None:
    rig = StoreRig(three_records)
    store = rig.open()
    store._on_failure = None
    rig.disk.fail[("write", "")] = OSError(5, "Input/output error")
    with pytest.raises(errors.Crashed):
        rig.put(store, skey("k"), value(9))
    assert store.failed is not None
    assert store.stats().batches == 1
    assert rig.disk.exists(DIR)


# --- pages --------------------------------------------------------------------------------


def test_a_page_ends_where_the_shortest_of_its_sources_was_cut() -> None:
    """Else a key between the end of one source and a later key of another would be skipped."""
    cut = ([(b"a", b"x" * 90), (b"b", b"x" * 90)], True)
    whole = ([(b"a", b"y"), (b"z", b"y")], False)
    assert merge_pages([cut, whole], limit=9, bytes_max=150) == ([(b"a", b"y"), (b"b", b"x" * 90)], True)
    assert merge_pages([whole, (cut[0], False)], limit=9, bytes_max=999)[1] is False
    assert merge_pages([([], False), whole], limit=1, bytes_max=999) == ([(b"a", b"y")], True)
