"""Counters for the eventual path: a PN-counter whose parts belong to whoever adds.

    payload := generation u64 | part * n, in order of id       part := id 8 bytes | plus u64 | minus u64

Each adder has a part of its own and sends its *totals*, never a difference, so a message that comes twice,
late or to several coordinators adds nothing twice; merging takes the larger of each total (Shapiro et al., "A
comprehensive study of convergent and commutative replicated data types", 2011, specification 7).

Deleting would be undone by the next total of an adder that had not heard. So a counter has a generation: the
version of the deletion (or value) it began after. Against other records a counter ranks by its generation;
of two counters the later generation wins as a whole, and within one they are merged.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import pairwise

_PART = struct.Struct(">8sQQ")
_GENERATION_BYTES = 8
ID_BYTES = 8
TOTAL_MAX = (1 << 63) - 1

Parts = Mapping[bytes, tuple[int, int]]


def encode(generation: int, parts: Parts) -> bytes:
    """The payload of a counter."""
    return generation.to_bytes(8, "big") + b"".join(
        _PART.pack(part, *totals) for part, totals in sorted(parts.items())
    )


def is_well_formed(payload: bytes) -> bool:
    """Whether bytes from outside can be a counter."""
    size = len(payload) - _GENERATION_BYTES
    if size < 0 or size % _PART.size:
        return False
    ids = [payload[at : at + ID_BYTES] for at in range(_GENERATION_BYTES, len(payload), _PART.size)]
    return all(one < other for one, other in pairwise(ids))


def generation_of(payload: bytes) -> int:
    """The version after which this counter began; 0: before all."""
    return int.from_bytes(payload[:_GENERATION_BYTES], "big")


def parts_of(payload: bytes) -> dict[bytes, tuple[int, int]]:
    """Each adder's totals."""
    return {part: (plus, minus) for part, plus, minus in _PART.iter_unpack(payload[_GENERATION_BYTES:])}


def total_of(payload: bytes) -> int:
    """What the counter says."""
    return sum(plus - minus for _, plus, minus in _PART.iter_unpack(payload[_GENERATION_BYTES:]))


def join(payload: bytes, other: bytes) -> bytes:
    """The later generation, or both in one."""
    one, two = generation_of(payload), generation_of(other)
    if one != two:
        return payload if one > two else other
    parts = parts_of(payload)
    for part, (plus, minus) in parts_of(other).items():
        mine = parts.get(part, (0, 0))
        parts[part] = max(mine[0], plus), max(mine[1], minus)
    return encode(one, parts)
