"""The changes a register knows, by name, as pure functions; and how a round folds many into one record.

A change travels as its name and its arguments and runs where the register's round runs (DESIGN 6), so
that one round does it. All of them see the one `now` that the proposer fixed, and each change of a fold sees
the state its forerunners left.

Rules kept here:
- an operation found in the window is not done again: its first outcome is the answer;
- an operation older than what the window has dropped is `unresolved`, unless this is its first try;
- a retry that is not applied is remembered as well, so that a try still on its way cannot be applied after
  its client was told otherwise;
- a round that adopts a plain record takes that record's operation into the window;
- expiry is judged here and made a tombstone, so no later reader with another clock sees it live;
- versions never restart: a tombstone keeps the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kvstore.core import record as records
from kvstore.core import window as windows
from kvstore.core.window import APPLIED, CANCELLED, EXISTED, Outcome, Window
from kvstore.types import Kind, OperationId, Version

FOLD_MAX = windows.ENTRIES_MAX
"""Changes in one round: each must still be in the window when the round is answered."""
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
BAD_TYPE = 16
"""Outcome flag: the value is not an integer, so it cannot be incremented."""
TOO_OLD = 32
"""Outcome flag: nobody remembers whether it was applied."""


class State:
    """What a register holds at one point of a fold; `value` None: nothing."""

    __slots__ = ("expires_ms", "value", "version")

    def __init__(self, value: bytes | None, version: Version, expires_ms: int = 0) -> None:
        self.value = value
        self.version = version
        """Of the last change; of the deletion when there is nothing. 0: never written."""
        self.expires_ms = expires_ms


class Request(NamedTuple):
    """One change that somebody asked for."""

    operation: OperationId
    first: bool
    """No earlier try of it can have been applied."""
    name: str
    args: tuple[Any, ...]


class Step:
    """What a change does to a state: the next one (None: as it was) and what the client is told."""

    __slots__ = ("flags", "next", "value")

    def __init__(self, next_state: State | None, value: bytes | None = None, flags: int = 0) -> None:
        self.next = next_state
        self.value = value
        self.flags = flags


Change = Callable[[State, Version, Any], Step]


def _lost(state: State) -> Step:
    return Step(None, state.value)


def _get(state: State, version: Version, args: tuple[()]) -> Step:
    del version, args
    return Step(None, state.value, APPLIED)


def _put(_state: State, version: Version, args: tuple[bytes, int]) -> Step:
    value, expires_ms = args
    return Step(State(value, version, expires_ms))


def _delete(_state: State, version: Version, args: tuple[()]) -> Step:
    del args
    return Step(State(None, version))


def _cas_version(state: State, version: Version, args: tuple[int, bytes | None, int]) -> Step:
    expected, value, expires_ms = args
    if (state.version if state.value is not None else 0) != expected:
        return _lost(state)
    return Step(State(value, version, expires_ms))


def _cas_value(state: State, version: Version, args: tuple[bytes | None, bytes | None, int]) -> Step:
    expected, value, expires_ms = args
    return _lost(state) if state.value != expected else Step(State(value, version, expires_ms))


def _get_and_set(state: State, version: Version, args: tuple[bytes | None, int]) -> Step:
    value, expires_ms = args
    return Step(State(value, version, expires_ms), state.value)


def _incr(state: State, version: Version, args: tuple[int, int, int | None, int | None, int]) -> Step:
    """Add; a number that begins here gets the expiry, one that is there keeps its own."""
    by, initial, minimum, maximum, expires_ms = args
    try:
        before = int(state.value) if state.value is not None else initial
    except ValueError:
        return Step(None, state.value, BAD_TYPE)
    after = before + by
    low = _INT_MIN if minimum is None else max(minimum, _INT_MIN)
    high = _INT_MAX if maximum is None else min(maximum, _INT_MAX)
    if not low <= after <= high:
        return _lost(state)
    number = b"%d" % after
    ends = state.expires_ms if state.value is not None else expires_ms
    return Step(State(number, version, ends), number)


def _incr_in(state: State, version: Version, args: tuple[int, int, int, int | None, int | None, int]) -> Step:
    """`_incr` of a number that counts one period: a later one begins anew, an earlier one is over."""
    period, by, initial, minimum, maximum, expires_ms = args
    before = None
    if state.value is not None:
        held, colon, number = state.value.partition(b":")
        try:
            ahead = int(held) - period
        except ValueError:
            return Step(None, state.value, BAD_TYPE)
        if not colon:
            return Step(None, state.value, BAD_TYPE)
        if ahead > 0:
            return Step(None)
        before = None if ahead else number
    within = State(before, state.version, state.expires_ms)
    step = _incr(within, version, (by, initial, minimum, maximum, expires_ms))
    after = step.next
    if after is None:
        return step
    return Step(State(b"%d:%s" % (period, after.value), version, after.expires_ms), after.value)


def _retime(state: State, version: Version, args: tuple[int, int]) -> Step:
    """Change the expiry; `expected` 0 takes any version. The version stays: the value did not change."""
    del version
    expires_ms, expected = args
    if state.value is None or expected not in (0, state.version):
        return _lost(state)
    return Step(State(state.value, state.version, expires_ms))


CHANGES: dict[str, Change] = {
    "get": _get,
    "put": _put,
    "delete": _delete,
    "cas_version": _cas_version,
    "cas_value": _cas_value,
    "get_and_set": _get_and_set,
    "incr": _incr,
    "incr_in": _incr_in,
    "retime": _retime,
    "resolve": _get,
}
"""By name, as on the wire. `cas_version` with 0 means: only if there is nothing."""


def state_of(record: bytes | None, now_ms: int) -> tuple[State, Window]:
    """What a register holds, and what it remembers. Raises ValueError for a damaged window."""
    if record is None:
        return State(None, Version(0)), Window()
    if records.flags_of(record) & records.FLAG_STRONG:
        version, window, value = windows.decode(records.raw_payload_of(record))
    else:
        version, value = records.version_of(record), records.readable_of(record)
        adopted = records.operation_of(record)
        window = Window()
        if adopted != records.NO_OPERATION:
            window = window.adding([(adopted, Outcome(APPLIED, version))])
    if not records.is_live(record, now_ms):
        return State(None, version), window
    return State(value, version, records.expires_of(record)), window


def fold(
    record: bytes | None,
    requests: Sequence[Request],
    *,
    ballot: Version,
    versions: Sequence[Version],
    now_ms: int,
) -> tuple[bytes, list[Outcome]]:
    """Apply changes in order; returns the record to accept and each one's outcome.

    `versions` are ascending, one for each request, all above the version the record shows.
    Raises ValueError for a damaged window.
    """
    state, window = state_of(record, now_ms)
    outcomes: list[Outcome] = []
    fresh: dict[OperationId, Outcome] = {}
    for request, version in zip(requests, versions, strict=True):
        known = fresh.get(request.operation) or window.find(request.operation)
        if known is not None and request.name != "get":
            outcomes.append(known)
            continue
        if (
            request.name != "get"
            and not request.first
            and windows.time_of(request.operation) <= window.dropped_ms
        ):
            outcomes.append(Outcome(TOO_OLD, Version(0)))
            continue
        state, outcome = _one(state, request, version)
        outcomes.append(outcome)
        if request.name == "resolve":
            fresh[request.operation] = Outcome(CANCELLED, Version(0))
            outcomes[-1] = fresh[request.operation]
        elif request.name != "get" and (outcome.applied or not request.first):
            # What was found is for this answer; a retry of the retry learns only that it was not applied.
            fresh[request.operation] = outcome if outcome.applied else outcome._replace(value=None)
    kind = Kind.VALUE if state.value is not None else Kind.TOMBSTONE
    payload = windows.encode(state.version, window.adding(fresh.items()), state.value or b"")
    operation = requests[-1].operation if requests else records.NO_OPERATION
    accepted = records.encode(
        ballot, state.expires_ms, kind, payload, operation=operation, flags=records.FLAG_STRONG
    )
    return accepted, outcomes


def _one(state: State, request: Request, version: Version) -> tuple[State, Outcome]:
    existed = EXISTED if state.value is not None else 0
    step = CHANGES[request.name](state, version, request.args)
    if step.next is None:
        shown = state.version if state.value is not None or request.name == "get" else Version(0)
        return state, Outcome(step.flags | existed, shown, step.value, state.expires_ms)
    after = step.next
    flags = APPLIED | existed
    return after, Outcome(flags, after.version, step.value, after.expires_ms)
