"""The messages of counters, encode beside decode. Shapes in docs/protocol.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kvstore import errors
from kvstore.core.counters import ID_BYTES, TOTAL_MAX
from kvstore.types import OperationId
from kvstore.wire.options import Options, decode_options


class CounterAdd(NamedTuple):
    """One adder's totals."""

    key: bytes
    operation: OperationId
    part: bytes
    generation: int
    plus: int
    minus: int
    options: Options


class CounterState(NamedTuple):
    """What a counter says; `generation` is what the next part must begin after."""

    generation: int
    total: int
    exists: bool


def encode_counter_add(
    key: bytes,
    operation: bytes,
    part: bytes,
    generation: int,
    plus: int,
    minus: int,
    options: dict[str, Any],
) -> Sequence[Any]:
    """`[key, operation, part, generation, plus, minus, options]`."""
    return key, operation, part, generation, plus, minus, options


def decode_counter_add(params: Sequence[Any]) -> CounterAdd:
    """The other way. Raises errors.BadOption."""
    if len(params) >= 6:
        key, operation, part, generation, plus, minus = params[:6]
        if (
            type(key) is type(operation) is type(part) is bytes
            and len(operation) == 16
            and len(part) == ID_BYTES
            and type(generation) is type(plus) is type(minus) is int
            and 0 <= generation < 1 << 64
            and 0 <= plus <= TOTAL_MAX
            and 0 <= minus <= TOTAL_MAX
        ):
            options = decode_options(params, 6)
            return CounterAdd(key, OperationId(operation), part, generation, plus, minus, options)
    raise errors.BadOption(
        option="params", given="something else", allowed="key, operation, part, generation, plus, minus"
    )


def encode_counter_state(state: CounterState) -> list[Any]:
    """`[generation, total, exists]`."""
    return list(state)


def decode_counter_state(result: Any) -> CounterState:
    """The other way. Raises errors.Malformed."""
    if type(result) is tuple and len(result) >= 3:
        generation, total, exists = result[:3]
        if type(generation) is type(total) is int and type(exists) is bool:
            return CounterState(generation, total, exists)
    raise errors.Malformed(reason="the answer should be the state of a counter")
