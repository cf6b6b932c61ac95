"""What is stored under a key, as the same bytes in memory, log, base store and peer messages.

    record := version u64 | expires_ms u64 | kind u8 | flags u8 | operation 16 bytes | revision u32 | payload

All big-endian, so that comparing the first eight bytes compares versions. A record is
made once, by the coordinator, and copied as it is from there on: no node re-encodes it.

Rules kept here:
- records merge by the order (strong, version, revision): a plain record never replaces a strong one,
  whatever its version;
- a change of expiry keeps the value's version and takes the next revision, so no clock-made version
  ever stands between a value and its touch (docs/decisions/0003-touch-is-a-revision.md);
- two touches of one revision may meet: the larger bytes win, on every replica alike;
- equal order with different bytes at revision 0 cannot come from correct nodes; the larger bytes win
  too, and `Order.CONFLICT_*` lets the caller raise the alarm;
- expired means absent, but an expired record keeps its version: `reclaim` drops the payload
  and leaves a tombstone in its place, because an older record with no expiry may still sit on
  a replica that was away (docs/decisions/0001-expired-records-become-tombstones.md).
"""

from __future__ import annotations

import struct
from enum import Enum

from kvstore.core import counters
from kvstore.core.window import continues, value_at
from kvstore.core.window import is_well_formed as window_is_well_formed
from kvstore.types import Kind, Millis, OperationId, Version

_HEADER = struct.Struct(">QQBB16sI")
HEADER_BYTES = _HEADER.size
assert HEADER_BYTES == 38
REVISION_MAX = 0xFFFFFFFF

FLAG_STRONG = 1
"""Written by a register change."""
FLAG_RECLAIMED = 2
"""A tombstone that took the place of an expired record of the same version."""
FLAG_COUNTER = 4
"""Merged, not replaced: see core.counters. Set on every record of kind COUNTER and no other."""
SPECIAL = FLAG_STRONG | FLAG_COUNTER
"""What merges by more than the version."""

_TOMBSTONE = int(Kind.TOMBSTONE)
_COUNTER = int(Kind.COUNTER)
_KINDS = len(Kind)
_AT_KIND = 16
_AT_FLAGS = 17
_FIRST = bytes(4)
NO_OPERATION = OperationId(bytes(16))


class Order(Enum):
    """How one record stands to another under the same key."""

    NEWER = "newer"
    OLDER = "older"
    SAME = "same"
    CONFLICT_WINS = "conflict-wins"
    CONFLICT_LOSES = "conflict-loses"


_WINS = (Order.NEWER, Order.CONFLICT_WINS)


def encode(
    version: Version,
    expires_ms: Millis | int,
    kind: Kind | int,
    payload: bytes,
    *,
    operation: OperationId = NO_OPERATION,
    flags: int = 0,
    revision: int = 0,
) -> bytes:
    """Build a record. `expires_ms` 0 means never."""
    return _HEADER.pack(version, expires_ms, kind, flags, operation, revision) + payload


def version_of(record: bytes) -> Version:
    """The record's version."""
    return Version(int.from_bytes(record[:8], "big"))


def expires_of(record: bytes) -> Millis:
    """The instant the record ends, or 0."""
    return Millis(int.from_bytes(record[8:16], "big"))


def kind_of(record: bytes) -> int:
    """The kind byte; see `kvstore.types.Kind`."""
    return record[_AT_KIND]


def flags_of(record: bytes) -> int:
    """The flag bits."""
    return record[_AT_FLAGS]


def operation_of(record: bytes) -> OperationId:
    """The id of the operation that wrote the record."""
    return OperationId(record[18:34])


def revision_of(record: bytes) -> int:
    """How often the expiry of this version was changed."""
    return int.from_bytes(record[34:38], "big")


def payload_of(record: bytes) -> bytes:
    """The value (empty for a tombstone)."""
    if record[_AT_FLAGS] & FLAG_STRONG:
        return record[value_at(record, HEADER_BYTES) :]
    return record[HEADER_BYTES:]


def raw_payload_of(record: bytes) -> bytes:
    """What is behind the header: of a strong record the window of outcomes as well (core.window)."""
    return record[HEADER_BYTES:]


def shown_version_of(record: bytes) -> Version:
    """The version readers see: of a strong record that of its last change, not the ballot."""
    if record[_AT_FLAGS] & FLAG_STRONG:
        return Version(int.from_bytes(record[HEADER_BYTES : HEADER_BYTES + 8], "big"))
    return Version(int.from_bytes(record[:8], "big"))


def is_expired(record: bytes, now_ms: int) -> bool:
    """Whether the record's time has come. The instant itself counts as expired."""
    expires = record[8:16]
    return expires != b"\0\0\0\0\0\0\0\0" and int.from_bytes(expires, "big") <= now_ms


def is_live(record: bytes | None, now_ms: int) -> bool:
    """Whether a reader may see it: there, not deleted, not expired."""
    if record is None or record[_AT_KIND] == _TOMBSTONE:
        return False
    expires = record[8:16]
    return expires == b"\0\0\0\0\0\0\0\0" or int.from_bytes(expires, "big") > now_ms


def is_newer(record: bytes, than: bytes | None) -> bool:
    """Whether `record` replaces `than`, by (strong, version, revision), ties by bytes.

    A reclaimed tombstone ties with the record it came from and replaces nothing.
    """
    if than is None:
        return True
    strong, than_strong = record[_AT_FLAGS] & FLAG_STRONG, than[_AT_FLAGS] & FLAG_STRONG
    if strong != than_strong:
        return bool(strong)
    if (record[_AT_FLAGS] | than[_AT_FLAGS]) & FLAG_COUNTER:
        return merged(record, than) != than
    if record[:8] != than[:8]:
        return record[:8] > than[:8]
    return compare(record, than) in _WINS


def _rank(record: bytes) -> tuple[int, int, int]:
    """How a record stands to a counter: by version; a counter by its generation, just after that version."""
    is_counter = record[_AT_FLAGS] & FLAG_COUNTER
    at = HEADER_BYTES if is_counter else 0
    return record[_AT_FLAGS] & FLAG_STRONG, int.from_bytes(record[at : at + 8], "big"), is_counter


def merged(record: bytes, held: bytes) -> bytes:
    """What is held after `record` arrived: one of the two, or of two counters both."""
    if not (record[_AT_FLAGS] | held[_AT_FLAGS]) & FLAG_COUNTER:
        return record if is_newer(record, held) else held
    mine, theirs = _rank(record), _rank(held)
    if mine != theirs:
        return record if mine > theirs else held
    header = max(record[:HEADER_BYTES], held[:HEADER_BYTES])
    return header + counters.join(record[HEADER_BYTES:], held[HEADER_BYTES:])


def readable_of(record: bytes) -> bytes:
    """The value as readers get it: of a counter its sum, in decimal."""
    if record[_AT_FLAGS] & FLAG_COUNTER:
        return b"%d" % counters.total_of(record[HEADER_BYTES:])
    return payload_of(record)


def compare(record: bytes, other: bytes) -> Order:
    """Tell how `record` stands to `other`, both under the same key."""
    if (record[_AT_FLAGS] | other[_AT_FLAGS]) & FLAG_COUNTER:
        if record == other:
            return Order.SAME
        return Order.NEWER if is_newer(record, other) else Order.OLDER
    mine = (record[_AT_FLAGS] & FLAG_STRONG, record[:8], record[34:38])
    theirs = (other[_AT_FLAGS] & FLAG_STRONG, other[:8], other[34:38])
    if mine != theirs:
        return Order.NEWER if mine > theirs else Order.OLDER
    if record == other or (record[_AT_FLAGS] | other[_AT_FLAGS]) & FLAG_RECLAIMED:
        return Order.SAME
    if mine[2] != _FIRST:
        return Order.NEWER if record > other else Order.OLDER
    return Order.CONFLICT_WINS if record > other else Order.CONFLICT_LOSES


def is_whole(record: bytes) -> bool:
    """Whether it is a register's record with nothing dropped from it."""
    return record[_AT_FLAGS] & (FLAG_STRONG | FLAG_RECLAIMED) == FLAG_STRONG


def fuller(record: bytes, other: bytes) -> bool:
    """Whether `record` still has what `other`, a reclaimed tombstone of the same order, has dropped.

    Replicas reclaim by their own clocks; whether the record has expired is for the reader's clock to say.
    """
    return bool(other[_AT_FLAGS] & FLAG_RECLAIMED and not record[_AT_FLAGS] & FLAG_RECLAIMED) and (
        compare(record, other) is Order.SAME
    )


def reclaim(record: bytes) -> bytes:
    """The tombstone that takes an expired record's place: same version and expiry, no value.

    A strong record's window of outcomes stays: a retry may still ask for its own. Of a counter nothing
    stays, and what holds no totals is none.
    """
    version, expires_ms, _, flags, operation, revision = _HEADER.unpack_from(record)
    flags &= ~FLAG_COUNTER
    header = _HEADER.pack(version, expires_ms, _TOMBSTONE, flags | FLAG_RECLAIMED, operation, revision)
    if flags & FLAG_STRONG:
        return header + record[HEADER_BYTES : value_at(record, HEADER_BYTES)]
    return header


def is_well_formed(record: bytes, held: bytes | None = None) -> bool:
    """Whether bytes from outside can be a record at all.

    `held`: a well-formed record of the same key, before it, if there is one; the answer comes sooner then.
    """
    return (
        len(record) >= HEADER_BYTES
        and 1 <= record[_AT_KIND] <= _KINDS
        and record[:8] != bytes(8)
        and (not record[_AT_FLAGS] & FLAG_STRONG or _has_window(record, held))
        and (record[_AT_KIND] == _COUNTER) == bool(record[_AT_FLAGS] & FLAG_COUNTER)
        and (not record[_AT_FLAGS] & FLAG_COUNTER or counters.is_well_formed(record[HEADER_BYTES:]))
    )


def _has_window(record: bytes, held: bytes | None) -> bool:
    if held is not None and held[_AT_FLAGS] & FLAG_STRONG and continues(record, held, HEADER_BYTES):
        return True
    return window_is_well_formed(record, HEADER_BYTES)
