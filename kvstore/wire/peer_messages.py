"""What nodes say to each other, encode beside decode. Shapes in docs/protocol.md.

These carry thousands of records a message: the checks run in C (`map`, `set`), and no object is made for
a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kvstore import errors, limits
from kvstore.core.record import HEADER_BYTES, is_well_formed
from kvstore.core.witness import Told
from kvstore.wire.greeting import decode_offer, text_of

_BYTES = {bytes}
_BYTES_OR_NIL = {bytes, type(None)}
_SKEY_BYTES_MIN = 3
"""Two of the partition, one of the key."""


class PeerHello(NamedTuple):
    """Who wants to be our peer."""

    cluster: str
    node: int
    uuid: str
    epoch: int
    token: str
    wall_ms: int
    told: Told | None
    """What it has made durable about its versions; None: its data is in memory alone."""


class PeerScan(NamedTuple):
    """A part of a page: storage keys from `start` to before `stop` whose keys begin with `prefix`."""

    epoch: int
    budget_ms: int
    start: bytes
    stop: bytes
    prefix: bytes
    limit: int
    bytes_max: int


def decode_peer_hello(params: Sequence[Any]) -> PeerHello:
    """`[{protocol, cluster, node, uuid, epoch, token, wall_ms, told}]`."""
    plain = decode_offer(params)
    node, epoch, wall_ms = plain.get("node"), plain.get("epoch"), plain.get("wall_ms", 0)
    if type(node) is not int or type(epoch) is not int or type(wall_ms) is not int:
        raise errors.BadOption(
            option="hello", given="something else", allowed="node, epoch, wall_ms as numbers"
        )
    return PeerHello(
        text_of(plain, "cluster"),
        node,
        text_of(plain, "uuid"),
        epoch,
        text_of(plain, "token"),
        wall_ms,
        told_of(plain.get("told")),
    )


def told_of(given: Any) -> Told | None:
    """`[life, ceiling]` or nothing. Raises errors.BadOption."""
    if given is None:
        return None
    if type(given) is tuple and len(given) == 2 and all(type(n) is int and n >= 0 for n in given):
        return Told(*given)
    raise errors.BadOption(option="told", given="something else", allowed="two numbers, or nothing")


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
            and min(map(len, flat[::2]), default=_SKEY_BYTES_MIN) >= _SKEY_BYTES_MIN
            and min(map(len, flat[1::2]), default=HEADER_BYTES) >= HEADER_BYTES
        ):
            return epoch, budget_ms, sync, flat
    raise errors.Malformed(reason="write takes epoch, budget, sync and an array of storage keys and records")


def decode_peer_stored(result: Any, count: int) -> tuple[int, bytes] | None:
    """Its answer, `[durability, statuses]` for `count` records; None when it is anything else."""
    if type(result) is tuple and len(result) == 2:
        durability, statuses = result
        if type(durability) is int and type(statuses) is bytes and len(statuses) == count:
            return durability, statuses
    return None


def decode_peer_read(params: Sequence[Any]) -> tuple[int, int, Sequence[bytes]]:
    """`[epoch, budget_ms, [skey ...]]`."""
    if len(params) == 3:
        epoch, budget_ms, skeys = params
        if type(epoch) is int and type(budget_ms) is int and type(skeys) is tuple and _all_bytes(skeys):
            return epoch, budget_ms, skeys
    raise errors.Malformed(reason="read takes epoch, budget and an array of bytes")


def decode_peer_records(result: Any, count: int) -> Sequence[bytes | None] | None:
    """Its answer, `[record | nil, ...]` for the first of `count` keys; None when it is anything else."""
    if (
        type(result) is tuple
        and min(count, 1) <= len(result) <= count
        and _BYTES_OR_NIL.issuperset(map(type, result))
        and all(map(is_well_formed, filter(None, result)))
        and b"" not in result
    ):
        return result
    return None


def encode_peer_scan(
    epoch: int, budget_ms: int, start: bytes, stop: bytes, prefix: bytes, limit: int, bytes_max: int
) -> list[Any]:
    """`[epoch, budget_ms, start, stop, prefix, limit, bytes_max]`."""
    return [epoch, budget_ms, start, stop, prefix, limit, bytes_max]


def decode_peer_scan(params: Sequence[Any]) -> PeerScan:
    """The other way. Bounds are storage keys; the limits are cut to ours."""
    if len(params) == 7:
        epoch, budget_ms, start, stop, prefix, limit, bytes_max = params
        if (
            all(type(n) is int and n >= 0 for n in (epoch, budget_ms, limit, bytes_max))
            and _all_bytes((start, stop, prefix))
            and len(start) >= 2
            and len(stop) >= 2
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
        if (
            type(flat) is tuple
            and type(more) is bool
            and not len(flat) & 1
            and _all_bytes(flat)
            and min(map(len, flat[::2]), default=_SKEY_BYTES_MIN) >= _SKEY_BYTES_MIN
            and all(map(is_well_formed, flat[1::2]))
        ):
            return list(zip(flat[::2], flat[1::2], strict=True)), more
    raise errors.Malformed(reason="a page is an array of storage keys and records, and a flag")


def _all_bytes(values: Sequence[Any]) -> bool:
    return _BYTES.issuperset(map(type, values))
