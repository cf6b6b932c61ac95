"""What every `ports.Files` must do, real or imagined.

A new one joins by one line in `WORLDS`: a name, and a function that takes a temporary directory and
returns the files and the directory to use in them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_disk import CrashDisk

from kvstore.io.disk import SystemFiles
from kvstore.ports import Files
from kvstore.sim.disk import SimFiles

World = tuple[Files, str]


def _system(tmp_path: Path) -> World:
    return SystemFiles(), str(tmp_path)


def _crash_disk(_: Path) -> World:
    disk = CrashDisk()
    disk.make_dir("/root")
    return disk, "/root"


def _sim(_: Path) -> World:
    files = SimFiles(random.Random(1))
    files.make_dir("/root")
    return files, "/root"


WORLDS: dict[str, Callable[[Path], World]] = {"system": _system, "crash_disk": _crash_disk, "sim": _sim}


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return WORLDS[request.param](tmp_path)


def test_bytes_written_at_a_place_are_read_at_that_place(world: World) -> None:
    files, root = world
    file = files.create(f"{root}/f")
    file.write_at(0, b"hello world")
    file.write_at(6, b"there")
    assert file.read_at(0, 100) == b"hello there"
    assert file.read_at(6, 3) == b"the"
    assert file.read_at(11, 5) == b""
    assert file.size() == 11
    file.sync()
    file.close()
    assert files.read(f"{root}/f") == b"hello there"


def test_a_hole_reads_as_zeros(world: World) -> None:
    files, root = world
    file = files.create(f"{root}/f")
    file.write_at(4, b"x")
    assert file.read_at(0, 9) == b"\0\0\0\0x"
    file.close()


def test_reserved_space_is_zeros_of_the_size_asked_for(world: World) -> None:
    files, root = world
    file = files.create(f"{root}/f", 3_000_001)
    assert file.size() == 3_000_001
    assert file.read_at(0, 3_000_001) == bytes(3_000_001)
    file.write_at(10, b"abc")
    assert file.size() == 3_000_001
    file.close()


def test_truncate_cuts_and_extends_with_zeros(world: World) -> None:
    files, root = world
    file = files.create(f"{root}/f")
    file.write_at(0, b"abcdef")
    file.truncate(3)
    assert file.read_at(0, 9) == b"abc"
    file.truncate(5)
    assert file.read_at(0, 9) == b"abc\0\0"
    file.close()


def test_create_refuses_what_exists_and_open_what_does_not(world: World) -> None:
    files, root = world
    files.create(f"{root}/f").close()
    with pytest.raises(FileExistsError):
        files.create(f"{root}/f")
    with pytest.raises(FileNotFoundError):
        files.open(f"{root}/g")
    again = files.open(f"{root}/f")
    again.write_at(0, b"x")
    assert again.read_at(0, 5) == b"x"
    again.close()


def test_list_dir_is_sorted_and_of_this_directory_alone(world: World) -> None:
    files, root = world
    files.make_dir(f"{root}/sub")
    files.make_dir(f"{root}/sub")
    for name in ("b", "a", "c"):
        files.create(f"{root}/{name}").close()
    files.create(f"{root}/sub/inner").close()
    assert [name for name in files.list_dir(root) if name != "sub"] == ["a", "b", "c"]
    assert files.list_dir(f"{root}/sub") == ["inner"]
    assert files.exists(f"{root}/sub")
    assert files.exists(f"{root}/a")
    assert not files.exists(f"{root}/z")


def test_rename_replaces_and_an_open_file_follows(world: World) -> None:
    files, root = world
    old = files.create(f"{root}/old")
    old.write_at(0, b"old")
    files.create(f"{root}/new").close()
    files.rename(f"{root}/old", f"{root}/new")
    assert not files.exists(f"{root}/old")
    old.write_at(3, b"er")
    assert files.read(f"{root}/new") == b"older"
    old.close()


def test_remove_removes(world: World) -> None:
    files, root = world
    files.create(f"{root}/f").close()
    files.remove(f"{root}/f")
    files.sync_dir(root)
    assert files.list_dir(root) == []


def test_write_atomic_replaces_a_file_as_a_whole(world: World) -> None:
    files, root = world
    for data in (b"first and longer", b"second", b""):
        files.write_atomic(f"{root}/f", data)
        assert files.read(f"{root}/f") == data
    assert files.list_dir(root) == ["f"], "nothing temporary is left"


def test_a_lock_excludes_until_it_is_released(world: World) -> None:
    files, root = world
    release = files.lock(f"{root}/lock")
    assert release is not None
    assert files.lock(f"{root}/lock") is None
    other = files.lock(f"{root}/other")
    assert other is not None
    release()
    again = files.lock(f"{root}/lock")
    assert again is not None
    again()
    other()


def test_free_space_is_part_of_the_whole(world: World) -> None:
    files, root = world
    assert 0 <= files.free_bytes(root) <= files.total_bytes(root)
