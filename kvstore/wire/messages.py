"""Every message: its params and results, encode beside decode. Grammar in docs/protocol.md.

Bytes become checked values here and nowhere else; after this nobody checks a type again. Unknown
options are ignored, so that an older node understands a newer client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kvstore import errors, limits
from kvstore.core.record import is_well_formed
from kvstore.types import Consistency, Durability, OperationId

PROTOCOL = 1
OPERATION_BYTES = 16
FLAG_SUPERSEDED = 1
"""In a receipt: a replica already held something newer."""
FLAG_EXISTED = 2
"""In a receipt: the write took the place of a live record."""


class Options(NamedTuple):
    """What any call may carry. None: not given. Times in milliseconds."""

    ttl_ms: int | None = None
    expires_ms: int | None = None
    consistency: Consistency | None = None
    r: int | None = None
    w: int | None = None
    timeout_ms: int | None = None
    durability: Durability | None = None
    head: bool = False
    prefix: bytes = b""
    limit: int | None = None
    keys_only: bool = False


_NONE = Options()
_CACHE_MAX = 512
_cache: dict[tuple[Any, ...], Options] = {}
_LEVELS = {level.value: level for level in Consistency}
_FIELDS = {
    "ttl": "ttl_ms",
    "exp": "expires_ms",
    "c": "consistency",
    "r": "r",
    "w": "w",
    "t": "timeout_ms",
    "d": "durability",
    "head": "head",
    "prefix": "prefix",
    "limit": "limit",
    "keys_only": "keys_only",
}
_RANGES = {
    "r": (1, limits.REPLICAS_MAX),
    "w": (1, limits.REPLICAS_MAX),
    "t": (1, limits.TIMEOUT_MS_MAX),
    "limit": (1, limits.SCAN_LIMIT_MAX),
}


def decode_options(params: Sequence[Any], at: int) -> Options:
    """The trailing map of a call; may be missing or nil. Raises errors.BadOption and its kin."""
    if len(params) <= at:
        return _NONE
    plain = params[at]
    if not plain:
        return _NONE
    if type(plain) is not dict:
        raise errors.BadOption(option="options", given=type(plain).__name__, allowed="a map")
    try:
        known = tuple(plain.items())
        found = _cache.get(known)
    except TypeError:
        raise errors.BadOption(option="options", given="a nested value", allowed="plain values") from None
    if found is None:
        found = Options(**{_FIELDS[name]: _option(name, value) for name, value in known if name in _FIELDS})
        if len(_cache) >= _CACHE_MAX:
            _cache.clear()
        # A cached bool would answer for the integer it equals (True == 1): keep those out.
        if not any(isinstance(value, bool) for _, value in known):
            _cache[known] = found
    return found


def _option(name: str, value: Any) -> Any:
    match name:
        case "ttl" | "exp":
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise errors.BadTtl(given=repr(value))
            return value
        case "c":
            level = _LEVELS.get(value) if isinstance(value, str) else None
            if level is None:
                raise errors.BadConsistency(given=repr(value), allowed=", ".join(_LEVELS))
            return level
        case "d":
            if value != "always":
                raise errors.BadOption(option="d", given=repr(value), allowed='"always"')
            return Durability.ALWAYS
        case "head" | "keys_only":
            if not isinstance(value, bool):
                raise errors.BadOption(option=name, given=repr(value), allowed="true or false")
            return value
        case "prefix":
            if not isinstance(value, bytes) or len(value) > limits.KEY_BYTES_MAX:
                raise errors.BadOption(
                    option=name, given=repr(value)[:60], allowed="bytes no longer than a key"
                )
            return value
        case _:
            low, high = _RANGES[name]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                kind = errors.BadConsistency if name in "rw" else errors.BadOption
                raise kind(option=name, given=repr(value), allowed=f"{low} to {high}")
            return value


def encode_options(**options: Any) -> dict[str, Any]:
    """The other way: names as in `Options`, values as Python has them; None is left out."""
    plain: dict[str, Any] = {}
    for short, name in _FIELDS.items():
        value = options.get(name)
        if value is None or value is False or value == b"":
            continue
        if isinstance(value, Consistency):
            value = value.value
        elif isinstance(value, Durability):
            value = "always"
        plain[short] = value
    return plain


# --- client requests --------------------------------------------------------------------


class Put(NamedTuple):
    key: bytes
    value: bytes
    operation: OperationId
    options: Options


class Get(NamedTuple):
    key: bytes
    options: Options


class Retime(NamedTuple):
    """touch and persist, and the shape of delete."""

    key: bytes
    operation: OperationId
    options: Options


class GetMany(NamedTuple):
    keys: tuple[bytes, ...]
    options: Options


class PutMany(NamedTuple):
    items: tuple[tuple[bytes, bytes], ...]
    operation: OperationId
    options: Options


class DeleteMany(NamedTuple):
    keys: tuple[bytes, ...]
    operation: OperationId
    options: Options


class Scan(NamedTuple):
    cursor: bytes | None
    options: Options


class Hello(NamedTuple):
    agent: str
    cluster: str
    token: str


class PeerHello(NamedTuple):
    cluster: str
    node: int
    uuid: str
    epoch: int
    token: str
    wall_ms: int


class PeerScan(NamedTuple):
    epoch: int
    budget_ms: int
    start: bytes
    stop: bytes
    prefix: bytes
    limit: int
    bytes_max: int


def _bad(what: str, given: object, allowed: str) -> errors.BadOption:
    return errors.BadOption(option=what, given=type(given).__name__, allowed=allowed)


def _args(params: Sequence[Any], least: int, shape: str) -> None:
    if len(params) < least:
        raise errors.BadOption(option="params", given=f"{len(params)} of them", allowed=shape)


def _operation(value: Any) -> OperationId:
    if type(value) is not bytes or len(value) != OPERATION_BYTES:
        raise _bad("operation", value, "16 bytes")
    return OperationId(value)


def decode_put(params: Sequence[Any]) -> Put:
    """`[key, value, operation, options]`."""
    _args(params, 3, "key, value, operation, options")
    key, value, operation = params[0], params[1], params[2]
    if type(key) is not bytes:
        raise _bad("key", key, "bytes")
    if type(value) is not bytes:
        raise _bad("value", value, "bytes")
    return Put(key, value, _operation(operation), decode_options(params, 3))


def decode_get(params: Sequence[Any]) -> Get:
    """`[key, options]`."""
    _args(params, 1, "key, options")
    key = params[0]
    if type(key) is not bytes:
        raise _bad("key", key, "bytes")
    return Get(key, decode_options(params, 1))


def decode_retime(params: Sequence[Any]) -> Retime:
    """`[key, operation, options]`: delete, touch, persist."""
    _args(params, 2, "key, operation, options")
    key = params[0]
    if type(key) is not bytes:
        raise _bad("key", key, "bytes")
    return Retime(key, _operation(params[1]), decode_options(params, 2))


decode_delete = decode_touch = decode_persist = decode_retime


def _keys(value: Any) -> tuple[bytes, ...]:
    if type(value) is not tuple or not all(type(key) is bytes for key in value):
        raise _bad("keys", value, "an array of bytes")
    if len(value) > limits.BATCH_KEYS_MAX:
        raise errors.BadOption(
            option="keys", given=f"{len(value)} of them", allowed=f"up to {limits.BATCH_KEYS_MAX}"
        )
    return value


def decode_get_many(params: Sequence[Any]) -> GetMany:
    """`[[key ...], options]`."""
    _args(params, 1, "keys, options")
    return GetMany(_keys(params[0]), decode_options(params, 1))


def decode_put_many(params: Sequence[Any]) -> PutMany:
    """`[[[key, value] ...], operation, options]`."""
    _args(params, 2, "items, operation, options")
    items = params[0]
    if type(items) is not tuple or not all(
        type(item) is tuple and len(item) == 2 and type(item[0]) is bytes and type(item[1]) is bytes
        for item in items
    ):
        raise _bad("items", items, "an array of [key, value], both bytes")
    if len(items) > limits.BATCH_KEYS_MAX:
        raise errors.BadOption(
            option="items", given=f"{len(items)} of them", allowed=f"up to {limits.BATCH_KEYS_MAX}"
        )
    return PutMany(items, _operation(params[1]), decode_options(params, 2))


def decode_delete_many(params: Sequence[Any]) -> DeleteMany:
    """`[[key ...], operation, options]`."""
    _args(params, 2, "keys, operation, options")
    return DeleteMany(_keys(params[0]), _operation(params[1]), decode_options(params, 2))


def decode_scan(params: Sequence[Any]) -> Scan:
    """`[cursor | nil, options]`."""
    _args(params, 1, "cursor, options")
    cursor = params[0]
    if cursor is not None and (type(cursor) is not bytes or not 2 <= len(cursor) <= limits.KEY_BYTES_MAX + 3):
        raise _bad("cursor", cursor, "nil, or what the last page gave")
    return Scan(cursor, decode_options(params, 1))


def decode_locate(params: Sequence[Any]) -> bytes:
    """`[key]`."""
    return decode_get(params[:1]).key


def _map(params: Sequence[Any]) -> Mapping[str, Any]:
    if not params or type(params[0]) is not dict:
        raise errors.BadOption(option="hello", given="something else", allowed="a map")
    plain: Mapping[str, Any] = params[0]
    offered = plain.get("protocol")
    if type(offered) is not tuple or len(offered) != 2 or not all(type(n) is int for n in offered):
        raise errors.ProtocolMismatch(offered=repr(offered), supported=str(PROTOCOL))
    if not offered[0] <= PROTOCOL <= offered[1]:
        raise errors.ProtocolMismatch(offered=f"{offered[0]} to {offered[1]}", supported=str(PROTOCOL))
    return plain


def _text(plain: Mapping[str, Any], name: str) -> str:
    value = plain.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _bad(name, value, "text")
    return value


def decode_hello(params: Sequence[Any]) -> Hello:
    """`[{protocol: [least, most], agent, cluster, token}]`."""
    plain = _map(params)
    return Hello(_text(plain, "agent")[:200], _text(plain, "cluster"), _text(plain, "token"))


# --- client results ---------------------------------------------------------------------


def encode_receipt(
    *,
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


# --- peers ------------------------------------------------------------------------------


def decode_peer_hello(params: Sequence[Any]) -> PeerHello:
    """`[{protocol, cluster, node, uuid, epoch, token, wall_ms}]`."""
    plain = _map(params)
    node, epoch, wall_ms = plain.get("node"), plain.get("epoch"), plain.get("wall_ms", 0)
    if type(node) is not int or type(epoch) is not int or type(wall_ms) is not int:
        raise errors.BadOption(
            option="hello", given="something else", allowed="node, epoch, wall_ms as numbers"
        )
    return PeerHello(
        _text(plain, "cluster"), node, _text(plain, "uuid"), epoch, _text(plain, "token"), wall_ms
    )


def decode_peer_write(params: Sequence[Any]) -> tuple[int, int, bool, Sequence[bytes]]:
    """`[epoch, budget_ms, sync, [skey, record, ...]]`."""
    if len(params) == 4:
        epoch, budget_ms, sync, flat = params
        if (
            type(epoch) is int
            and type(budget_ms) is int
            and type(sync) is bool
            and type(flat) is tuple
            and not len(flat) & 1
            and _all_bytes(flat)
        ):
            return epoch, budget_ms, sync, flat
    raise errors.Malformed(reason="write takes epoch, budget, sync and an even array of bytes")


def decode_peer_read(params: Sequence[Any]) -> tuple[int, int, Sequence[bytes]]:
    """`[epoch, budget_ms, [skey ...]]`."""
    if len(params) == 3:
        epoch, budget_ms, skeys = params
        if type(epoch) is int and type(budget_ms) is int and type(skeys) is tuple and _all_bytes(skeys):
            return epoch, budget_ms, skeys
    raise errors.Malformed(reason="read takes epoch, budget and an array of bytes")


def encode_peer_scan(
    epoch: int, budget_ms: int, start: bytes, stop: bytes, prefix: bytes, limit: int, bytes_max: int
) -> list[Any]:
    """`[epoch, budget_ms, start, stop, prefix, limit, bytes_max]`."""
    return [epoch, budget_ms, start, stop, prefix, limit, bytes_max]


def decode_peer_scan(params: Sequence[Any]) -> PeerScan:
    """The other way. Bounds are storage keys; the limits are cut to ours."""
    if len(params) == 7:
        epoch, budget_ms, start, stop, prefix, limit, bytes_max = params
        if all(type(n) is int and n >= 0 for n in (epoch, budget_ms, limit, bytes_max)) and _all_bytes(
            (start, stop, prefix)
        ):
            return PeerScan(
                epoch,
                budget_ms,
                start,
                stop,
                prefix,
                min(limit, limits.SCAN_STEP_KEYS_MAX),
                min(bytes_max, limits.SCAN_PAGE_BYTES_MAX),
            )
    raise errors.Malformed(reason="scan takes epoch, budget, start, stop, prefix, limit, bytes")


def encode_peer_page(entries: Sequence[tuple[bytes, bytes]], more: bool) -> list[Any]:
    """`[[skey, record, ...], more]`."""
    return [[part for entry in entries for part in entry], more]


def decode_peer_page(result: Any) -> tuple[list[tuple[bytes, bytes]], bool]:
    """The other way."""
    if type(result) is tuple and len(result) == 2:
        flat, more = result
        if type(flat) is tuple and type(more) is bool and not len(flat) & 1 and _all_bytes(flat):
            return list(zip(flat[::2], flat[1::2], strict=True)), more
    raise errors.Malformed(reason="a page is an even array of bytes, and a flag")


def decode_peer_stored(result: Any, count: int) -> tuple[int, bytes] | None:
    """`[durability, statuses]` for `count` records; None when it is anything else."""
    if type(result) is tuple and len(result) == 2:
        durability, statuses = result
        if type(durability) is int and type(statuses) is bytes and len(statuses) == count:
            return durability, statuses
    return None


def decode_peer_records(result: Any, count: int) -> Sequence[bytes | None] | None:
    """`[record | nil, ...]` for `count` keys; None when it is anything else."""
    if (
        type(result) is tuple
        and len(result) == count
        and all(record is None or (type(record) is bytes and is_well_formed(record)) for record in result)
    ):
        return result
    return None


def _all_bytes(values: Sequence[Any]) -> bool:
    return all(type(value) is bytes for value in values)
