"""The bytes of the write-ahead log: segment header, record frame, batch payload. Pure.

    segment := header (64 bytes) record* zeros
    record  := length u32 | type u8 | flags u8 | 0 u16 | sequence u64 | synced u64
               | payload_crc u32 | header_crc u32 | payload | 1 to 8 bytes 0xA5, up to a multiple of 8
    batch   := ceiling u64 | keys u64 | tombstones u64 | count u32 | entry*
    entry   := key_len u16 | record_len u32 | skey | record

All big-endian. docs/storage.md has the byte tables and a worked example that a test checks.

Rules kept here:
- `header_crc` covers the segment's salt and every field, so a flipped length is noticed before it
  is believed, and a record that a reused or misdirected block brings from elsewhere fails;
- `payload_crc` is seeded with the sequence number, so a payload under another record's header fails;
- one record is one group commit: it is there as a whole or not at all;
- a record ends in bytes that are not zero and space never written is zero, so a write that a crash
  cut short can be told from a record that was whole and got damaged (see `tail.py`);
- `synced` is the newest sequence number known to be synced when the record was made. It proves to
  recovery that a damaged record in front of this one had been acknowledged.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

from kvstore import errors

MAGIC = b"KVWALSEG"
FORMAT = 1
ALGORITHM_CRC32 = 1
"""zlib's CRC-32 (the polynomial of IEEE 802.3), the only one so far."""
TYPE_BATCH = 1

_SEGMENT = struct.Struct(">8sHHQQ16sH2xQII")
SEGMENT_HEADER_BYTES = _SEGMENT.size
assert SEGMENT_HEADER_BYTES == 64
_FRAME = struct.Struct(">IBBHQQII")
FRAME_BYTES = _FRAME.size
assert FRAME_BYTES == 32
_BATCH = struct.Struct(">QQQI")
BATCH_BYTES = _BATCH.size
_ENTRY = struct.Struct(">HI")
ENTRY_BYTES = _ENTRY.size

ALIGNMENT = 8
FILL = 0xA5
_FILLS = tuple(bytes([FILL]) * (ALIGNMENT - over) for over in range(ALIGNMENT))
FRAME_MARK = bytes((TYPE_BATCH, 0, 0, 0))
"""Bytes 4 to 8 of every frame: what a search for records looks for."""
FRAME_MARK_AT = 4

crc32 = zlib.crc32
pack_entry = _ENTRY.pack


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Who wrote a segment, where it stands in the log, and its salt."""

    number: int
    first_sequence: int
    cluster: bytes
    """16 bytes made of the cluster id."""
    node: int
    salt: int
    chain: int
    """`payload_crc` of the record before the first one; 0 for the first segment."""

    def encode(self) -> bytes:
        """The 64 bytes at the start of the file."""
        fields = (self.number, self.first_sequence, self.cluster, self.node, self.salt, self.chain)
        bare = _SEGMENT.pack(MAGIC, FORMAT, ALGORITHM_CRC32, *fields, 0)[:-4]
        return bare + crc32(bare).to_bytes(4, "big")

    @property
    def salt_crc(self) -> int:
        """What the CRC of every frame in this segment starts from."""
        return crc32(self.salt.to_bytes(8, "big"))


def decode_header(data: bytes, path: str) -> SegmentHeader:
    """Read a segment's first bytes. Raises CorruptLog, or DataDirFormat for a newer format."""
    if len(data) < SEGMENT_HEADER_BYTES:
        raise errors.CorruptLog(path=path, offset=len(data), reason="the file ends inside its header")
    magic, written, algorithm, *fields, crc = _SEGMENT.unpack_from(data)
    if magic != MAGIC:
        raise errors.CorruptLog(path=path, offset=0, reason="it does not begin like a log segment")
    if crc != crc32(data[: SEGMENT_HEADER_BYTES - 4]):
        raise errors.CorruptLog(path=path, offset=0, reason="the checksum of the segment header is wrong")
    if (written, algorithm) != (FORMAT, ALGORITHM_CRC32):
        raise errors.DataDirFormat(path=path, found=f"{written}.{algorithm}", supported=f"{FORMAT}.1")
    return SegmentHeader(*fields)


def make_salt(secret: bytes, number: int, first_sequence: int, chain: int) -> int:
    """A salt that nobody outside can foresee, and that no two segments share.

    Made of the node's secret instead of fresh dice, so that the log needs none and a run of the
    simulator repeats. `chain` keeps two histories of one log apart after a restored copy.
    """
    place = struct.pack(">QQI", number, first_sequence, chain)
    return int.from_bytes(hashlib.blake2b(place, key=secret[:64], digest_size=8).digest(), "big")


def cluster_fingerprint(cluster_id: str) -> bytes:
    """16 bytes for a cluster id of any spelling."""
    return hashlib.blake2b(cluster_id.encode(), digest_size=16).digest()


def payload_seed(sequence: int) -> int:
    """What the payload's CRC starts from."""
    return crc32(sequence.to_bytes(8, "big"))


def encode_record(payload: bytes, *, sequence: int, synced: int, salt_crc: int) -> tuple[bytes, int]:
    """Frame a payload; returns the bytes for the file and the payload's CRC."""
    payload_crc = crc32(payload, payload_seed(sequence))
    bare = _FRAME.pack(len(payload), TYPE_BATCH, 0, 0, sequence, synced, payload_crc, 0)[:-4]
    header_crc = crc32(bare, salt_crc).to_bytes(4, "big")
    return b"".join((bare, header_crc, payload, _FILLS[len(payload) % ALIGNMENT])), payload_crc


@dataclass(frozen=True, slots=True)
class Frame:
    """A record's header that passed its checksum."""

    offset: int
    length: int
    sequence: int
    synced: int
    payload_crc: int

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return record_end(self.offset, self.length)


def record_end(offset: int, length: int) -> int:
    """Where a record ends whose frame is at `offset` and whose payload has `length` bytes."""
    return offset + FRAME_BYTES + length + ALIGNMENT - length % ALIGNMENT


def decode_frame(data: bytes, offset: int, salt_crc: int) -> Frame | None:
    """The frame at `offset`, or None when there is no valid one."""
    bare = data[offset : offset + FRAME_BYTES - 4]
    if len(bare) < FRAME_BYTES - 4:
        return None
    if crc32(bare, salt_crc).to_bytes(4, "big") != data[offset + FRAME_BYTES - 4 : offset + FRAME_BYTES]:
        return None
    length, kind, flags, zero, sequence, synced, payload_crc, _ = _FRAME.unpack_from(data, offset)
    if (kind, flags, zero) != (TYPE_BATCH, 0, 0):
        return None
    return Frame(offset, length, sequence, synced, payload_crc)


def payload_of(data: bytes, frame: Frame) -> bytes | None:
    """The frame's payload, or None when it is not what was written."""
    start = frame.offset + FRAME_BYTES
    payload = data[start : start + frame.length]
    fill = data[start + frame.length : frame.end]
    if fill != _FILLS[frame.length % ALIGNMENT]:
        return None
    return payload if crc32(payload, payload_seed(frame.sequence)) == frame.payload_crc else None


@dataclass(frozen=True, slots=True)
class Batch:
    """What one group commit put into the log."""

    ceiling: int
    """The node may have issued versions up to this."""
    keys: int
    """Keys in the store after this batch, tombstones not counted."""
    tombstones: int
    entries: list[tuple[bytes, bytes]]
    """`(skey, record)` in the order of application."""


def encode_batch(ceiling: int, keys: int, tombstones: int, entries: dict[bytes, bytes]) -> bytes:
    """The payload of one record of the log."""
    parts = [_BATCH.pack(ceiling, keys, tombstones, len(entries))]
    pack, add = pack_entry, parts.append
    for skey, record in entries.items():
        add(pack(len(skey), len(record)))
        add(skey)
        add(record)
    return b"".join(parts)


def decode_batch(payload: bytes) -> Batch:
    """Take a payload apart. Raises ValueError when it does not add up, which a CRC makes our bug."""
    if len(payload) < BATCH_BYTES:
        raise ValueError("a batch shorter than its preamble")
    ceiling, keys, tombstones, count = _BATCH.unpack_from(payload)
    entries: list[tuple[bytes, bytes]] = []
    at, unpack, add = BATCH_BYTES, _ENTRY.unpack_from, entries.append
    try:
        for _ in range(count):
            key_len, record_len = unpack(payload, at)
            middle = at + ENTRY_BYTES + key_len
            add((payload[at + ENTRY_BYTES : middle], payload[middle : middle + record_len]))
            at = middle + record_len
    except struct.error:
        at = -1
    if at != len(payload):
        raise ValueError("the entries of a batch do not add up to its length")
    return Batch(ceiling, keys, tombstones, entries)
