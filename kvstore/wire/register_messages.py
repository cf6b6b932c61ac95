"""The messages of registers: changes by name, and what proposers and acceptors say.

Shapes in docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kvstore import errors, limits
from kvstore.core.changes import Request
from kvstore.core.record import HEADER_BYTES, is_well_formed
from kvstore.core.window import Outcome
from kvstore.types import OperationId, Version
from kvstore.wire.options import Options, decode_options, shown

PREPARE, ACCEPT = 1, 2
GRANTED, BEATEN, FAILED, FULL = 0, 1, 2, 3
"""An acceptor's answers: done; a higher number was seen; not now; its disk is full."""
_Shape = tuple[frozenset[type], ...]
_BYTES: frozenset[type] = frozenset({bytes})
_INT: frozenset[type] = frozenset({int})
_BYTES_OR_NIL = _BYTES | {type(None)}
_INT_OR_NIL = _INT | {type(None)}
_CLIENT_ARGS: dict[str, _Shape] = {
    "get": (),
    "put": (_BYTES,),
    "delete": (),
    "cas_version": (_INT, _BYTES_OR_NIL),
    "cas_value": (_BYTES_OR_NIL, _BYTES_OR_NIL),
    "get_and_set": (_BYTES_OR_NIL,),
    "incr": (_INT, _INT, _INT_OR_NIL, _INT_OR_NIL),
    "incr_in": (_INT, _INT, _INT, _INT_OR_NIL, _INT_OR_NIL),
    "retime": (_INT,),
    "resolve": (),
}
_ENDS = {"put", "cas_version", "cas_value", "get_and_set", "incr", "incr_in", "retime"}
"""Changes that set an expiry: between peers its instant is the last argument (of retime the first)."""


class Change(NamedTuple):
    """A client's change of a register."""

    key: bytes
    operation: OperationId
    name: str
    args: tuple[Any, ...]
    options: Options

    def full_args(self, expires_ms: int) -> tuple[Any, ...]:
        """With the instant at which the value ends (0: never), as `core.changes` takes them."""
        if self.name == "retime":
            return (expires_ms, *self.args)
        return (*self.args, expires_ms) if self.name in _ENDS else self.args


def encode_change(
    key: bytes, operation: bytes, name: str, args: Sequence[Any], options: dict[str, Any]
) -> Sequence[Any]:
    """`[key, operation, name, args, options]`."""
    return key, operation, name, args, options


def decode_change(params: Sequence[Any]) -> Change:
    """The other way. Raises errors.BadOption."""
    if len(params) < 4:
        raise errors.BadOption(
            option="params", given=f"{len(params)} of them", allowed="key, operation, name, args, options"
        )
    return _change(params, decode_options(params, 4))


def _change(params: Sequence[Any], options: Options) -> Change:
    key, operation, name, args = params[:4]
    if type(key) is not bytes or type(operation) is not bytes or len(operation) != 16:
        raise errors.BadOption(option="key, operation", given="something else", allowed="bytes, 16 bytes")
    _check_args(name, args, _CLIENT_ARGS)
    return Change(key, OperationId(operation), name, args, options)


class ChangeMany(NamedTuple):
    """Changes of many registers; each has its own outcome."""

    changes: list[Change]
    """Their options say when values end, and nothing else."""
    options: Options


def encode_change_many(items: Sequence[Sequence[Any]], options: dict[str, Any]) -> Sequence[Any]:
    """`[[[key, operation, name, args, ends], ...], options]`; `ends` holds `ttl` or `exp`, or nothing."""
    return items, options


def decode_change_many(params: Sequence[Any]) -> ChangeMany:
    """The other way. Raises errors.BadOption."""
    items = params[0] if params else None
    if type(items) is not tuple or not all(type(item) is tuple and len(item) >= 4 for item in items):
        raise errors.BadOption(
            option="changes", given=shown(items), allowed="an array of [key, operation, name, args, ends]"
        )
    if len(items) > limits.BATCH_KEYS_MAX:
        raise errors.BadOption(
            option="changes", given=f"{len(items)} of them", allowed=f"up to {limits.BATCH_KEYS_MAX}"
        )
    return ChangeMany([_change(item, decode_options(item, 4)) for item in items], decode_options(params, 1))


def _check_args(name: Any, args: Any, shapes: dict[str, _Shape]) -> None:
    shape = shapes.get(name) if type(name) is str else None
    if shape is None:
        raise errors.BadOption(option="change", given=shown(name), allowed=", ".join(shapes))
    if (
        type(args) is not tuple
        or len(args) != len(shape)
        or not all(type(arg) in types for arg, types in zip(args, shape, strict=True))
    ):
        raise errors.BadOption(
            option=f"arguments of {name}", given=shown(args), allowed=f"{len(shape)} as docs/protocol.md says"
        )


class Changed(NamedTuple):
    """The answer to a change."""

    flags: int
    version: int
    value: bytes | None
    expires_ms: int
    epoch: int
    acked: tuple[int, ...]


def encode_changed(outcome: Outcome, epoch: int, acked: Sequence[int]) -> tuple[Any, ...]:
    """`[flags, version, value, expires_ms, epoch, acked]`."""
    return outcome.flags, outcome.version, outcome.value, outcome.expires_ms, epoch, acked


def decode_changed(result: Any) -> Changed:
    """The other way. Raises errors.Malformed."""
    if type(result) is tuple and len(result) >= 6:
        flags, version, value, expires_ms, epoch, acked = result[:6]
        if (
            type(flags) is type(version) is type(expires_ms) is type(epoch) is int
            and type(value) in _BYTES_OR_NIL
            and type(acked) is tuple
            and all(type(each) is int for each in acked)
        ):
            return Changed(flags, version, value, expires_ms, epoch, acked)
    raise errors.Malformed(reason="the answer should be the outcome of a change")


def outcome_of(changed: Changed) -> Outcome:
    """As the rounds have it."""
    return Outcome(changed.flags, Version(changed.version), changed.value, changed.expires_ms)


# --- between peers ----------------------------------------------------------------------

_PEER_ARGS: dict[str, _Shape] = {
    name: (_INT, *shape) if name == "retime" else (*shape, _INT) if name in _ENDS else shape
    for name, shape in _CLIENT_ARGS.items()
}


def encode_forward(epoch: int, void_ms: int, key: bytes, request: Request) -> list[Any]:
    """`[epoch, void_ms, key, operation, first, name, args]`: run this change where you are.

    Not after `void_ms` of your steady clock: by then it was tried elsewhere, and a register remembers only
    so many outcomes.
    """
    return [epoch, void_ms, key, request.operation, request.first, request.name, request.args]


def decode_forward(params: Sequence[Any]) -> tuple[int, int, bytes, Request]:
    """The other way. Raises errors.Malformed, errors.BadOption."""
    if len(params) == 7:
        epoch, void_ms, key, operation, first, name, args = params
        if (
            type(epoch) is type(void_ms) is int
            and type(key) is type(operation) is bytes
            and len(operation) == 16
            and type(first) is bool
        ):
            _check_args(name, args, _PEER_ARGS)
            return epoch, void_ms, key, Request(OperationId(operation), first, name, args)
    raise errors.Malformed(reason="change takes epoch, void, key, operation, first, name, arguments")


def decode_votes(params: Sequence[Any]) -> tuple[int, list[tuple[int, bytes, Any]]]:
    """`[epoch, budget_ms, [kind, skey, ballot | record, ...]]`: what proposers ask in one message.

    Of a record the header is there and says that it is a register's; the acceptor looks further, which is
    quick for whoever holds the one before it.
    """
    if len(params) == 3:
        epoch, budget_ms, flat = params
        if type(epoch) is type(budget_ms) is int and type(flat) is tuple and len(flat) % 3 == 0:
            asked = list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
            if all(_is_vote(*vote) for vote in asked):
                return epoch, asked
    raise errors.Malformed(reason="register takes epoch, budget, and kind, storage key, ballot or record")


def _is_vote(kind: Any, skey: Any, what: Any) -> bool:
    if type(skey) is not bytes or len(skey) < 3:
        return False
    if kind == PREPARE:
        return type(what) is int and 0 < what < 1 << 64
    return kind == ACCEPT and type(what) is bytes and len(what) >= HEADER_BYTES and bool(what[17] & 1)


def decode_voted(result: Any, count: int) -> list[tuple[int, int, bytes | None]] | None:
    """Its answer, `[status, number, record | nil, ...]`; None when it is anything else.

    It may end early: the rest was not voted on.
    """
    if type(result) is not tuple or len(result) % 3 or not min(count, 1) <= len(result) // 3 <= count:
        return None
    voted = list(zip(result[::3], result[1::3], result[2::3], strict=True))
    return voted if all(type(s) is type(n) is int and _is_record(record) for s, n, record in voted) else None


def decode_shown(result: Any, count: int) -> list[tuple[int, bytes | None]] | None:
    """Of a peek: `[promised, record | nil, ...]`; None when it is anything else. It may end early."""
    if type(result) is not tuple or len(result) % 2 or not min(count, 1) <= len(result) // 2 <= count:
        return None
    seen = list(zip(result[::2], result[1::2], strict=True))
    return seen if all(type(n) is int and _is_record(record) for n, record in seen) else None


def _is_record(record: Any) -> bool:
    return record is None or (type(record) is bytes and is_well_formed(record))
