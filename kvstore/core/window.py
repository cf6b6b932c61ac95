"""What a strong record carries beside its value: what was done lately, so that a retry is not done again.

    strong payload := changed u64 | dropped_ms u64 | count u16 | size u32 | entry * count | value
    entry := operation 16 bytes | flags u8 | version u64 | length u32 | bytes

`changed` is the version readers see: of the last change of the value. The record's own version is the
ballot at which it was accepted, and grows with every round, also with one that changed nothing.

`dropped_ms` is the latest first-try time of an operation that was dropped from the window: whoever
comes with an older id, and is not in the window, may have been applied or not (DESIGN 6).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kvstore.types import OperationId, Version

_HEAD = struct.Struct(">QQHI")
HEAD_BYTES = _HEAD.size
_ENTRY = struct.Struct(">16sBQI")
_ENTRY_BYTES = _ENTRY.size
_LENGTH_AT = _ENTRY_BYTES - 4
_UNSOUND = "the window of a strong record does not add up"
ENTRIES_MAX = 128
"""Outcomes remembered for each key (DESIGN 6)."""
BYTES_MAX = 64 << 10
"""Of all outcomes together; the newest is kept whatever it holds."""

APPLIED = 1
EXISTED = 2
"""A live value was there before."""
HAS_VALUE = 4
CANCELLED = 8
"""Never applied, and never will be: somebody asked what became of it before it arrived."""


class Outcome(NamedTuple):
    """What one change came to."""

    flags: int
    version: Version
    """Of the change, or of what was found when it was not applied; 0: nothing."""
    value: bytes | None = None
    expires_ms: int = 0

    @property
    def applied(self) -> bool:
        """Whether it took effect."""
        return bool(self.flags & APPLIED)


class Window(NamedTuple):
    """The outcomes of recent operations, oldest first, as bytes: a round carries them on and rarely looks."""

    dropped_ms: int = 0
    number: int = 0
    """Of outcomes."""
    raw: bytes = b""

    @property
    def entries(self) -> tuple[tuple[OperationId, Outcome], ...]:
        """Operations and their outcomes. Raises ValueError when the bytes do not add up."""
        return tuple((OperationId(self.raw[at : at + 16]), _outcome(self.raw, at)) for at in self._places())

    def find(self, operation: OperationId) -> Outcome | None:
        """What became of an operation, if it is remembered. Raises ValueError as `entries`."""
        raw = self.raw
        if raw.find(operation) < 0:
            return None
        # Those bytes may stand inside a value, too.
        places = [at for at in self._places() if raw.startswith(operation, at)]
        return _outcome(raw, places[-1]) if places else None

    def adding(self, news: Iterable[tuple[OperationId, Outcome]]) -> Window:
        """With newer outcomes; the oldest go when there is no room. Raises ValueError as `entries`."""
        parts = [
            _ENTRY.pack(
                operation,
                outcome.flags | (HAS_VALUE if outcome.value is not None else 0),
                outcome.version,
                len(outcome.value or b""),
            )
            + (outcome.value or b"")
            for operation, outcome in news
        ]
        both = Window(self.dropped_ms, self.number + len(parts), self.raw + b"".join(parts))
        return both if both.number <= ENTRIES_MAX and len(both.raw) <= BYTES_MAX else both._shortened()

    def _shortened(self) -> Window:
        """Without the oldest; the newest stays, whatever it holds."""
        count, at, dropped_ms = self.number, 0, self.dropped_ms
        while count > 1 and (count > ENTRIES_MAX or len(self.raw) - at > BYTES_MAX):
            dropped_ms = max(dropped_ms, time_of(self.raw[at : at + 6]))
            at += _ENTRY.size + int.from_bytes(self.raw[at + _LENGTH_AT : at + _ENTRY.size], "big")
            count -= 1
        return Window(dropped_ms, count, self.raw[at:])

    def _places(self) -> Iterator[int]:
        """Where the entries begin."""
        at, raw = 0, self.raw
        for _ in range(self.number):
            if at + _ENTRY.size > len(raw):
                raise ValueError(_UNSOUND)
            yield at
            at += _ENTRY.size + int.from_bytes(raw[at + _LENGTH_AT : at + _ENTRY.size], "big")
        if at != len(raw):
            raise ValueError(_UNSOUND)


def _outcome(raw: bytes, at: int) -> Outcome:
    _, flags, version, length = _ENTRY.unpack_from(raw, at)
    begin = at + _ENTRY.size
    value = raw[begin : begin + length] if flags & HAS_VALUE else None
    return Outcome(flags & ~HAS_VALUE, Version(version), value)


def time_of(operation: bytes) -> int:
    """When an operation was first tried, in milliseconds since 1970, by its client's clock."""
    return int.from_bytes(operation[:6], "big")


def second_name(operation: OperationId) -> OperationId:
    """Another id for what an operation tries once more, of the same time; always the same one."""
    return OperationId(operation[:6] + bytes(each ^ 0xFF for each in operation[6:]))


def encode(changed: int, window: Window, value: bytes) -> bytes:
    """The payload of a strong record."""
    return b"".join(
        (_HEAD.pack(changed, window.dropped_ms, window.number, len(window.raw)), window.raw, value)
    )


def changed_of(payload: bytes) -> Version:
    """The version readers see."""
    return Version(int.from_bytes(payload[:8], "big"))


def value_at(payload: bytes, offset: int = 0) -> int:
    """Where in `payload`, which begins at `offset`, the value begins."""
    return offset + HEAD_BYTES + int.from_bytes(payload[offset + 18 : offset + HEAD_BYTES], "big")


def decode(payload: bytes) -> tuple[Version, Window, bytes]:
    """`(changed, window, value)`. Raises ValueError when that cannot be; `is_well_formed` looks further."""
    if len(payload) < HEAD_BYTES:
        raise ValueError(_UNSOUND)
    changed, dropped_ms, count, size = _HEAD.unpack_from(payload)
    end = HEAD_BYTES + size
    if end > len(payload) or count * _ENTRY.size > size:
        raise ValueError(_UNSOUND)
    return Version(changed), Window(dropped_ms, count, payload[HEAD_BYTES:end]), payload[end:]


def is_well_formed(record: bytes, offset: int) -> bool:
    """Whether bytes from outside, from `offset` on, can be the payload of a strong record."""
    begin = offset + HEAD_BYTES
    if len(record) < begin:
        return False
    _, _, count, size = _HEAD.unpack_from(record, offset)
    if begin + size > len(record):
        return False
    if size == count * _ENTRY_BYTES:
        # Most outcomes have no value: then all lengths are zero, seen without a look at each.
        for at in range(begin + _LENGTH_AT, begin + _ENTRY_BYTES):
            if record[at : begin + size : _ENTRY_BYTES].strip(b"\0"):
                return False
        return True
    at, stop = begin, begin + size
    for _ in range(count):
        at += _ENTRY_BYTES
        if at > stop:
            return False
        # One byte, nearly always; compiled, a look at a byte makes no object, and there may be 128 of these.
        length = record[at - 1]
        if record[at - 2] or record[at - 3] or record[at - 4]:
            length = int.from_bytes(record[at - 4 : at], "big")
        at += length
    return bool(at == stop)


def continues(record: bytes, held: bytes, offset: int) -> bool:
    """Whether the window in `record` is that in `held`, less its oldest outcomes, and one newer outcome.

    That is what nearly every record of a key is to the one before it, and is told by a comparison. Both
    windows begin at `offset`; that in `held` is well-formed, and then the other one is.
    """
    begin = offset + HEAD_BYTES
    if len(record) < begin or len(held) < begin:
        return False
    _, _, count, size = _HEAD.unpack_from(record, offset)
    _, _, held_count, held_size = _HEAD.unpack_from(held, offset)
    dropped = held_count + 1 - count
    if not 0 <= dropped <= held_count:
        return False
    at, stop = begin, begin + held_size
    for _ in range(dropped):
        at += _ENTRY_BYTES + int.from_bytes(held[at + _LENGTH_AT : at + _ENTRY_BYTES], "big")
    newest = begin + stop - at
    end = newest + _ENTRY_BYTES
    end += int.from_bytes(record[newest + _LENGTH_AT : end], "big")
    return end == begin + size <= len(record) and record.startswith(held[at:stop], begin)


def emptied(payload: bytes) -> bytes:
    """The same without the value: what is left when the record has expired."""
    return payload[: value_at(payload)]
