"""The real disk: `ports.Files` over the operating system.

Rules kept here:
- a write is all or an error: short writes are continued;
- space is reserved by writing zeros, not by `fallocate`: a first write into reserved but never
  written space changes the file's map of extents, so its fdatasync waits for the file system's
  journal as well (measured on ext4, 16 KiB appends: 100 µs against 160 µs, and 180 µs without any
  reservation; the zeros of a 64 MiB segment cost 35 ms, ahead of need and off the loop);
- a lock is `flock`, which belongs to the open file: two nodes in one process exclude each other
  as two processes do, and the kernel drops it when the process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from kvstore.ports import File

_CHUNK = bytes(1 << 20)
_FILE_MODE = 0o600
_DIR_MODE = 0o700
# macOS has no fdatasync; its fsync is the nearest.
_sync_data = getattr(os, "fdatasync", os.fsync)


class SystemFile:
    """One open file descriptor. Not shared between threads at the same time."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`. Raises OSError; part may then be written."""
        written = os.pwrite(self._fd, data, offset)
        while written < len(data):
            written += os.pwrite(self._fd, memoryview(data)[written:], offset + written)

    def read_at(self, offset: int, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end of the file."""
        parts = []
        while size > 0:
            part = os.pread(self._fd, size, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def sync(self) -> None:
        """Make everything written so far durable (fdatasync). An error is final: never retry."""
        _sync_data(self._fd)

    def size(self) -> int:
        """The file's length in bytes."""
        return os.fstat(self._fd).st_size

    def truncate(self, size: int) -> None:
        """Cut (or extend with zeros) to `size`."""
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        """Give the handle back. Does not sync."""
        os.close(self._fd)


class SystemFiles:
    """The directory tree of this machine."""

    __slots__ = ()

    def make_dir(self, path: str) -> None:
        """Create a directory and its parents, mode 0700; no error if it exists.

        Each new one is synced into its parent: a node's data must not vanish with the name of its
        directory.
        """
        missing: list[Path] = []
        at = Path(path)
        while not at.exists():
            missing.append(at)
            at = at.parent
        for new in reversed(missing):
            new.mkdir(mode=_DIR_MODE, exist_ok=True)
            self.sync_dir(str(new.parent))
        # Raises if what is there is no directory.
        Path(path).mkdir(exist_ok=True)

    def list_dir(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        return sorted(entry.name for entry in Path(path).iterdir())

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        return os.path.lexists(path)

    def create(self, path: str, preallocate: int = 0) -> File:
        """Make a new file, mode 0600, with `preallocate` zeros in it. Fails if it exists.

        Synced chunk by chunk: one sync of it all holds those of the log up for as long as it takes.
        """
        file = SystemFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE))
        try:
            for offset in range(0, preallocate, len(_CHUNK)):
                file.write_at(offset, _CHUNK[: preallocate - offset])
                file.sync()
        except OSError:
            # A full disk: what was taken is given back at once, for whoever deletes.
            file.close()
            Path(path).unlink()
            raise
        return file

    def open(self, path: str) -> File:
        """Open an existing file for reading and writing."""
        return SystemFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def read(self, path: str) -> bytes:
        """Return all of a file."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return SystemFile(fd).read_at(0, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def write_atomic(self, path: str, data: bytes) -> None:
        """Replace a file as a whole: temporary, sync, rename, sync the directory."""
        temporary = f"{path}.tmp"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
        try:
            SystemFile(fd).write_at(0, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        Path(temporary).rename(path)
        self.sync_dir(str(Path(path).parent))

    def rename(self, old: str, new: str) -> None:
        """Move a file within the tree; durable only after `sync_dir`."""
        Path(old).rename(new)

    def remove(self, path: str) -> None:
        """Delete a file; durable only after `sync_dir`."""
        Path(path).unlink()

    def sync_dir(self, path: str) -> None:
        """Make creations, renames and removals in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: str) -> int:
        """Space left for us on the disk that holds `path`."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def total_bytes(self, path: str) -> int:
        """Size of the disk that holds `path`."""
        status = os.statvfs(path)
        return status.f_blocks * status.f_frsize

    def lock(self, path: str) -> Callable[[], None] | None:
        """Take an exclusive lock file; return its release, or None when another holds it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise

        def release() -> None:
            # The file stays: deleting it would let a third process lock a new file of that name
            # while a second still waits on the old one.
            os.close(fd)

        return release
