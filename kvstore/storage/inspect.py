"""Look at a log without touching it: what `kv wal dump` and `kv wal verify` show.

Nothing is written, and no lock is taken, so a running node can be looked at too; its newest record may
then look torn, because it is being written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvstore import errors
from kvstore.core import record as records
from kvstore.ports import Files
from kvstore.storage import recovery, segment, tail
from kvstore.storage.identity import WAL_DIR, usable
from kvstore.storage.segment import SegmentHeader
from kvstore.storage.tail import Verdict


@dataclass(frozen=True, slots=True)
class SegmentSeen:
    """A segment begins."""

    path: str
    header: SegmentHeader
    bytes: int
    """Size of the file, reserved space included."""


@dataclass(frozen=True, slots=True)
class EntrySeen:
    """One key of a record."""

    partition: int
    key: bytes
    version: int
    expires_ms: int
    kind: int
    flags: int
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class RecordSeen:
    """One record of the log: one group commit."""

    path: str
    offset: int
    bytes: int
    """From this record's first byte to the next one's."""
    sequence: int
    synced: int
    """The newest sequence number that was synced when this one was made."""
    ceiling: int
    keys: int
    tombstones: int
    entries: tuple[EntrySeen, ...]


@dataclass(frozen=True, slots=True)
class EndSeen:
    """Where a segment's valid records end, and what stands there."""

    path: str
    offset: int
    sequence: int
    verdict: Verdict
    reason: str


Seen = SegmentSeen | RecordSeen | EndSeen


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One segment, judged."""

    path: str
    number: int
    first_sequence: int
    last_sequence: int
    records: int
    entries: int
    end: int
    """Where the valid records end."""
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """A whole log, judged."""

    directory: str
    segments: tuple[SegmentReport, ...]
    verdict: Verdict
    """The worst of its segments. `torn` is repaired by the next start, `corrupt` is not."""
    problems: tuple[str, ...]
    """One sentence each, with path and offset."""


def log_directory(files: Files, directory: str) -> str:
    """The log's directory, given it or the data directory around it."""
    inner = f"{directory}/{WAL_DIR}"
    return inner if files.exists(inner) else directory


def dump(files: Files, directory: str) -> Iterator[Seen]:
    """Everything in a log, in order. Raises DataDirUnusable; CorruptLog for a header that cannot be read."""
    where = log_directory(files, directory)
    with usable(directory):
        numbers = recovery.segment_numbers(files, where)
        for number in numbers:
            yield from _dump_segment(files, recovery.segment_path(where, number), number, numbers[-1])


def _dump_segment(files: Files, path: str, number: int, last: int) -> Iterator[Seen]:
    data = files.read(path)
    header = segment.decode_header(data[: segment.SEGMENT_HEADER_BYTES], path)
    yield SegmentSeen(path, header, len(data))
    for found in tail.read(data, header, is_last=number == last):
        if isinstance(found, tail.End):
            yield EndSeen(path, found.offset, found.sequence, found.verdict, found.reason)
        else:
            frame, batch = found.frame, segment.decode_batch(found.payload)
            yield RecordSeen(
                path,
                frame.offset,
                frame.end - frame.offset,
                frame.sequence,
                frame.synced,
                batch.ceiling,
                batch.keys,
                batch.tombstones,
                tuple(_entry(skey, record) for skey, record in batch.entries),
            )


def _entry(skey: bytes, record: bytes) -> EntrySeen:
    return EntrySeen(
        int.from_bytes(skey[:2], "big") & 0x7FFF,
        skey[2:],
        records.version_of(record),
        records.expires_of(record),
        records.kind_of(record),
        records.flags_of(record),
        len(record) - records.HEADER_BYTES,
    )


def verify(files: Files, directory: str) -> Report:
    """Check every record of a log, and that the segments continue each other. Raises DataDirUnusable."""
    where = log_directory(files, directory)
    with usable(directory):
        numbers = recovery.segment_numbers(files, where)
        reports: list[SegmentReport] = []
        after: tuple[int, int] | None = None
        for number in numbers:
            path = recovery.segment_path(where, number)
            report, after = _verify_segment(files, path, number, after, is_last=number == numbers[-1])
            reports.append(report)
    problems = [f"{report.path} at byte {report.end}: {report.reason}" for report in reports if report.reason]
    if not reports:
        problems.append(f"{where}: there is no segment")
    found = {report.verdict for report in reports}
    worst = Verdict.CORRUPT if Verdict.CORRUPT in found or not reports else Verdict.CLEAN
    if worst is Verdict.CLEAN and Verdict.TORN in found:
        worst = Verdict.TORN
    return Report(where, tuple(reports), worst, tuple(problems))


def _verify_segment(
    files: Files, path: str, number: int, after: tuple[int, int] | None, *, is_last: bool
) -> tuple[SegmentReport, tuple[int, int] | None]:
    """Judge one segment; `after` is the sequence number and checksum it has to continue from."""
    data = files.read(path)
    try:
        header = segment.decode_header(data[: segment.SEGMENT_HEADER_BYTES], path)
    except errors.StartError as error:
        return SegmentReport(path, 0, 0, 0, 0, 0, 0, Verdict.CORRUPT, error.message), None
    *found, end = tail.read(data, header, is_last=is_last)
    assert isinstance(end, tail.End), "tail.read ends with an End"
    payloads = [record.payload for record in found if isinstance(record, tail.Found)]
    offset, verdict, reason = end.offset, end.verdict, end.reason
    if header.number != number:
        offset, verdict, reason = 0, Verdict.CORRUPT, f"its header is that of segment {header.number}"
    elif after is not None and (header.first_sequence, header.chain) != after:
        offset, verdict = 0, Verdict.CORRUPT
        reason = f"it begins at record {header.first_sequence} and does not continue the segment before it"
    report = SegmentReport(
        path,
        header.number,
        header.first_sequence,
        end.sequence,
        len(payloads),
        sum(len(segment.decode_batch(payload).entries) for payload in payloads),
        offset,
        verdict,
        reason,
    )
    return report, (end.sequence + 1, end.chain)
