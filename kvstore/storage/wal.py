"""The write-ahead log: numbers and bytes are made on the loop, files are touched by jobs.

Rules kept here:
- one record, one write, one fdatasync: what `append` returns is the whole of a group commit;
- a new segment is written with its header, synced, renamed into place, and its directory synced,
  before the first record goes into it; the one before it is synced first, so that only the last
  segment of a log can end in an unfinished write;
- an error of any of these is final: the caller must not append again.

The next segment is reserved ahead of use (`keep_spare`, on another worker), because reserving takes
as long as hundreds of commits; and step by step, because those commits want the same disk.
"""

from __future__ import annotations

from collections.abc import Callable

from kvstore.ports import File, Files, Worker
from kvstore.storage import segment
from kvstore.storage.recovery import Owner, Recovered, SegmentFile, segment_path
from kvstore.storage.segment import SegmentHeader

_FRESH = "fresh"
"""A segment that is being made because it is needed now."""
_SPARE = "spare"
"""One that was reserved ahead of need. Another name, for both can be made at once."""
RESERVE_STEP_BYTES = 1 << 20
"""Zeros written and synced at once."""
_ZEROS = bytes(RESERVE_STEP_BYTES)
Job = Callable[[], None]


def sweep(files: Files, directory: str) -> None:
    """Remove what an earlier process left half made. At start, before anything is written."""
    for name in files.list_dir(directory):
        if name in (_FRESH, _SPARE) or name.endswith(".tmp"):
            files.remove(f"{directory}/{name}")


class _Tape:
    """The segment being written. Belongs to whoever runs the jobs."""

    __slots__ = ("file", "files")

    def __init__(self, files: Files) -> None:
        self.files = files
        self.file: File | None = None

    def begin(self, directory: str, header: SegmentHeader, size: int, spare: File | None) -> None:
        """Switch to a new segment, to the reserved file if there is one."""
        if self.file is not None:
            self.file.sync()
            self.file.close()
            self.file = None
        path = f"{directory}/{_FRESH if spare is None else _SPARE}"
        self.file = spare if spare is not None else self.files.create(path, size)
        self.file.write_at(0, header.encode())
        self.file.sync()
        self.files.rename(path, segment_path(directory, header.number))
        self.files.sync_dir(directory)

    def write(self, offset: int, data: bytes) -> None:
        assert self.file is not None
        self.file.write_at(offset, data)

    def sync(self) -> None:
        assert self.file is not None
        self.file.sync()


class Log:
    """The end of the log. Methods are called on the loop; the jobs they return on the log worker."""

    def __init__(
        self, *, files: Files, directory: str, owner: Owner, segment_bytes: int, recovered: Recovered
    ) -> None:
        self._files = files
        self._directory = directory
        self._owner = owner
        self._segment_bytes = segment_bytes
        self._segments = list(recovered.kept)
        self._number = recovered.number
        self._chain = recovered.chain
        self._tape = _Tape(files)
        self._capacity = 0
        self._offset = 0
        self._salt_crc = 0
        self._spare: File | None = None
        self._spare_made: File | None = None
        """The one being reserved. Set by the job, so that a file nobody took is given back as well."""
        self._spare_bytes = 0
        """Reserved of it."""
        self._spare_asked = False
        self.standing = recovered.number
        """The newest segment that is there: that of the last job that ended well."""
        self.sequence = recovered.sequence
        """The last sequence number given out."""
        self.synced = recovered.sequence
        """The last one known to be synced; `confirm` raises it."""

    @property
    def number(self) -> int:
        """The segment being written."""
        return self._number

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self._segments) + 1

    def size_bytes(self) -> int:
        """Bytes of records that are kept, without the reserved rest of the last segment."""
        return sum(part.bytes for part in self._segments) + self._offset

    def begin(self) -> Job:
        """The job that makes the first segment of this process.

        A log is never appended to where it was recovered: recovered files do not change any more.
        """
        return self._rotate(0)

    def append(self, payload: bytes, *, sync: bool) -> Job:
        """The job that writes one record, and syncs it if asked."""
        size = segment.record_end(0, len(payload))
        begin = self._rotate(size) if self._offset + size > self._capacity else None
        self.sequence += 1
        data, self._chain = segment.encode_record(
            payload, sequence=self.sequence, synced=self.synced, salt_crc=self._salt_crc
        )
        offset, tape = self._offset, self._tape
        self._offset += size

        def job() -> None:
            if begin is not None:
                begin()
            tape.write(offset, data)
            if sync:
                tape.sync()

        return job

    def sync(self) -> Job:
        """The job that syncs what was written."""
        return self._tape.sync

    def landed(self) -> None:
        """The last job has ended well, and no other was asked for yet."""
        self.standing = self._number

    def confirm(self, sequence: int) -> None:
        """A job that synced everything up to `sequence` has ended well."""
        self.synced = max(self.synced, sequence)

    def _rotate(self, size: int) -> Job:
        """Begin the next segment, with room for a record of `size`."""
        if self._capacity:
            self._segments.append(SegmentFile(self._number, self.sequence, self._offset))
        self._number += 1
        first, chain, owner = self.sequence + 1, self._chain, self._owner
        salt = segment.make_salt(owner.secret, self._number, first, chain)
        header = SegmentHeader(self._number, first, owner.cluster, owner.node, salt, chain)
        self._salt_crc = header.salt_crc
        self._offset = segment.SEGMENT_HEADER_BYTES
        # A record larger than a segment gets a segment of its own size.
        self._capacity = max(self._segment_bytes, self._offset + size)
        spare, self._spare = self._spare, None
        if spare is not None:
            self._spare_asked, self._spare_bytes = False, 0
        tape, directory, capacity = self._tape, self._directory, self._capacity
        return lambda: tape.begin(directory, header, capacity, spare)

    # --- off the commit path ------------------------------------------------------------

    def keep_spare(self, worker: Worker, failed: Callable[[], None]) -> None:
        """Reserve some of the next segment on another worker; called with each commit.

        All of it is reserved while the third quarter of this one fills. `failed` is called on the loop when
        that did not work. The log has up to half a segment left then, and the next call tries again.
        """
        reserved, due = self._spare_bytes, 2 * (2 * self._offset - self._capacity)
        if self._spare_asked or due <= reserved or self.standing != self._number:
            return  # the spare that was taken last may still have its name
        self._spare_asked = True
        path, size = f"{self._directory}/{_SPARE}", self._segment_bytes
        step = min(max(due - reserved, RESERVE_STEP_BYTES), size - reserved)

        def job() -> None:
            if self._spare_made is None:
                self._spare_made = self._files.create(path, step)
            else:
                self._extend(self._spare_made, path, reserved, step)

        def done(_none: None, error: BaseException | None) -> None:
            if error is not None:
                self._spare_bytes, self._spare_asked = 0, False
                failed()
                return
            self._spare_bytes = reserved + step
            if self._spare_bytes < size:
                self._spare_asked = False
            else:
                self._spare, self._spare_made = self._spare_made, None

        worker.submit(job, done)

    def _extend(self, file: File, path: str, reserved: int, step: int) -> None:
        """Reserve more. What was taken is given back at once when the disk is full."""
        try:
            for offset in range(reserved, reserved + step, RESERVE_STEP_BYTES):
                file.write_at(offset, _ZEROS[: reserved + step - offset])
                file.sync()
        except OSError:
            self._spare_made = None
            file.close()
            self._files.remove(path)
            raise

    def release(self, position: int) -> Job | None:
        """The job that deletes segments which hold nothing after `position`, oldest first.

        The newest that stands stays: without any, recovery could not tell an end from a loss.
        """
        gone = [
            part for part in self._segments if part.last_sequence <= position and part.number < self.standing
        ]
        if not gone:
            return None
        self._segments = self._segments[len(gone) :]
        paths = [segment_path(self._directory, part.number) for part in gone]
        return lambda: remove_all(self._files, self._directory, paths)

    def close(self) -> None:
        """Close the files. Does not sync. After the workers have stopped."""
        for file in (self._tape.file, self._spare, self._spare_made):
            if file is not None:
                file.close()


def remove_all(files: Files, directory: str, paths: list[str]) -> None:
    """Delete files in order and sync their directory."""
    for path in paths:
        files.remove(path)
    if paths:
        files.sync_dir(directory)
