"""A data directory belongs to one node of one cluster, and to one process at a time."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from crash_disk import CrashDisk
from store_rig import DIR, ME, WAL, StoreRig, skey, value

from kvstore import errors
from kvstore.core.topology import NodeInfo, Topology
from kvstore.io.disk import SystemFiles
from kvstore.storage import identity, recovery, segment
from kvstore.storage.engine import Mark
from kvstore.storage.identity import Identity
from kvstore.storage.lmdb_engine import LmdbEngine
from kvstore.storage.memory_engine import Backing
from kvstore.types import NodeId


def test_an_identity_is_made_once_and_kept() -> None:
    disk = CrashDisk()
    made = identity.load_or_create(disk, DIR, dice=random.Random(1), cluster_id="c1", node=NodeId(7))
    assert (made.cluster_id, made.node) == ("c1", 7)
    assert len(made.node_uuid) == len(made.secret) == 32
    assert identity.load_or_create(disk.crash(), DIR, dice=random.Random(2)) == made
    assert identity.load_or_create(disk, DIR, dice=random.Random(2), cluster_id="c1", node=NodeId(7)) == made
    assert identity.load(disk, DIR) == made
    assert "secret" not in str(made)
    assert made.secret not in str(made)


def test_a_new_directory_without_names_begins_a_cluster() -> None:
    made = identity.load_or_create(CrashDisk(), DIR, dice=random.Random(1))
    other = identity.load_or_create(CrashDisk(), DIR, dice=random.Random(2))
    assert made.node == 0
    assert made.cluster_id != other.cluster_id


@pytest.mark.parametrize("names", [{"cluster_id": "other"}, {"node": NodeId(8)}])
def test_another_cluster_or_node_is_refused(names: dict[str, object]) -> None:
    disk = CrashDisk()
    identity.load_or_create(disk, DIR, dice=random.Random(1), cluster_id="c1", node=NodeId(7))
    with pytest.raises(errors.DataDirForeign, match="belongs to node 7"):
        identity.load_or_create(disk, DIR, dice=random.Random(1), **names)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "stranger",
    [
        Identity("another", ME.node_uuid, ME.node, ME.secret),
        Identity(ME.cluster_id, "cd" * 16, ME.node, ME.secret),
        Identity(ME.cluster_id, ME.node_uuid, NodeId(4), ME.secret),
    ],
)
def test_a_store_refuses_a_directory_of_somebody_else_and_touches_nothing(stranger: Identity) -> None:
    rig = StoreRig()
    rig.open().close()
    before = len(rig.disk.journal)
    with pytest.raises(errors.DataDirForeign):
        rig.open(identity=stranger)
    assert rig.disk.journal[before:] == []
    rig.open().close()


@pytest.mark.parametrize(
    "stranger", [Identity("another", "u", NodeId(3), "aa"), Identity(ME.cluster_id, "u", NodeId(4), "aa")]
)
def test_a_log_or_a_base_store_moved_under_another_name_is_refused(stranger: Identity) -> None:
    """RELIABILITY 2.3 rule 8: the parts of a directory must name the same cluster and node."""
    rig = StoreRig()
    store = rig.open()
    rig.put(store, skey("k"), value(1))
    store.abandon()
    rig.disk.remove(f"{DIR}/identity.json")
    fresh = StoreRig(rig.disk.copy(), Backing())
    with pytest.raises(errors.DataDirForeign) as caught:
        fresh.open(identity=stranger)
    assert caught.value.fields["path"].endswith(".wal")
    with pytest.raises(errors.DataDirForeign) as caught:
        StoreRig(CrashDisk(), Backing(mark=Mark(owner=b"x" * 18))).open()
    assert caught.value.fields["path"].endswith("base")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"format": 2, "cluster": "c"}', errors.DataDirFormat),
        ("not json", errors.DataDirUnusable),
        ("[1]", errors.DataDirUnusable),
        ("{}", errors.DataDirUnusable),
        ('{"format": 1, "cluster": 5, "uuid": "u", "node": 1, "secret": ""}', errors.DataDirUnusable),
        ('{"format": 1, "cluster": "c", "uuid": "u", "node": 5000, "secret": ""}', errors.DataDirUnusable),
        ('{"format": 1, "cluster": "c", "uuid": "u", "node": 1, "secret": "no hex"}', errors.DataDirUnusable),
    ],
)
def test_an_identity_that_cannot_be_read_is_refused(text: str, kind: type[errors.KVError]) -> None:
    rig = StoreRig()
    rig.disk.make_dir(DIR)
    rig.disk.poke(f"{DIR}/identity.json", text.encode())
    with pytest.raises(kind) as caught:
        rig.open()
    assert DIR in caught.value.message
    assert rig.disk.open_handles == 0


def test_a_segment_of_a_newer_format_is_refused() -> None:
    rig = StoreRig()
    rig.open().abandon()
    path = recovery.segment_path(WAL, 1)
    data = bytearray(rig.disk.read(path))
    data[9] = 2
    data[60:64] = segment.crc32(bytes(data[:60])).to_bytes(4, "big")
    rig.disk.poke(path, bytes(data))
    with pytest.raises(errors.DataDirFormat, match=r"2\.1"):
        rig.open()


def test_a_segment_under_another_number_is_refused() -> None:
    rig = StoreRig()
    rig.open().abandon()
    rig.disk.rename(recovery.segment_path(WAL, 1), recovery.segment_path(WAL, 2))
    with pytest.raises(errors.CorruptLog, match="says it is segment 1"):
        rig.open()


def test_what_an_earlier_process_left_half_made_is_swept_away() -> None:
    rig = StoreRig()
    rig.open().abandon()
    for name in ("spare", "fresh", "something.tmp"):
        rig.disk.poke(f"{WAL}/{name}", b"half")
    rig.open().abandon()
    assert [name for name in rig.disk.list_dir(WAL) if not name.endswith(".wal")] == []


def test_the_names_of_all_parts_are_durable_before_anything_is_acknowledged() -> None:
    rig = StoreRig()
    rig.open().abandon()
    synced = [path for what, path in rig.disk.journal if what == "sync_dir"]
    assert {DIR, WAL, f"{DIR}/base"} <= set(synced)


def test_restarts_without_writes_leave_one_segment() -> None:
    rig = StoreRig()
    for _ in range(5):
        rig.open().abandon()
    assert len(recovery.segment_numbers(rig.disk, WAL)) == 1
    store = rig.open()
    rig.put(store, skey("k"), value(1))
    store.abandon()
    for _ in range(5):
        rig.open().abandon()
    assert len(recovery.segment_numbers(rig.disk, WAL)) == 2


# --- the operating system objects -----------------------------------------------------------


def open_at(path: Path, directory: str | None = None) -> None:
    where = directory or str(path)
    StoreRig(SystemFiles()).open(engine=LmdbEngine(f"{where}/base"), directory=where).close()


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(errors.DataDirUnusable, match="exists"):
        open_at(tmp_path / "data")
    with pytest.raises(errors.DataDirUnusable, match="not a directory"):
        open_at(tmp_path / "data" / "inner")


@pytest.mark.parametrize("operation", ["make_dir", "write_atomic", "create", "write", "sync", "sync_dir"])
def test_a_directory_that_cannot_be_written(operation: str) -> None:
    rig = StoreRig()
    rig.disk.fail[(operation, "")] = PermissionError(13, "Permission denied")
    with pytest.raises(errors.DataDirUnusable, match="permission denied") as caught:
        rig.open()
    assert "belongs to this user" in caught.value.one_line()
    rig.disk.fail.clear()
    rig.open().close()


def test_a_base_store_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "data.mdb").write_bytes(b"no database" * 1_000)
    with pytest.raises(errors.DataDirUnusable, match="base"):
        open_at(tmp_path)


@pytest.mark.parametrize(("at", "kind"), [(1, errors.DataDirFormat), (20, errors.DataDirUnusable)])
def test_a_mark_of_the_base_store_that_is_newer_or_damaged(
    tmp_path: Path, at: int, kind: type[errors.KVError]
) -> None:
    open_at(tmp_path)
    data = (tmp_path / "base" / "data.mdb").read_bytes()
    mark = b"mark" + b"\x00\x01" + bytes(7)
    places = [n for n in range(len(data)) if data.startswith(mark, n)]
    assert places
    damaged = bytearray(data)
    for place in places:
        damaged[place + 4 + at] += 1
    (tmp_path / "base" / "data.mdb").write_bytes(bytes(damaged))
    with pytest.raises(kind):
        open_at(tmp_path)


@pytest.mark.slow
def test_two_processes_on_one_directory_exclude_each_other(tmp_path: Path) -> None:
    script = (
        "import sys; from kvstore.io.disk import SystemFiles; from kvstore.storage import identity\n"
        f"identity.lock(SystemFiles(), {str(tmp_path)!r}); print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(errors.DataDirInUse, match="in use by another node"):
            open_at(tmp_path)
        # However it ends, its lock ends with it.
        other.kill()
        other.wait()
        open_at(tmp_path)


def test_an_open_that_fails_gives_everything_back() -> None:
    rig = StoreRig()
    rig.open().abandon()
    data = bytearray(rig.disk.read(recovery.segment_path(WAL, 1)))
    data[3] ^= 1
    rig.disk.poke(recovery.segment_path(WAL, 1), bytes(data))
    for _ in range(2):
        with pytest.raises(errors.CorruptLog):
            rig.open()
    assert rig.disk.open_handles == 0


# --- topology -----------------------------------------------------------------------------


def test_a_topology_is_kept_whole() -> None:
    disk = CrashDisk()
    disk.make_dir(DIR)
    assert identity.load_topology(disk, DIR) is None
    nodes = [NodeInfo(NodeId(n), f"{n:032x}", f"n{n}", "127.0.0.1", 7401 + n, 7501 + n) for n in range(3)]
    topology = Topology.create("ab" * 16, nodes, partitions=16)
    identity.save_topology(disk, DIR, topology)
    assert identity.load_topology(disk.crash(), DIR) == topology


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"epoch": 1}', b"\xff"])
def test_a_topology_that_cannot_be_read_is_refused(data: bytes) -> None:
    disk = CrashDisk()
    disk.poke(f"{DIR}/topology.json", data)
    with pytest.raises(errors.DataDirUnusable, match="topology"):
        identity.load_topology(disk, DIR)


def test_the_secret_is_in_the_salts() -> None:
    """A client who could foresee a salt could write values that look like records of the log."""
    salts = set()
    for secret in ("aa" * 16, "bb" * 16):
        rig = StoreRig()
        rig.open(identity=Identity(ME.cluster_id, ME.node_uuid, ME.node, secret)).abandon()
        salts.add(recovery.read_header(rig.disk, recovery.segment_path(WAL, 1), 1).salt)
    assert len(salts) == 2
