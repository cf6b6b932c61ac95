"""Every call of a client: its params, encode beside decode. Grammar in docs/protocol.md.

Bytes become checked values here and nowhere else; after this nobody checks a type again. This module is the
one door of the package: options, results, greeting and the peers' messages are reached through it too.

A plain get or put is decoded for every request of a client: those two are written out flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kvstore import errors, limits
from kvstore.types import OperationId
from kvstore.wire.counter_messages import (
    CounterAdd,
    CounterState,
    decode_counter_add,
    decode_counter_state,
    encode_counter_add,
    encode_counter_state,
)
from kvstore.wire.greeting import PROTOCOL, Hello, decode_hello, encode_hello
from kvstore.wire.options import Options, decode_options, encode_options, shown
from kvstore.wire.peer_messages import (
    PeerHello,
    PeerScan,
    decode_peer_hello,
    decode_peer_page,
    decode_peer_read,
    decode_peer_records,
    decode_peer_scan,
    decode_peer_stored,
    decode_peer_write,
    encode_peer_page,
    encode_peer_scan,
    told_of,
)
from kvstore.wire.register_messages import (
    Change,
    Changed,
    ChangeMany,
    decode_change,
    decode_change_many,
    decode_changed,
    decode_forward,
    decode_shown,
    decode_voted,
    decode_votes,
    encode_change,
    encode_change_many,
    encode_changed,
    encode_forward,
    outcome_of,
)
from kvstore.wire.results import FLAG_EXISTED, FLAG_SUPERSEDED, encode_receipt

OPERATION_BYTES = 16
PlainOptions = dict[str, Any]
"""Options as they travel; `encode_options` makes them, or a client that knows the short names."""


class Put(NamedTuple):
    """Store a value."""

    key: bytes
    value: bytes
    operation: OperationId
    options: Options


class Get(NamedTuple):
    """Read a key."""

    key: bytes
    options: Options


class Retime(NamedTuple):
    """touch and persist, and the shape of delete."""

    key: bytes
    operation: OperationId
    options: Options


class GetMany(NamedTuple):
    """Read many keys."""

    keys: tuple[bytes, ...]
    options: Options


class PutMany(NamedTuple):
    """Store many values."""

    items: tuple[tuple[bytes, bytes], ...]
    operation: OperationId
    options: Options


class DeleteMany(NamedTuple):
    """Delete many keys."""

    keys: tuple[bytes, ...]
    operation: OperationId
    options: Options


class Scan(NamedTuple):
    """One page, from the cursor of the last one."""

    cursor: bytes | None
    options: Options


def encode_put(key: bytes, value: bytes, operation: bytes, options: PlainOptions) -> Sequence[Any]:
    """`[key, value, operation, options]`."""
    return key, value, operation, options


def decode_put(params: Sequence[Any]) -> Put:
    """The other way."""
    if len(params) < 3:
        raise _too_few(params, "key, value, operation, options")
    key, value, operation = params[:3]
    if type(key) is bytes and type(value) is bytes and type(operation) is bytes and len(operation) == 16:
        return Put(key, value, OperationId(operation), decode_options(params, 3))
    if type(key) is not bytes:
        raise _bad("key", key, "bytes")
    if type(value) is not bytes:
        raise _bad("value", value, "bytes")
    raise _bad("operation", operation, f"{OPERATION_BYTES} bytes")


def encode_get(key: bytes, options: PlainOptions) -> Sequence[Any]:
    """`[key, options]`."""
    return key, options


def decode_get(params: Sequence[Any]) -> Get:
    """The other way."""
    if not params:
        raise _too_few(params, "key, options")
    key = params[0]
    if type(key) is not bytes:
        raise _bad("key", key, "bytes")
    return Get(key, decode_options(params, 1))


def encode_retime(key: bytes, operation: bytes, options: PlainOptions) -> Sequence[Any]:
    """`[key, operation, options]`: delete, touch, persist."""
    return key, operation, options


def decode_retime(params: Sequence[Any]) -> Retime:
    """The other way."""
    if len(params) < 2:
        raise _too_few(params, "key, operation, options")
    key = params[0]
    if type(key) is not bytes:
        raise _bad("key", key, "bytes")
    return Retime(key, _operation(params[1]), decode_options(params, 2))


encode_delete = encode_touch = encode_persist = encode_retime
decode_delete = decode_touch = decode_persist = decode_retime


def encode_get_many(keys: Sequence[bytes], options: PlainOptions) -> Sequence[Any]:
    """`[[key ...], options]`."""
    return keys, options


def decode_get_many(params: Sequence[Any]) -> GetMany:
    """The other way."""
    if not params:
        raise _too_few(params, "keys, options")
    return GetMany(_keys(params[0]), decode_options(params, 1))


def encode_put_many(
    items: Sequence[tuple[bytes, bytes]], operation: bytes, options: PlainOptions
) -> Sequence[Any]:
    """`[[[key, value] ...], operation, options]`."""
    return items, operation, options


def decode_put_many(params: Sequence[Any]) -> PutMany:
    """The other way."""
    if len(params) < 2:
        raise _too_few(params, "items, operation, options")
    items = params[0]
    if type(items) is not tuple or not all(
        type(item) is tuple and len(item) == 2 and type(item[0]) is bytes and type(item[1]) is bytes
        for item in items
    ):
        raise _bad("items", items, "an array of [key, value], both bytes")
    _check_count("items", items)
    return PutMany(items, _operation(params[1]), decode_options(params, 2))


def encode_delete_many(keys: Sequence[bytes], operation: bytes, options: PlainOptions) -> Sequence[Any]:
    """`[[key ...], operation, options]`."""
    return keys, operation, options


def decode_delete_many(params: Sequence[Any]) -> DeleteMany:
    """The other way."""
    if len(params) < 2:
        raise _too_few(params, "keys, operation, options")
    return DeleteMany(_keys(params[0]), _operation(params[1]), decode_options(params, 2))


def encode_scan(cursor: bytes | None, options: PlainOptions) -> Sequence[Any]:
    """`[cursor | nil, options]`."""
    return cursor, options


def decode_scan(params: Sequence[Any]) -> Scan:
    """The other way."""
    if not params:
        raise _too_few(params, "cursor, options")
    cursor = params[0]
    if cursor is not None and (type(cursor) is not bytes or not 2 <= len(cursor) <= limits.KEY_BYTES_MAX + 3):
        raise _bad("cursor", cursor, "nil, or what the last page gave")
    return Scan(cursor, decode_options(params, 1))


def decode_locate(params: Sequence[Any]) -> bytes:
    """`[key]`."""
    return decode_get(params[:1]).key


def _bad(what: str, given: object, allowed: str) -> errors.BadOption:
    length = f" of {len(given)}" if isinstance(given, bytes | tuple) else ""
    return errors.BadOption(option=what, given=shown(given) + length, allowed=allowed)


def _too_few(params: Sequence[Any], shape: str) -> errors.BadOption:
    return errors.BadOption(option="params", given=f"{len(params)} of them", allowed=shape)


def _operation(value: Any) -> OperationId:
    if type(value) is not bytes or len(value) != OPERATION_BYTES:
        raise _bad("operation", value, f"{OPERATION_BYTES} bytes")
    return OperationId(value)


def _keys(value: Any) -> tuple[bytes, ...]:
    if type(value) is not tuple or not all(type(key) is bytes for key in value):
        raise _bad("keys", value, "an array of bytes")
    _check_count("keys", value)
    return value


def _check_count(what: str, values: tuple[Any, ...]) -> None:
    if len(values) > limits.BATCH_KEYS_MAX:
        raise errors.BadOption(
            option=what, given=f"{len(values)} of them", allowed=f"up to {limits.BATCH_KEYS_MAX}"
        )


__all__ = [
    "FLAG_EXISTED",
    "FLAG_SUPERSEDED",
    "OPERATION_BYTES",
    "PROTOCOL",
    "Change",
    "ChangeMany",
    "Changed",
    "CounterAdd",
    "CounterState",
    "DeleteMany",
    "Get",
    "GetMany",
    "Hello",
    "Options",
    "PeerHello",
    "PeerScan",
    "PlainOptions",
    "Put",
    "PutMany",
    "Retime",
    "Scan",
    "decode_change",
    "decode_change_many",
    "decode_changed",
    "decode_counter_add",
    "decode_counter_state",
    "decode_delete",
    "decode_delete_many",
    "decode_forward",
    "decode_get",
    "decode_get_many",
    "decode_hello",
    "decode_locate",
    "decode_options",
    "decode_peer_hello",
    "decode_peer_page",
    "decode_peer_read",
    "decode_peer_records",
    "decode_peer_scan",
    "decode_peer_stored",
    "decode_peer_write",
    "decode_persist",
    "decode_put",
    "decode_put_many",
    "decode_retime",
    "decode_scan",
    "decode_shown",
    "decode_touch",
    "decode_voted",
    "decode_votes",
    "encode_change",
    "encode_change_many",
    "encode_changed",
    "encode_counter_add",
    "encode_counter_state",
    "encode_delete",
    "encode_delete_many",
    "encode_forward",
    "encode_get",
    "encode_get_many",
    "encode_hello",
    "encode_options",
    "encode_peer_page",
    "encode_peer_scan",
    "encode_persist",
    "encode_put",
    "encode_put_many",
    "encode_receipt",
    "encode_retime",
    "encode_scan",
    "encode_touch",
    "outcome_of",
    "told_of",
]
