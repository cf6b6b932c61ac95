"""The messages of registers and counters: what goes in comes out, and everything else is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import errors
from kvstore.core import record as records
from kvstore.core import window
from kvstore.core.changes import CHANGES, Request
from kvstore.core.window import Outcome
from kvstore.types import Kind, OperationId, Version
from kvstore.wire import messages
from kvstore.wire.codec import Packer
from kvstore.wire.register_messages import ACCEPT, PREPARE
from kvstore.wire.session import Session

OPERATION = OperationId(bytes(range(16)))
STRONG = records.encode(
    Version(7), 0, Kind.VALUE, window.encode(7, window.Window(), b"v"), flags=records.FLAG_STRONG
)
PLAIN = records.encode(Version(7), 0, Kind.VALUE, b"v")
CLIENT_CALLS: dict[str, tuple[Any, ...]] = {
    "get": (),
    "put": (b"v",),
    "delete": (),
    "cas_version": (0, None),
    "cas_value": (None, b"v"),
    "get_and_set": (None,),
    "incr": (1, 0, None, 9),
    "incr_in": (20, 1, 0, None, 9),
    "retime": (5,),
    "resolve": (),
}


def over_the_wire(params: Any) -> Any:
    session = Session()
    session.raise_limits()
    return session.receive(Packer().request(1, "x", params))[0][3]


def answered(result: Any) -> Any:
    session = Session()
    session.raise_limits()
    return session.receive(Packer().response(1, result))[0][3]


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_travels(name: str) -> None:
    args = CLIENT_CALLS[name]
    change = messages.decode_change(
        over_the_wire(messages.encode_change(b"k", OPERATION, name, args, {"n": 2}))
    )
    assert (change.key, change.operation, change.name, change.args) == (b"k", OPERATION, name, args)
    assert change.options.attempt == 2
    request = Request(OPERATION, True, name, change.full_args(55))
    assert messages.decode_forward(over_the_wire(messages.encode_forward(3, 9, b"k", request))) == (
        3,
        9,
        b"k",
        request,
    )
    assert request.args.count(55) == (name not in ("get", "delete", "resolve"))


def test_many_changes_travel_each_with_an_end_of_its_own() -> None:
    items: list[tuple[Any, ...]] = [
        (b"k", OPERATION, name, args, {"ttl": 5}) for name, args in CLIENT_CALLS.items()
    ]
    items.append((b"l", OPERATION, "delete", ()))  # without ends
    asked = messages.decode_change_many(over_the_wire(messages.encode_change_many(items, {"t": 9, "n": 2})))
    assert [(c.key, c.operation, c.name, c.args) for c in asked.changes] == [item[:4] for item in items]
    assert [change.options.ttl_ms for change in asked.changes] == [5] * len(CLIENT_CALLS) + [None]
    assert (asked.options.timeout_ms, asked.options.attempt) == (9, 2)


@pytest.mark.parametrize(
    "params",
    [
        (),
        (b"k",),
        ((b"k", OPERATION, "get", ()),),
        (((b"k", OPERATION, "get"),),),
        (((b"k", OPERATION, "take", ()),),),
        (((b"k", OPERATION, "get", (), {"ttl": -1}),),),
        (((b"k", OPERATION, "get", ()),), {"t": 0}),
        (((b"k", OPERATION, "get", ()),) * 1001,),
    ],
)
def test_many_changes_of_another_shape_are_refused(params: Any) -> None:
    with pytest.raises(errors.BadRequest):
        messages.decode_change_many(over_the_wire(params))


WRONG_CHANGES: list[tuple[Any, ...]] = [
    (),
    (b"k", OPERATION, "put"),
    ("k", OPERATION, "put", (b"v",)),
    (b"k", b"short", "put", (b"v",)),
    (b"k", OPERATION, "take", ()),
    (b"k", OPERATION, 5, ()),
    (b"k", OPERATION, "put", ()),
    (b"k", OPERATION, "put", (b"v", 1)),
    (b"k", OPERATION, "put", ("v",)),
    (b"k", OPERATION, "put", b"v"),
    (b"k", OPERATION, "incr", (True, 0, None, None)),
    (b"k", OPERATION, "cas_version", (None, b"v")),
]


@pytest.mark.parametrize("params", WRONG_CHANGES)
def test_a_wrong_change_is_refused(params: tuple[Any, ...]) -> None:
    with pytest.raises(errors.BadOption):
        messages.decode_change(params)


@pytest.mark.parametrize(
    "params",
    [
        (),
        (1, 2, b"k", OPERATION, True, "put"),
        ("1", 2, b"k", OPERATION, True, "put", (b"v", 0)),
        (1, 2, "k", OPERATION, True, "put", (b"v", 0)),
        (1, 2, b"k", b"short", True, "put", (b"v", 0)),
        (1, 2, b"k", OPERATION, 1, "put", (b"v", 0)),
    ],
)
def test_a_wrong_forward_is_malformed(params: tuple[Any, ...]) -> None:
    with pytest.raises(errors.Malformed):
        messages.decode_forward(params)
    with pytest.raises(errors.BadOption):
        messages.decode_forward((1, 2, b"k", OPERATION, True, "put", (b"v",)))


@given(
    st.integers(0, 255),
    st.integers(0, (1 << 64) - 1),
    st.none() | st.binary(max_size=9),
    st.integers(0, 1 << 48),
    st.lists(st.integers(0, 1023), max_size=3),
)
def test_outcomes_travel(flags: int, version: int, value: bytes | None, ends: int, acked: list[int]) -> None:
    outcome = Outcome(flags, Version(version), value, ends)
    changed = messages.decode_changed(answered(messages.encode_changed(outcome, 4, acked)))
    assert messages.outcome_of(changed) == outcome
    assert (changed.epoch, changed.acked) == (4, tuple(acked))


@pytest.mark.parametrize(
    "result",
    [
        None,
        (),
        (1, 2, b"v", 0, 1),
        (1, 2, "v", 0, 1, ()),
        ("1", 2, b"v", 0, 1, ()),
        (1, 2, None, 0, 1, ("a",)),
    ],
)
def test_a_wrong_outcome_is_malformed(result: Any) -> None:
    with pytest.raises(errors.Malformed):
        messages.decode_changed(result)


def test_votes_travel() -> None:
    flat = [PREPARE, b"\0\0k", 9, ACCEPT, b"\0\0l", STRONG]
    assert messages.decode_votes(over_the_wire([4, 100, flat])) == (
        4,
        [(PREPARE, b"\0\0k", 9), (ACCEPT, b"\0\0l", STRONG)],
    )
    assert messages.decode_voted(answered([0, 0, None, 1, 9, STRONG]), 2) == [(0, 0, None), (1, 9, STRONG)]
    assert messages.decode_shown(answered([0, None, 9, STRONG]), 2) == [(0, None), (9, STRONG)]
    assert messages.decode_voted(answered([0, 0, None]), 3) == [(0, 0, None)], "the others were not voted on"
    assert messages.decode_shown(answered([0, None]), 3) == [(0, None)]
    for decode in (messages.decode_voted, messages.decode_shown):
        assert decode(answered([]), 1) is None
        assert decode(answered([0, 0, None, 0, 0, None]), 1) is None


@pytest.mark.parametrize(
    "params",
    [
        (1, 2),
        ("1", 2, ()),
        (1, 2, b"flat"),
        (1, 2, (PREPARE, b"\0\0k")),
        (1, 2, (3, b"\0\0k", 9)),
        (1, 2, (PREPARE, b"\0", 9)),
        (1, 2, (PREPARE, "\0\0k", 9)),
        (1, 2, (PREPARE, b"\0\0k", 0)),
        (1, 2, (PREPARE, b"\0\0k", 1 << 64)),
        (1, 2, (PREPARE, b"\0\0k", STRONG)),
        (1, 2, (ACCEPT, b"\0\0k", 9)),
        (1, 2, (ACCEPT, b"\0\0k", PLAIN)),
        (1, 2, (ACCEPT, b"\0\0k", STRONG[:37])),
    ],
)
def test_a_wrong_vote_is_malformed(params: tuple[Any, ...]) -> None:
    with pytest.raises(errors.Malformed):
        messages.decode_votes(params)


@pytest.mark.parametrize("result", [None, (0, 0), ("0", "0", None), (0, 0, b"no record"), (0, 0, 5)])
def test_a_wrong_answer_of_an_acceptor_is_no_answer(result: Any) -> None:
    assert messages.decode_voted(result, 1) is None
    assert messages.decode_shown(result and result[1:], 1) is None


def test_counters_travel() -> None:
    params = messages.encode_counter_add(b"k", OPERATION, b"p" * 8, 3, 5, 2, {"c": "one"})
    add = messages.decode_counter_add(over_the_wire(params))
    assert add[:6] == (b"k", OPERATION, b"p" * 8, 3, 5, 2)
    assert add.options.consistency is not None
    state = messages.CounterState(3, -5, True)
    assert messages.decode_counter_state(answered(messages.encode_counter_state(state))) == state


@pytest.mark.parametrize(
    "params",
    [
        (),
        ("k", OPERATION, b"p" * 8, 0, 0, 0),
        (b"k", b"short", b"p" * 8, 0, 0, 0),
        (b"k", OPERATION, b"p" * 7, 0, 0, 0),
        (b"k", OPERATION, b"p" * 8, -1, 0, 0),
        (b"k", OPERATION, b"p" * 8, 0, -1, 0),
        (b"k", OPERATION, b"p" * 8, 0, 0, 1 << 63),
        (b"k", OPERATION, b"p" * 8, 0, 0, True),
    ],
)
def test_a_wrong_addition_is_refused(params: tuple[Any, ...]) -> None:
    with pytest.raises(errors.BadOption):
        messages.decode_counter_add(params)


@pytest.mark.parametrize("result", [None, (1, 2), (1, 2, 1), ("1", 2, True)])
def test_a_wrong_state_of_a_counter_is_malformed(result: Any) -> None:
    with pytest.raises(errors.Malformed):
        messages.decode_counter_state(result)
