"""The base store on LMDB: memory-mapped, in key order, copy on write, whole after any crash.

    records   skey                       -> crc32(skey, record) u32 | record
    expiry    expires_ms u64 | skey      -> nothing
    meta      "mark"                     -> format u16 | six u64 | owner 18 bytes | crc32 u32

Rules kept here:
- the environment is opened without LMDB's own locks: the directory's lock keeps other processes out,
  and one writer and one reader work in turn. That also allows what the flush needs, a transaction
  that is filled on the loop and committed by a thread. Without its reader table LMDB keeps the pages
  of the newest snapshot and of the one before it; the reader moves on with every commit (`adopt`),
  so it never looks at an older one;
- a commit syncs data before it writes the meta page but leaves that page unsynced; a crash can undo the
  newest commit, never break an older one. The commit that carries a mark is followed by a full sync;
- LMDB has no checksums: every record is checked when it is read, because a flipped bit in a version
  would win every merge and spread to the other replicas;
- the map is sparse and much larger than the file; it doubles when it is reached.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import lmdb

from kvstore import errors
from kvstore.storage.engine import Full, Grow, Mark, expiry_key
from kvstore.types import Kind

MAP_BYTES = 64 << 30
"""Address space, not memory. Pages of the file are only made when they are written."""
FORMAT = 1
_MARK = struct.Struct(">HQQQQQQ18sI")
_NO_OWNER = bytes(18)
_MARK_KEY = b"mark"
_CRC_BYTES = 4
_ZERO8 = bytes(8)
_TOMBSTONE = int(Kind.TOMBSTONE)
_crc32 = zlib.crc32


class LmdbEngine:
    """An `Engine` in a directory of the real disk."""

    __slots__ = ("_env", "_expiry", "_map_bytes", "_meta", "_path", "_read", "_reader", "_records", "_writer")

    def __init__(self, path: str, *, map_bytes: int = MAP_BYTES) -> None:
        self._path = path
        self._map_bytes = map_bytes
        self._env: Any = None
        self._records: Any = None
        self._expiry: Any = None
        self._meta: Any = None
        self._reader: Any = None
        self._read: Callable[[bytes], bytes | None] = lambda _skey: None
        self._writer: Any = None

    @property
    def outlives_process(self) -> bool:
        """It is a file."""
        return True

    def open(self) -> None:
        """Open or create. Blocks. Raises DataDirUnusable or DataDirFormat."""
        try:
            self._env = lmdb.open(
                self._path,
                map_size=self._map_bytes,
                max_dbs=3,
                mode=0o600,
                lock=False,
                metasync=False,
                # Reads are of single keys, all over a file that may be larger than memory.
                readahead=False,
            )
            self._records = self._env.open_db(b"records")
            self._expiry = self._env.open_db(b"expiry")
            self._meta = self._env.open_db(b"meta")
        except lmdb.Error as error:
            raise errors.DataDirUnusable(path=self._path, reason=str(error)) from error
        self._begin_reading()
        self.mark()

    def _begin_reading(self) -> None:
        self._reader = self._env.begin(db=self._records)
        self._read = self._reader.get

    def mark(self) -> Mark:
        """What the last adopted slice with a mark said. Raises DataDirUnusable or DataDirFormat."""
        data = self._reader.get(_MARK_KEY, db=self._meta)
        if data is None:
            return Mark()
        if len(data) >= 2 and data[:2] != FORMAT.to_bytes(2, "big"):
            raise errors.DataDirFormat(
                path=self._path, found=int.from_bytes(data[:2], "big"), supported=FORMAT
            )
        if len(data) != _MARK.size or _crc32(data[:-4]).to_bytes(4, "big") != data[-4:]:
            raise errors.DataDirUnusable(path=self._path, reason="the mark of the base store is damaged")
        _, *numbers, owner, _ = _MARK.unpack(data)
        return replace(Mark(*numbers), owner=b"" if owner == _NO_OWNER else owner)

    # --- reading ------------------------------------------------------------------------

    def get(self, skey: bytes) -> bytes | None:
        """The record under a key. Raises DamagedRecord."""
        value = self._read(skey)
        return None if value is None else _check(skey, value)

    def scan(
        self, start: bytes, stop: bytes, *, limit: int, bytes_max: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Records from `start` up to, not with, `stop`; see `Engine.scan`. Raises DamagedRecord."""
        page: list[tuple[bytes, bytes]] = []
        size = 0
        with self._reader.cursor() as cursor:
            if not cursor.set_range(start):
                return page, False
            for skey, value in cursor.iternext(keys=True, values=True):
                if skey >= stop:
                    break
                if len(page) >= limit or size >= bytes_max:
                    return page, True
                page.append((skey, _check(skey, value)))
                size += len(value) - _CRC_BYTES
        return page, False

    def due(self, after: bytes, until_ms: int, limit: int) -> list[bytes]:
        """Expiry keys behind `after`, not later than `until_ms`."""
        bound = (until_ms + 1).to_bytes(8, "big")
        found: list[bytes] = []
        with self._reader.cursor(db=self._expiry) as cursor:
            # The smallest key behind another one is that one and a zero byte.
            if limit <= 0 or not cursor.set_range(after + b"\0"):
                return found
            for key in cursor.iternext(keys=True, values=False):
                if key >= bound or len(found) >= limit:
                    break
                found.append(key)
        return found

    def first_due(self, after: bytes) -> bytes | None:
        """The first expiry key behind `after`."""
        with self._reader.cursor(db=self._expiry) as cursor:
            return bytes(cursor.key()) if cursor.set_range(after + b"\0") else None

    # --- writing ------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a slice. Raises Full, Grow or lmdb.Error, as do the next four."""
        assert self._writer is None
        self._writer = _translated(lambda: self._env.begin(write=True, db=self._records))

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Put records in ascending key order into the slice."""
        values = [(skey, _crc32(record, _crc32(skey)).to_bytes(4, "big") + record) for skey, record in pairs]
        expiring = [
            (expiry_key(record[8:16], skey), b"")
            for skey, record in pairs
            if record[8:16] != _ZERO8 and record[16] != _TOMBSTONE
        ]
        writer = self._writer

        def put() -> None:
            with writer.cursor() as cursor:
                cursor.putmulti(values)
            if expiring:
                with writer.cursor(db=self._expiry) as cursor:
                    cursor.putmulti(sorted(expiring))

        _translated(put)

    def retire(self, expiry_keys: Sequence[bytes], dropped: Sequence[bytes] = ()) -> None:
        """Take expiry keys out of the index, and records out."""
        writer = self._writer

        def retire() -> None:
            for skey in dropped:
                writer.delete(skey)
            for key in expiry_keys:
                writer.delete(key, db=self._expiry)

        _translated(retire)

    def seal(self, mark: Mark | None) -> Callable[[], None]:
        """End the slice; the job commits it, and with a mark syncs everything."""
        env, writer = self._env, self._writer
        if mark is not None:
            _translated(lambda: writer.put(_MARK_KEY, _encode_mark(mark), db=self._meta))
        self._writer = None  # not before: who is told to grow must abort it

        def job() -> None:
            _translated(writer.commit)
            if mark is not None:
                _translated(lambda: env.sync(True))

        return job

    def adopt(self) -> None:
        """Move the reader to the newest snapshot."""
        self._reader.abort()
        self._begin_reading()

    def abort(self) -> None:
        """Drop the slice that was begun, if any."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abort()

    def grow(self) -> None:
        """Double the map. The reader must let go of it meanwhile."""
        self._reader.abort()
        self._map_bytes = max(self._map_bytes, self._env.info()["map_size"]) * 2
        self._env.set_mapsize(self._map_bytes)
        self._begin_reading()

    # --- the rest -----------------------------------------------------------------------

    def leaves(self) -> int:
        """Pages that hold records."""
        return int(self._reader.stat(self._records)["leaf_pages"])

    def expiring(self) -> int:
        """Expiry keys held."""
        return int(self._reader.stat(self._expiry)["entries"])

    def size_bytes(self) -> int:
        """The part of the file that is in use or was."""
        return (int(self._env.info()["last_pgno"]) + 1) * int(self._env.stat()["psize"])

    def close(self) -> None:
        """Give everything back; harmless when not open."""
        env, self._env = self._env, None
        if env is not None:
            self.abort()
            if self._reader is not None:
                self._reader.abort()
            env.close()


def _check(skey: bytes, value: bytes) -> bytes:
    record = value[_CRC_BYTES:]
    if _crc32(record, _crc32(skey)).to_bytes(4, "big") != value[:_CRC_BYTES]:
        raise errors.DamagedRecord(key=skey[2:])
    return record


def _encode_mark(mark: Mark) -> bytes:
    numbers = (mark.position, mark.segment, mark.highest_version, mark.ceiling, mark.keys, mark.tombstones)
    bare = _MARK.pack(FORMAT, *numbers, mark.owner, 0)[:-4]
    return bare + _crc32(bare).to_bytes(4, "big")


def _translated(step: Callable[[], Any]) -> Any:
    """Run a step; LMDB's words for "no room" become ours."""
    try:
        return step()
    except lmdb.MapFullError as error:
        raise Grow(str(error)) from error
    except lmdb.DiskError as error:
        raise Full(str(error)) from error
