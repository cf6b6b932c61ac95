"""Read the log back at start: replay what the base store lacks, cut a torn tail, refuse the rest.

Rules kept here:
- sequence numbers are dense over all segments, each segment names the checksum of the record before
  its first, and the log begins no later than where the base store ends; else something is missing;
- segments that the base store covers are not read: a crash between their deletions may leave any
  of them;
- a torn tail (see `tail.py`) is saved aside as `<segment>.<offset>.torn`, then cut off, then synced;
- any other damage is `CorruptLog`: this version then refuses to start. (A node that lost
  acknowledged writes must not vote under its old name; a later version starts it in quarantine
  and repairs it from its peers, DESIGN 6 and 9.)
- every step can be repeated: recovering again after a crash in the middle ends in the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from kvstore import errors
from kvstore.ports import Files
from kvstore.storage import segment, tail
from kvstore.storage.engine import Mark
from kvstore.storage.segment import Batch, SegmentHeader
from kvstore.storage.tail import Verdict

SUFFIX = ".wal"
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose log it is."""

    cluster: bytes
    """`segment.cluster_fingerprint` of the cluster id."""
    node: int
    secret: bytes
    """What salts are made of; never leaves the node."""


@dataclass(slots=True)
class SegmentFile:
    """A segment on disk."""

    number: int
    last_sequence: int
    bytes: int


@dataclass(slots=True)
class Recovered:
    """Where the log stands after recovery."""

    sequence: int = 0
    chain: int = 0
    number: int = 0
    """Of the last segment; the next one gets one more. 0 when there is none."""
    offset: int = 0
    """Where the records of the last segment end."""
    records: int = 0
    """Entries replayed."""
    torn: str = ""
    """Path of the tail that was cut off, if one was."""
    kept: list[SegmentFile] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    """Paths that may go once a new segment stands."""


def segment_path(directory: str, number: int) -> str:
    """Where a segment is."""
    return f"{directory}/{number:0{_DIGITS}}{SUFFIX}"


def segment_numbers(files: Files, directory: str) -> list[int]:
    """The numbers of the segments that are there, ascending."""
    names = files.list_dir(directory)
    stems = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
    return sorted(int(stem) for stem in stems if len(stem) >= _DIGITS and stem.isascii() and stem.isdigit())


def read_header(files: Files, path: str, number: int) -> SegmentHeader:
    """A segment's header. Raises CorruptLog when it is not this segment's."""
    file = files.open(path)
    try:
        header = segment.decode_header(file.read_at(0, segment.SEGMENT_HEADER_BYTES), path)
    finally:
        file.close()
    if header.number != number:
        raise errors.CorruptLog(path=path, offset=0, reason=f"its header says it is segment {header.number}")
    return header


def recover(
    files: Files, directory: str, *, owner: Owner, mark: Mark, replay: Callable[[int, Batch], None]
) -> Recovered:
    """Replay what comes after the base store's mark; `replay` takes a sequence number and its batch.

    Raises CorruptLog, DataDirForeign, DataDirFormat or OSError.
    """
    numbers = segment_numbers(files, directory)
    headers = {number: read_header(files, segment_path(directory, number), number) for number in numbers}
    for number, header in headers.items():
        _check_owner(segment_path(directory, number), header, owner)
    covered = [
        number
        for number, following in pairwise(numbers)
        if headers[following].first_sequence <= mark.position + 1
    ]
    needed = numbers[len(covered) :]
    _check_extent(directory, needed, headers, mark)
    state = Recovered(needless=[segment_path(directory, number) for number in covered])
    for number in needed:
        _read_segment(files, directory, headers[number], state, mark, replay, is_last=number == needed[-1])
    if state.sequence < mark.position:
        path = segment_path(directory, state.number)
        reason = f"the log ends at record {state.sequence}, the base store has {mark.position}"
        raise errors.CorruptLog(path=path, offset=state.offset, reason=reason)
    return state


def first_mark(files: Files, directory: str) -> Mark:
    """The mark of a base store that lost everything: the log counts from where it begins."""
    numbers = segment_numbers(files, directory)
    if not numbers:
        return Mark()
    header = read_header(files, segment_path(directory, numbers[0]), numbers[0])
    return Mark(position=header.first_sequence - 1)


def _check_owner(path: str, header: SegmentHeader, owner: Owner) -> None:
    if (header.cluster, header.node) != (owner.cluster, owner.node):
        raise errors.DataDirForeign(
            path=path,
            expected=f"node {owner.node} of cluster {owner.cluster.hex()}",
            found=f"node {header.node} of cluster {header.cluster.hex()}",
        )


def _check_extent(directory: str, needed: list[int], headers: dict[int, SegmentHeader], mark: Mark) -> None:
    """Refuse a log whose beginning or end was taken away; `_read_segment` finds a missing middle."""
    if not needed:
        if mark.segment:
            reason = f"there is no segment; the base store has seen segment {mark.segment}"
            raise errors.CorruptLog(path=directory, offset=0, reason=reason)
        return
    first = headers[needed[0]]
    if first.first_sequence > mark.position + 1:
        reason = f"it begins at record {first.first_sequence}, the base store ends at {mark.position}"
        raise errors.CorruptLog(path=segment_path(directory, needed[0]), offset=0, reason=reason)
    if needed[-1] < mark.segment:
        reason = f"segment {mark.segment} is missing, which the base store has seen"
        raise errors.CorruptLog(path=segment_path(directory, needed[-1]), offset=0, reason=reason)


def _read_segment(
    files: Files,
    directory: str,
    header: SegmentHeader,
    state: Recovered,
    mark: Mark,
    replay: Callable[[int, Batch], None],
    *,
    is_last: bool,
) -> None:
    path = segment_path(directory, header.number)
    if state.number and (header.first_sequence, header.chain) != (state.sequence + 1, state.chain):
        reason = f"it does not continue segment {state.number}, which ends at record {state.sequence}"
        raise errors.CorruptLog(path=path, offset=0, reason=reason)
    data = files.read(path)
    end = _replay(path, tail.read(data, header, is_last=is_last), state, mark, replay)
    if end.verdict is Verdict.CORRUPT:
        raise errors.CorruptLog(path=path, offset=end.offset, reason=end.reason)
    if is_last:
        _close_tail(files, path, data, end, state)
    state.number, state.offset, state.sequence, state.chain = (
        header.number,
        end.offset,
        end.sequence,
        end.chain,
    )
    if end.sequence < header.first_sequence:
        # Nothing was ever written to it: it goes when the next one stands.
        state.needless.append(path)
    else:
        state.kept.append(SegmentFile(header.number, end.sequence, end.offset))


def _replay(
    path: str,
    records: Iterator[tail.Found | tail.End],
    state: Recovered,
    mark: Mark,
    replay: Callable[[int, Batch], None],
) -> tail.End:
    for found in records:
        if isinstance(found, tail.End):
            return found
        if found.frame.sequence > mark.position:
            try:
                batch = segment.decode_batch(found.payload)
            except ValueError as error:
                raise errors.CorruptLog(path=path, offset=found.frame.offset, reason=str(error)) from error
            replay(found.frame.sequence, batch)
            state.records += len(batch.entries)
    raise AssertionError("tail.read ends with an End")


def _close_tail(files: Files, path: str, data: bytes, end: tail.End, state: Recovered) -> None:
    """Give back what is behind the last record; nothing is ever appended to this file again.

    What was read may be in the page cache only, and is served from now on: it is synced in any case.
    """
    if end.verdict is Verdict.TORN:
        state.torn = f"{path}.{end.offset}.torn"
        files.write_atomic(state.torn, data[end.offset : tail.written_end(data, end.offset)])
    file = files.open(path)
    try:
        if end.offset < len(data):
            file.truncate(end.offset)
        file.sync()
    finally:
        file.close()
