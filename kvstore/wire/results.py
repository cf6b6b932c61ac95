"""What a node answers to its clients, encode beside decode. Shapes in docs/protocol.md.

A client trusts no node blindly: an answer of another shape is errors.Malformed, whatever it holds. Elements
behind those we know are ignored, so that an older client understands a newer node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from kvstore import errors
from kvstore.types import Durability

_T = TypeVar("_T")

FLAG_SUPERSEDED = 1
"""In a receipt: a replica already held something newer."""
FLAG_EXISTED = 2
"""In a receipt: the write took the place of a live record."""
_DURABILITIES = {int(each) for each in Durability}


class Written(NamedTuple):
    """The receipt of a write."""

    version: int
    epoch: int
    acked: tuple[int, ...]
    flags: int
    durability: int
    repaired: tuple[int, ...]


class Found(NamedTuple):
    """The answer to a read; `payload` is nil when nothing is there, and with `head`."""

    payload: bytes | None
    version: int
    expires_ms: int
    epoch: int
    answered: tuple[int, ...]
    repaired: tuple[int, ...]
    exists: bool


class Row(NamedTuple):
    """One entry of a page."""

    key: bytes
    payload: bytes | None
    version: int
    expires_ms: int


class Rows(NamedTuple):
    """A page of a scan; `cursor` is nil behind the last one."""

    rows: list[Row]
    cursor: bytes | None
    epoch: int
    answered: tuple[int, ...]


def encode_receipt(
    version: int,
    epoch: int,
    acked: Sequence[int],
    superseded: bool,
    existed: bool,
    durability: int,
    repaired: Sequence[int] = (),
) -> tuple[Any, ...]:
    """`[version, epoch, acked, flags, durability, repaired]`; flags: 1 superseded, 2 existed."""
    return version, epoch, acked, superseded | existed << 1, durability, repaired


def decode_receipt(result: Any) -> Written:
    """The other way. Raises errors.Malformed."""
    if type(result) is tuple and len(result) >= 6:
        version, epoch, acked, flags, durability, repaired = result[:6]
        if (
            type(version) is type(epoch) is type(flags) is type(durability) is int
            and durability in _DURABILITIES
            and _numbers(acked)
            and _numbers(repaired)
        ):
            return Written(version, epoch, acked, flags, durability, repaired)
    raise _malformed("a receipt")


def decode_receipt_or_nil(result: Any) -> Written | None:
    """Of touch and persist: nil when there is no such key."""
    return None if result is None else decode_receipt(result)


def encode_found(found: Found) -> list[Any]:
    """`[payload, version, expires_ms, epoch, answered, repaired, exists]`."""
    return list(found)


def decode_found(result: Any) -> Found:
    """The other way. Raises errors.Malformed."""
    if type(result) is tuple and len(result) >= 7:
        payload, version, expires_ms, epoch, answered, repaired, exists = result[:7]
        if (
            (payload is None or type(payload) is bytes)
            and type(version) is type(expires_ms) is type(epoch) is int
            and _numbers(answered)
            and _numbers(repaired)
            and type(exists) is bool
        ):
            return Found(payload, version, expires_ms, epoch, answered, repaired, exists)
    raise _malformed("an entry")


def encode_failure(error: errors.KVError) -> dict[str, Any]:
    """One key of many failed: `{"error": [name, message, fields]}` in its place."""
    return {"error": error.to_wire()}


def decode_many(result: Any, count: int, one: Callable[[Any], _T]) -> list[_T | errors.KVError]:
    """The outcomes of `count` keys, each by `one` or as its error. Raises errors.Malformed."""
    if type(result) is not tuple or len(result) != count:
        raise _malformed(f"an array of {count} outcomes")
    return [
        errors.from_wire(each.get("error")) if type(each) is dict and "error" in each else one(each)
        for each in result
    ]


def encode_rows(rows: Rows) -> list[Any]:
    """`[[[key, payload, version, expires_ms], ...], cursor, epoch, answered]`."""
    return [[list(row) for row in rows.rows], rows.cursor, rows.epoch, rows.answered]


def decode_rows(result: Any) -> Rows:
    """The other way. Raises errors.Malformed."""
    if type(result) is tuple and len(result) >= 4:
        plain, cursor, epoch, answered = result[:4]
        if (
            type(plain) is tuple
            and (cursor is None or type(cursor) is bytes)
            and type(epoch) is int
            and _numbers(answered)
        ):
            return Rows([_row(each) for each in plain], cursor, epoch, answered)
    raise _malformed("a page")


def _row(plain: Any) -> Row:
    if type(plain) is tuple and len(plain) >= 4:
        key, payload, version, expires_ms = plain[:4]
        if (
            type(key) is bytes
            and (payload is None or type(payload) is bytes)
            and type(version) is type(expires_ms) is int
        ):
            return Row(key, payload, version, expires_ms)
    raise _malformed("an entry of a page")


def decode_map(result: Any) -> Mapping[str, Any]:
    """Of status and topology: a map, whose fields are for whoever reads it. Raises errors.Malformed."""
    if type(result) is not dict:
        raise _malformed("a map")
    return result


def decode_greeting(result: Any) -> Mapping[str, Any]:
    """Of hello: who answers. `cluster`, `node` and `epoch` must be there. Raises errors.Malformed."""
    plain = decode_map(result)
    if (
        type(plain.get("cluster")) is not str
        or type(plain.get("node")) is not int
        or type(plain.get("epoch")) is not int
    ):
        raise _malformed("a greeting with cluster, node and epoch")
    return plain


def clocks_of(result: Any) -> tuple[int, int] | None:
    """What `ping` is answered with: `[wall_ms, steady_ms]`; None when it is anything else."""
    if type(result) is tuple and len(result) == 2 and type(result[0]) is type(result[1]) is int:
        return result
    return None


def _numbers(value: Any) -> bool:
    return type(value) is tuple and all(type(each) is int for each in value)


def _malformed(wanted: str) -> errors.Malformed:
    return errors.Malformed(reason=f"the answer should be {wanted}")
