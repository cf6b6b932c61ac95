"""Read the records of one segment, and judge what stands where they stop. Pure.

A crash can cut the last write short. Recovery may cut that off, for nobody was told that it
succeeded. Anything else that does not check is damage to acknowledged data, and cutting it off
would lose writes in silence. The two are told apart by four questions:

1. Is only zero left? Then it is the clean end: reserved space that was never written.
2. Is this the last segment? Segments are synced before the next one is begun, so none but the
   last can hold an unfinished write.
3. Does a valid record stand anywhere behind, with a higher sequence number, that was made when
   the bad one had been synced already (`synced`)? Then the bad one was acknowledged. (With sync
   mode `always` that is every record behind it; in the other modes several unsynced records
   may be damaged by one power cut, and whole ones may stand behind torn ones.)
4. Does it look cut short? A cut write leaves zeros: its tail up to the last byte, which is never
   zero in a whole record, or whole 512-byte sectors that did not arrive. A flipped bit leaves none.

One case stays open: the very last record, damaged after it was synced, whose value holds a whole
sector of zeros. It is taken for torn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from kvstore.storage import segment
from kvstore.storage.segment import Frame

SECTOR_BYTES = 512
_ZERO_SECTOR = bytes(SECTOR_BYTES)
_CRC_BYTES = 4


class Verdict(StrEnum):
    """What stands where the valid records of a segment end."""

    CLEAN = "clean"
    """Nothing: the end of the file, or reserved space."""
    TORN = "torn"
    """A write that a crash cut short; it was never acknowledged and may be cut off."""
    CORRUPT = "corrupt"
    """Damage; acknowledged writes may be missing."""


@dataclass(frozen=True, slots=True)
class End:
    """Where the valid records end, and why."""

    offset: int
    sequence: int
    """The last valid sequence number, or the one before the segment's first."""
    chain: int
    """`payload_crc` of the last valid record."""
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """One valid record."""

    frame: Frame
    payload: bytes


def read(data: bytes, header: segment.SegmentHeader, *, is_last: bool) -> Iterator[Found | End]:
    """Yield the valid records of a segment in order, and at last one `End`."""
    salt_crc = header.salt_crc
    offset, expected, chain = segment.SEGMENT_HEADER_BYTES, header.first_sequence, header.chain
    while True:
        frame = segment.decode_frame(data, offset, salt_crc)
        if frame is None or frame.sequence != expected:
            break
        payload = segment.payload_of(data, frame)
        if payload is None:
            break
        yield Found(frame, payload)
        offset, expected, chain = frame.end, expected + 1, frame.payload_crc
    verdict, reason = _judge(data, offset, expected, salt_crc, frame, is_last=is_last)
    yield End(offset, expected - 1, chain, verdict, reason)


def written_end(data: bytes, offset: int) -> int:
    """Where the last byte that is not zero ends, at `offset` or behind; `offset` if there is none."""
    return offset + len(data[offset:].rstrip(b"\0"))


def _judge(
    data: bytes, offset: int, expected: int, salt_crc: int, frame: Frame | None, *, is_last: bool
) -> tuple[Verdict, str]:
    end = written_end(data, offset)
    if end == offset:
        return Verdict.CLEAN, ""
    if frame is not None and frame.sequence != expected:
        return Verdict.CORRUPT, f"record {frame.sequence} stands where {expected} belongs"
    if not is_last:
        return Verdict.CORRUPT, f"record {expected} is damaged, and later segments follow"
    witness = _find_witness(data, offset, end, expected, salt_crc)
    if witness is not None:
        return (
            Verdict.CORRUPT,
            f"record {expected} is damaged, but was synced before record {witness.sequence}",
        )
    if _looks_cut(data, offset, end, frame):
        return Verdict.TORN, f"record {expected} was not written to its end"
    return Verdict.CORRUPT, f"record {expected} is damaged, and was not cut short by a crash"


def _find_witness(data: bytes, offset: int, end: int, expected: int, salt_crc: int) -> Frame | None:
    """A valid frame behind `offset` that proves that record `expected` was synced."""
    at = offset + segment.ALIGNMENT
    mark_at = segment.FRAME_MARK_AT
    while True:
        # `find` runs at the speed of memory; a loop over 8 million offsets would take seconds.
        at = data.find(segment.FRAME_MARK, at + mark_at, end) - mark_at
        if at < 0:
            return None
        if at % segment.ALIGNMENT == 0:
            frame = segment.decode_frame(data, at, salt_crc)
            if frame is not None and frame.sequence > expected and frame.synced >= expected:
                return frame
        at += 1


def _looks_cut(data: bytes, offset: int, end: int, frame: Frame | None) -> bool:
    """Whether the bad record at `offset` shows the zeros that an unfinished write leaves."""
    if frame is None:
        stop = offset + segment.FRAME_BYTES
        if end <= stop or data[stop - _CRC_BYTES : stop] == _ZERO_SECTOR[:_CRC_BYTES]:
            return True
    else:
        if frame.end > len(data) or data[frame.end - 1] == 0:
            return True
        stop = frame.end
    at = offset
    while at < stop:
        border = min(at - at % SECTOR_BYTES + SECTOR_BYTES, stop)
        if data.startswith(_ZERO_SECTOR[: border - at], at):
            return True
        at = border
    return False
