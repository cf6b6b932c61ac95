"""Calls of a register as its clients see them, and whether some order of them explains every answer.

Shares nothing with `kvstore.core`.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any, NamedTuple


class Call(NamedTuple):
    """What one client wants; `plain` begins as an ordinary write at two acceptors."""

    name: str
    args: tuple[Any, ...] = ()
    plain: bool = False
    after: int = -1
    """Begins only when that call has ended; -1: any time."""
    succeeds: int = -1
    """Its proposer is that call's, and goes on where that one ended, without a prepare."""


def has_order(calls: tuple[Call, ...], history: tuple[Any, ...], begun: tuple[bool, ...]) -> bool:
    """Whether some order of the calls explains every answer; calls without one may be left out.

    `history` has for each call None, or its answer and the calls that had ended when it began.
    """
    must = [n for n, ended in enumerate(history) if ended is not None]
    may = [n for n, ended in enumerate(history) if ended is None and begun[n]]
    for size in range(len(may) + 1):
        for extra in permutations(may, size):
            for order in permutations(must + list(extra)):
                if _explains(calls, order, history):
                    return True
    return False


def _explains(calls: tuple[Call, ...], order: tuple[int, ...], history: tuple[Any, ...]) -> bool:
    place = {number: at for at, number in enumerate(order)}
    state: bytes | None = None
    for number in order:
        ended = history[number]
        if ended is not None and any(place[earlier] > place[number] for earlier in ended[1]):
            return False
        state, answer = _model(state, calls[number])
        if ended is not None and answer != ended[0]:
            return False
    return True


def _model(state: bytes | None, call: Call) -> tuple[bytes | None, Any]:
    """A register as it should be."""
    match call.name:
        case "get":
            return state, (True, state)
        case "put":
            return call.args[0], (True, None)
        case "delete":
            return None, (True, None)
        case "incr":
            number = int(state or call.args[1]) + call.args[0]
            return str(number).encode(), (True, str(number).encode())
        case "get_and_set":
            return call.args[0], (True, state)
        case "cas_value":
            if state == call.args[0]:
                return call.args[1], (True, None)
            return state, (False, state)
    raise AssertionError(call.name)
