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
from collections.abc import Iterable
from typing import NamedTuple

from kvstore.types import OperationId, Version

_HEAD = struct.Struct(">QQHI")
HEAD_BYTES = _HEAD.size
_ENTRY = struct.Struct(">16sBQI")
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
    """The outcomes of recent operations, oldest first."""

    dropped_ms: int = 0
    entries: tuple[tuple[OperationId, Outcome], ...] = ()

    def find(self, operation: OperationId) -> Outcome | None:
        """What became of an operation, if it is remembered."""
        for known, outcome in reversed(self.entries):
            if known == operation:
                return outcome
        return None

    def adding(self, news: Iterable[tuple[OperationId, Outcome]]) -> Window:
        """With newer outcomes; the oldest go when there is no room."""
        entries = [*self.entries, *news]
        first, size = len(entries), 0
        while first and len(entries) - first < ENTRIES_MAX:
            size += _ENTRY.size + len(entries[first - 1][1].value or b"")
            if size > BYTES_MAX and first < len(entries):
                break
            first -= 1
        dropped = max((time_of(operation) for operation, _ in entries[:first]), default=0)
        return Window(max(self.dropped_ms, dropped), tuple(entries[first:]))


def time_of(operation: bytes) -> int:
    """When an operation was first tried, in milliseconds since 1970, by its client's clock."""
    return int.from_bytes(operation[:6], "big")


def encode(changed: int, window: Window, value: bytes) -> bytes:
    """The payload of a strong record."""
    parts = [
        _ENTRY.pack(operation, outcome.flags | (HAS_VALUE if outcome.value is not None else 0),
                    outcome.version, len(outcome.value or b"")) + (outcome.value or b"")
        for operation, outcome in window.entries
    ]  # fmt: skip
    body = b"".join(parts)
    return _HEAD.pack(changed, window.dropped_ms, len(parts), len(body)) + body + value


def changed_of(payload: bytes) -> Version:
    """The version readers see."""
    return Version(int.from_bytes(payload[:8], "big"))


def value_at(payload: bytes, offset: int = 0) -> int:
    """Where in `payload`, which begins at `offset`, the value begins."""
    return offset + HEAD_BYTES + int.from_bytes(payload[offset + 18 : offset + HEAD_BYTES], "big")


def decode(payload: bytes) -> tuple[Version, Window, bytes]:
    """`(changed, window, value)`. Raises ValueError when it does not add up."""
    try:
        changed, dropped_ms, count, size = _HEAD.unpack_from(payload)
        entries: list[tuple[OperationId, Outcome]] = []
        at = HEAD_BYTES
        for _ in range(count):
            operation, flags, version, length = _ENTRY.unpack_from(payload, at)
            at += _ENTRY.size
            value = payload[at : at + length] if flags & HAS_VALUE else None
            entries.append((OperationId(operation), Outcome(flags & ~HAS_VALUE, Version(version), value)))
            at += length
    except struct.error:
        raise ValueError("the window of a strong record does not add up") from None
    if at != HEAD_BYTES + size or at > len(payload):
        raise ValueError("the window of a strong record does not add up")
    return Version(changed), Window(dropped_ms, tuple(entries)), payload[at:]


def is_well_formed(payload: bytes) -> bool:
    """Whether bytes from outside can be the payload of a strong record."""
    try:
        decode(payload)
    except ValueError:
        return False
    return True


def emptied(payload: bytes) -> bytes:
    """The same without the value: what is left when the record has expired."""
    return payload[: value_at(payload)]
