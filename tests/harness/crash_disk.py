"""A disk in memory that forgets what was not synced, and a worker that is stepped by hand.

`CrashDisk.crash` returns the disk as the next process finds it: synced bytes stay; of each write
that was not synced nothing, all, a first part, or any of its sectors arrives; names exist only if their
directory was synced. `power_cut_at` cuts the power at the nth change, `fail` makes an operation raise.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

SECTOR = 512


class PowerCut(BaseException):
    """The machine is gone. Not an Exception: nothing may handle it."""


class _Inode:
    def __init__(self, path: str, data: bytes = b"") -> None:
        self.path = path
        """Where it is now: an open file follows a rename."""
        self.data = bytearray(data)
        self.durable = bytes(data)
        self.pending: list[tuple[int, bytes] | int] = []
        """Writes, and truncations as sizes, since the last sync."""


class CrashFile:
    """One handle."""

    def __init__(self, disk: CrashDisk, inode: _Inode) -> None:
        self._disk = disk
        self._inode = inode

    def write_at(self, offset: int, data: bytes) -> None:
        self._disk.change("write", self._inode.path)
        inode = self._inode
        if len(inode.data) < offset + len(data):
            inode.data.extend(bytes(offset + len(data) - len(inode.data)))
        inode.data[offset : offset + len(data)] = data
        inode.pending.append((offset, bytes(data)))

    def read_at(self, offset: int, size: int) -> bytes:
        return bytes(self._inode.data[offset : offset + size])

    def sync(self) -> None:
        self._disk.change("sync", self._inode.path)
        self._inode.durable = bytes(self._inode.data)
        self._inode.pending = []

    def size(self) -> int:
        return len(self._inode.data)

    def truncate(self, size: int) -> None:
        self._disk.change("truncate", self._inode.path)
        del self._inode.data[size:]
        self._inode.data.extend(bytes(size - len(self._inode.data)))
        self._inode.pending.append(size)

    def close(self) -> None:
        self._disk.open_handles -= 1


class CrashDisk:
    """A `ports.Files` with two layers: what processes see, and what a power cut leaves."""

    def __init__(self) -> None:
        self._seen: dict[str, _Inode] = {}
        self._durable: dict[str, _Inode] = {}
        self._dirs: set[str] = set()
        self._locks: set[str] = set()
        self.journal: list[tuple[str, str]] = []
        """Every change, in order."""
        self.power_cut_at: int | None = None
        self.fail: dict[tuple[str, str], OSError] = {}
        """(operation, end of the path) -> what it raises."""
        self.free = 1 << 40
        self.total = 1 << 40
        self.open_handles = 0

    def change(self, what: str, path: str) -> None:
        """Write a change down, unless something stops it."""
        if self.power_cut_at is not None and len(self.journal) >= self.power_cut_at:
            raise PowerCut
        for (operation, ending), error in self.fail.items():
            if operation == what and path.endswith(ending):
                raise error
        self.journal.append((what, path))

    # --- ports.Files --------------------------------------------------------------------

    def make_dir(self, path: str) -> None:
        if path not in self._dirs:
            self.change("make_dir", path)
            self._dirs.add(path)

    def list_dir(self, path: str) -> list[str]:
        return sorted(name.removeprefix(f"{path}/") for name in self._seen if name.rpartition("/")[0] == path)

    def exists(self, path: str) -> bool:
        return path in self._seen or path in self._dirs

    def create(self, path: str, preallocate: int = 0) -> CrashFile:
        if path in self._seen:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        self.change("create", path)
        self._seen[path] = _Inode(path, bytes(preallocate))
        self.open_handles += 1
        return CrashFile(self, self._seen[path])

    def open(self, path: str) -> CrashFile:
        if path not in self._seen:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        self.open_handles += 1
        return CrashFile(self, self._seen[path])

    def read(self, path: str) -> bytes:
        return bytes(self._seen[path].data)

    def write_atomic(self, path: str, data: bytes) -> None:
        self.change("write_atomic", path)
        self._seen[path] = self._durable[path] = _Inode(path, data)

    def rename(self, old: str, new: str) -> None:
        self.change("rename", new)
        self._seen[new] = self._seen.pop(old)
        self._seen[new].path = new

    def remove(self, path: str) -> None:
        self.change("remove", path)
        del self._seen[path]

    def sync_dir(self, path: str) -> None:
        self.change("sync_dir", path)
        here = {name: inode for name, inode in self._seen.items() if name.rpartition("/")[0] == path}
        gone = [name for name in self._durable if name.rpartition("/")[0] == path and name not in here]
        for name in gone:
            del self._durable[name]
        self._durable.update(here)

    def free_bytes(self, path: str) -> int:
        assert path
        return self.free

    def total_bytes(self, path: str) -> int:
        assert path
        return self.total

    def lock(self, path: str) -> Callable[[], None] | None:
        if path in self._locks:
            return None
        self._locks.add(path)
        return lambda: self._locks.discard(path)

    # --- the other side -----------------------------------------------------------------

    def poke(self, path: str, data: bytes) -> None:
        """Change what is on the disk, behind everybody's back."""
        self._seen[path] = self._durable[path] = _Inode(path, data)

    def copy(self) -> CrashDisk:
        """The same files, all of them durable, in a disk of their own."""
        other = CrashDisk()
        other._dirs = set(self._dirs)
        for path, inode in self._seen.items():
            other.poke(path, bytes(inode.data))
        return other

    def crash(self, dice: random.Random | None = None) -> CrashDisk:
        """What a power cut leaves. Without dice every unsynced write and name is lost."""
        other = CrashDisk()
        other._dirs = set(self._dirs)
        names = dict(self._durable)
        if dice is not None:
            for path in sorted(self._seen.keys() ^ self._durable.keys()):
                if dice.random() < 0.5:
                    names.pop(path, None)
                    if path in self._seen:
                        names[path] = self._seen[path]
        for path, inode in names.items():
            data = bytearray(inode.durable)
            for at, step in enumerate(inode.pending if dice is not None else []):
                _arrive(data, step, dice or random.Random(0), is_last=at == len(inode.pending) - 1)
            other.poke(path, bytes(data))
        return other


def _arrive(data: bytearray, step: tuple[int, bytes] | int, dice: random.Random, *, is_last: bool) -> None:
    """Let some of one unsynced write reach the disk.

    Sectors arrive as a whole, except that the newest write may stop at any byte.
    """
    if isinstance(step, int):
        if dice.random() < 0.5:
            del data[step:]
            data.extend(bytes(step - len(data)))
        return
    offset, written = step
    how = dice.randrange(4)
    if how == 0:
        return
    end = offset + (dice.randrange(len(written) + 1) if how == 2 and is_last else len(written))
    if len(data) < end:
        data.extend(bytes(end - len(data)))
    at = offset
    while at < end:
        border = min(at - at % SECTOR + SECTOR, end)
        if how != 3 or dice.random() < 0.5:
            data[at:border] = written[at - offset : border - offset]
        at = border


class HandWorker:
    """A `ports.Worker` whose jobs run when the test says so, on the test's thread."""

    def __init__(self) -> None:
        self._jobs: list[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = []
        self.closed = False

    def submit(self, job: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        assert not self.closed
        self._jobs.append((job, done))

    def step(self) -> bool:
        """Run the oldest job and deliver its answer; False when there is none."""
        if not self._jobs:
            return False
        job, done = self._jobs.pop(0)
        try:
            result = job()
        except Exception as error:  # noqa: BLE001  delivered, as a real worker does
            done(None, error)
        else:
            done(result, None)
        return True

    def run(self) -> None:
        """Run until nothing is left."""
        while self.step():
            pass

    def close(self) -> None:
        """Run what is there; as with a real worker whose loop stands still, nobody hears of it."""
        self.closed = True
        for job, _ in self._jobs:
            # The store wrote down itself how its job ended.
            with suppress(Exception):
                job()
        self._jobs = []
