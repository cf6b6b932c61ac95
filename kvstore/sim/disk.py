"""A disk that keeps its promises and no more.

`ports.Files` in memory. What was written since the last sync may survive a crash whole, in part, or not
at all; so may names made, moved or removed since their directory was synced, though these in order, as
journals do. A fuse cuts the power in the middle of a chosen operation.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class PowerCutError(BaseException):
    """The fuse blew; not an Exception, because no code under test may catch it."""


class _Content:
    """One file: what is on the disk, and what was written since."""

    __slots__ = ("current", "durable", "pending")

    def __init__(self, size: int = 0) -> None:
        self.current = bytearray(size)
        self.durable = bytearray(size)
        self.pending: list[tuple[int, bytes | None]] = []
        """(offset, data), or (size, None) for a truncation."""


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        if offset < len(content):
            del content[offset:]
        else:
            content.extend(bytes(offset - len(content)))
        return
    if len(content) < offset + len(data):
        content.extend(bytes(offset + len(data) - len(content)))
    content[offset : offset + len(data)] = data


class SimFile:
    """`ports.File`."""

    __slots__ = ("_content", "_disk")

    def __init__(self, disk: SimFiles, content: _Content) -> None:
        self._disk = disk
        self._content = content

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of `data`; the fuse may blow after it, before it is synced."""
        self._disk.account(max(0, offset + len(data) - len(self._content.current)))
        _apply(self._content.current, offset, data)
        self._content.pending.append((offset, bytes(data)))
        self._disk.step()

    def read_at(self, offset: int, size: int) -> bytes:
        """Read."""
        return bytes(self._content.current[offset : offset + size])

    def sync(self) -> None:
        """Everything written is now on the disk. A disk that fails says so, and keeps nothing for sure."""
        self._disk.step()
        if self._disk.fail_syncs:
            raise OSError(errno.EIO, "Input/output error")
        for offset, data in self._content.pending:
            _apply(self._content.durable, offset, data)
        self._content.pending.clear()

    def size(self) -> int:
        """Length in bytes."""
        return len(self._content.current)

    def truncate(self, size: int) -> None:
        """Cut or extend."""
        self._disk.account(size - len(self._content.current))
        _apply(self._content.current, size, None)
        self._content.pending.append((size, None))

    def close(self) -> None:
        """Nothing to give back."""


class SimFiles:
    """`ports.Files` of one machine."""

    def __init__(self, dice: Any, *, capacity: int = 1 << 30) -> None:
        self._dice = dice
        self._names: dict[str, _Content] = {}
        self._durable: dict[str, _Content] = {}
        self._moves: list[tuple[str, str | None, str | None, _Content | None]] = []
        """Changes of names not synced: (directory, name gone, name new, content)."""
        self._dirs: set[str] = {"/"}
        self._locks: set[str] = set()
        self._used = 0
        self.capacity = capacity
        self.fuse = 0
        """Operations until the power is cut; 0: never."""
        self.refuse_writes = False
        """Every write that needs space fails, as on a full disk."""
        self.fail_syncs = False
        """Every sync of a file fails, as on a dying disk."""

    def step(self) -> None:
        """One operation; the fuse may blow here."""
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                raise PowerCutError

    def account(self, more: int) -> None:
        """Take space, or raise."""
        if more > 0 and (self.refuse_writes or self._used + more > self.capacity):
            raise OSError(errno.ENOSPC, "No space left on device")
        self._used += more

    def make_dir(self, path: str) -> None:
        """Create a directory and its parents."""
        parts = path.strip("/").split("/")
        self._dirs.update("/" + "/".join(parts[: count + 1]) for count in range(len(parts)))

    def list_dir(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        head = path.rstrip("/") + "/"
        if path not in self._dirs:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        names = {
            name[len(head) :].split("/")[0] for name in [*self._names, *self._dirs] if name.startswith(head)
        }
        return sorted(name for name in names if name)

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        return path in self._names or path in self._dirs

    def create(self, path: str, preallocate: int = 0) -> SimFile:
        """Make a new file."""
        if path in self._names:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        if _parent(path) not in self._dirs:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        self.account(preallocate)
        content = _Content(preallocate)
        self._move(path, None, path, content)
        return SimFile(self, content)

    def open(self, path: str) -> SimFile:
        """Open an existing file."""
        return SimFile(self, self._content(path))

    def read(self, path: str) -> bytes:
        """All of a file."""
        return bytes(self._content(path).current)

    def write_atomic(self, path: str, data: bytes) -> None:
        """Replace a file as a whole."""
        temporary = f"{path}.new"
        if temporary in self._names:
            self.remove(temporary)
        file = self.create(temporary)
        file.write_at(0, data)
        file.sync()
        self.rename(temporary, path)
        self.sync_dir(_parent(path))

    def rename(self, old: str, new: str) -> None:
        """Move a file; what had the new name gives its space back."""
        content, replaced = self._content(old), self._names.get(new)
        if replaced is not None and replaced is not content:
            self._used -= len(replaced.current)
        self._move(old, old, new, content)

    def remove(self, path: str) -> None:
        """Delete a file."""
        self._used -= len(self._content(path).current)
        self._move(path, path, None, None)

    def sync_dir(self, path: str) -> None:
        """Names in this directory are now on the disk."""
        self.step()
        later: list[tuple[str, str | None, str | None, _Content | None]] = []
        for move in self._moves:
            if move[0] == path:
                _rename(self._durable, move)
            else:
                later.append(move)
        self._moves = later

    def free_bytes(self, path: str) -> int:
        """Space left."""
        del path
        return 0 if self.refuse_writes else self.capacity - self._used

    def total_bytes(self, path: str) -> int:
        """Size of the disk."""
        del path
        return self.capacity

    def lock(self, path: str) -> Callable[[], None] | None:
        """Take a lock file; a crash releases it."""
        if path in self._locks:
            return None
        self._locks.add(path)
        return lambda: self._locks.discard(path)

    def crash(self, *, power: bool = True) -> None:
        """The process is gone; with its power: keep what is certain, and of the rest what the dice say."""
        self._locks.clear()
        self.fuse = 0
        if not power:
            return
        self.fuse = 0
        kept = self._dice.randrange(0, len(self._moves) + 1)
        for move in self._moves[:kept]:
            _rename(self._durable, move)
        self._moves.clear()
        for name in sorted(self._durable):
            self._settle(self._durable[name])
        self._names = dict(self._durable)
        self._used = sum(len(content.current) for content in self._names.values())

    def _settle(self, content: _Content) -> None:
        for offset, data in content.pending:
            lot = self._dice.random()
            if data is None:
                if lot < 0.5:
                    _apply(content.durable, offset, None)
            elif lot < 0.35:
                _apply(content.durable, offset, data)
            elif lot < 0.7 and data:
                torn = self._dice.randrange(0, len(data))
                _apply(content.durable, offset, data[:torn])
        content.pending.clear()
        content.current = bytearray(content.durable)

    def _content(self, path: str) -> _Content:
        content = self._names.get(path)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return content

    def _move(self, path: str, gone: str | None, new: str | None, content: _Content | None) -> None:
        move = (_parent(path), gone, new, content)
        _rename(self._names, move)
        self._moves.append(move)
        self.step()


def _rename(names: dict[str, _Content], move: tuple[str, str | None, str | None, _Content | None]) -> None:
    _, gone, new, content = move
    if gone is not None:
        names.pop(gone, None)
    if new is not None:
        assert content is not None
        names[new] = content


def _parent(path: str) -> str:
    return path.rsplit("/", 1)[0] or "/"


class SimWorker:
    """`ports.Worker`: jobs in order, each after a drawn latency, as callbacks of the process.

    A job is carried out within its latency and answered at the end of it, so a crash may fall before,
    into, or behind what the job does to the disk.
    """

    def __init__(
        self,
        loop: Any,
        dice: Any,
        files: SimFiles,
        *,
        on_power_cut: Callable[[], None],
        on_done: Callable[[], None],
        slowness: list[float],
    ) -> None:
        self._loop = loop
        self._dice = dice
        self._files = files
        self._on_power_cut = on_power_cut
        self._on_done = on_done
        self._slowness = slowness
        self._jobs: deque[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = deque()
        self._result: tuple[Any, BaseException | None] | None = None
        """Of the first job, once it was carried out and is not answered."""

    def submit(self, job: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Queue a job."""
        self._jobs.append((job, done))
        if len(self._jobs) == 1:
            self._begin()

    def close(self) -> None:
        """Do what was submitted, now."""
        while self._jobs:
            if self._result is not None or self._carry_out():
                self._answer()

    def power_lost(self) -> None:
        """The machine goes down: the job at hand gets as far as the dice say."""
        if self._jobs and self._result is None:
            job, _ = self._jobs[0]
            self._files.fuse = self._dice.randrange(4)
            if self._files.fuse:  # else it had not begun
                with suppress(PowerCutError, OSError):
                    job()
            self._files.fuse = 0
        self._jobs.clear()

    def _begin(self) -> None:
        latency = (0.0002 + self._dice.random() * 0.0006) * self._slowness[0]
        self._loop.call_later(latency * 0.7, self._job_due, self._jobs[0], latency * 0.3)

    def _job_due(self, first: Any, rest: float) -> None:
        if self._jobs and self._jobs[0] is first and self._result is None and self._carry_out():
            self._loop.call_later(rest, self._answer_due, first)

    def _answer_due(self, first: Any) -> None:
        if self._jobs and self._jobs[0] is first:
            self._answer()

    def _carry_out(self) -> bool:
        """Do the first job; False when the power went."""
        job, _ = self._jobs[0]
        try:
            self._result = job(), None
        except PowerCutError:
            self._jobs.clear()
            self._on_power_cut()
            return False
        except Exception as error:  # noqa: BLE001  as the thread of the real one
            self._result = None, error
        else:
            self._on_done()
        return True

    def _answer(self) -> None:
        assert self._result is not None
        (result, failure), self._result = self._result, None
        _, done = self._jobs.popleft()
        if self._jobs:
            self._begin()
        done(result, failure)
