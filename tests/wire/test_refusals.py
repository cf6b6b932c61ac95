"""What does not fit is refused by its own error: shapes, options, greetings, a peer's batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import errors, limits
from kvstore.core import record
from kvstore.types import Kind, OperationId, Version
from kvstore.wire import greeting, messages, options, peer_messages, results
from kvstore.wire.codec import Packer
from kvstore.wire.session import Session

OPERATION = OperationId(bytes(range(16)))
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=20)
    | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)


def over_the_wire(params: Sequence[Any]) -> Any:
    """As the other side gets it."""
    session = Session()
    session.raise_limits()
    return session.receive(Packer().request(1, "x", params))[0][3]


def answered(result: Any) -> Any:
    """As the one who asked gets it."""
    session = Session()
    session.raise_limits()
    return session.receive(Packer().response(1, result))[0][3]


def a_record(payload: bytes) -> bytes:
    """A value, some time."""
    return record.encode(Version(1 << 30), 0, Kind.VALUE, payload)


WRONG_TYPES: list[tuple[Callable[[Sequence[Any]], Any], tuple[Any, ...], str]] = [
    (messages.decode_put, ("k", b"v", OPERATION), "key"),
    (messages.decode_put, (b"k", "v", OPERATION), "value"),
    (messages.decode_put, (b"k", b"v", OPERATION[:15]), "operation"),
    (messages.decode_put, (b"k", b"v", "0123456789abcdef"), "operation"),
    (messages.decode_put, (b"k", b"v"), "params"),
    (messages.decode_get, (None,), "key"),
    (messages.decode_get, (), "params"),
    (messages.decode_retime, (7, OPERATION), "key"),
    (messages.decode_retime, (b"k", b""), "operation"),
    (messages.decode_retime, (b"k",), "params"),
    (messages.decode_get_many, (b"k",), "keys"),
    (messages.decode_get_many, ((b"k", "k"),), "keys"),
    (messages.decode_get_many, (), "params"),
    (messages.decode_put_many, (((b"k",),), OPERATION), "items"),
    (messages.decode_put_many, (((b"k", "v"),), OPERATION), "items"),
    (messages.decode_put_many, (((b"k", b"v"),), None), "operation"),
    (messages.decode_put_many, ((),), "params"),
    (messages.decode_delete_many, (((),), OPERATION), "keys"),
    (messages.decode_delete_many, ((),), "params"),
    (messages.decode_scan, (b"x",), "cursor"),
    (messages.decode_scan, ("cursor",), "cursor"),
    (messages.decode_scan, (), "params"),
    (messages.decode_hello, (), "hello"),
    (messages.decode_hello, (b"hello",), "hello"),
]


@pytest.mark.parametrize(("decode", "params", "named"), WRONG_TYPES)
def test_a_wrong_param_is_named(
    decode: Callable[[Sequence[Any]], Any], params: tuple[Any, ...], named: str
) -> None:
    with pytest.raises(errors.BadOption) as refused:
        decode(over_the_wire(params))
    assert refused.value.fields["option"] == named


# --- nothing but typed errors ---------------------------------------------------------------------

REQUESTS: list[Callable[[Sequence[Any]], Any]] = [
    messages.decode_put,
    messages.decode_get,
    messages.decode_retime,
    messages.decode_get_many,
    messages.decode_put_many,
    messages.decode_delete_many,
    messages.decode_scan,
    messages.decode_locate,
    messages.decode_hello,
    messages.decode_peer_hello,
    messages.decode_peer_write,
    messages.decode_peer_read,
    messages.decode_peer_scan,
]
RESULTS: list[Callable[[Any], Any]] = [
    results.decode_receipt,
    results.decode_receipt_or_nil,
    results.decode_found,
    results.decode_rows,
    results.decode_map,
    results.decode_greeting,
    messages.decode_peer_page,
    lambda result: results.decode_many(result, 2, results.decode_found),
]


@pytest.mark.parametrize("decode", REQUESTS)
@given(st.lists(anything, max_size=5).map(tuple))
def test_a_request_of_any_shape_raises_only_refusals(
    decode: Callable[[Sequence[Any]], Any], params: tuple[Any, ...]
) -> None:
    with suppress(errors.Refused):
        decode(over_the_wire(params))


@pytest.mark.parametrize("decode", RESULTS)
@given(anything)
def test_an_answer_of_any_shape_raises_only_malformed(decode: Callable[[Any], Any], result: Any) -> None:
    with suppress(errors.Malformed):
        decode(answered(result))


@given(anything, st.integers(0, 3))
def test_a_peers_answer_of_any_shape_is_checked_or_none(result: Any, count: int) -> None:
    messages.decode_peer_stored(answered(result), count)
    messages.decode_peer_records(answered(result), count)


@given(anything)
def test_an_error_of_any_shape_becomes_an_error_of_ours(plain: Any) -> None:
    assert isinstance(errors.from_wire(answered(plain)), errors.KVError)


@given(
    st.sampled_from(errors.ALL),
    st.dictionaries(st.sampled_from(["self", "message", "length", "maximum", "cls", "x"]), anything),
)
def test_the_fields_of_an_error_may_be_any(kind: type[errors.KVError], fields: dict[str, Any]) -> None:
    error = errors.from_wire((kind.name, "what happened", fields))
    assert type(error) is kind
    assert isinstance(error.message, str)


def test_an_error_that_is_a_nest_is_no_recursion() -> None:
    for plain in (deep(900), ("bad_key", "m", {"length": deep(900), "maximum": 1})):
        assert isinstance(_at_depth(600, plain), errors.KVError)


def _at_depth(frames: int, plain: Any) -> errors.KVError:
    return errors.from_wire(plain) if frames == 0 else _at_depth(frames - 1, plain)


WRONG_ANSWERS: list[tuple[Callable[[Any], Any], Any]] = [
    (results.decode_receipt, (1, 1, (1,), 0, 9, ())),
    (results.decode_receipt, (1, 1, (1,), 0, 3)),
    (results.decode_receipt, (1, 1, ("1",), 0, 3, ())),
    (results.decode_found, ("text", 1, 0, 1, (), (), True)),
    (results.decode_found, (b"v", 1, 0, 1, (), (), 1)),
    (results.decode_found, (b"v", 1, 0, 1, (), ())),
    (results.decode_rows, ((), "cursor", 1, ())),
    (results.decode_rows, (((b"k", b"v", 1),), None, 1, ())),
    (results.decode_rows, ((("k", b"v", 1, 0),), None, 1, ())),
    (results.decode_greeting, {"cluster": "c", "node": "1", "epoch": 1}),
    (results.decode_greeting, {"cluster": "c", "epoch": 1}),
    (results.decode_map, ()),
]


@pytest.mark.parametrize(("decode", "result"), WRONG_ANSWERS)
def test_an_answer_of_almost_the_right_shape_is_malformed(decode: Callable[[Any], Any], result: Any) -> None:
    with pytest.raises(errors.Malformed, match="the answer should be"):
        decode(answered(result))


def test_more_elements_than_we_know_are_ignored() -> None:
    assert results.decode_receipt((1, 2, (3,), 0, 3, (), "new")).version == 1
    assert results.decode_found((b"v", 1, 0, 1, (), (), True, "new")).payload == b"v"
    assert results.decode_rows((((b"k", b"v", 1, 0, "new"),), None, 1, (), "new")).rows[0].key == b"k"


def test_a_greeting_keeps_fields_that_we_do_not_know() -> None:
    plain = {"cluster": "c", "node": 1, "epoch": 1, "new": (1, 2)}
    assert results.decode_greeting(answered(plain)) == plain


@pytest.mark.parametrize(
    "params",
    [
        (1, 1, b"\0\0k", b"\0", b"", 1, 1),
        (1, 1, b"\0\0k", b"\0\1", "", 1, 1),
        (1, -1, b"\0\0k", b"\0\1", b"", 1, 1),
        (1, 1, b"\0\0k", b"\0\1", b"", True, 1),
        (1, 1, b"\0\0k", b"\0\1", b"", 1),
    ],
)
def test_a_peers_scan_of_almost_the_right_shape_is_malformed(params: tuple[Any, ...]) -> None:
    with pytest.raises(errors.Malformed):
        messages.decode_peer_scan(over_the_wire(params))


def deep(levels: int) -> Any:
    nest: Any = ()
    for _ in range(levels):
        nest = (nest,)
    return nest


@pytest.mark.parametrize("name", ["c", "r", "t", "ttl", "d", "head", "prefix", "limit", "unknown"])
@pytest.mark.parametrize("levels", [1, 900])
def test_an_option_that_is_a_nest_is_no_recursion(name: str, levels: int) -> None:
    assert levels < sys.getrecursionlimit()
    plain = {name: deep(levels)}
    if name == "unknown":
        assert options.decode_options([plain], 0) == messages.Options()
    else:
        with pytest.raises(errors.BadRequest, match="an array"):
            options.decode_options([plain], 0)


@pytest.mark.parametrize("size", [10, 1 << 16])
def test_a_refusal_never_repeats_all_of_what_was_sent(size: int) -> None:
    for plain in ({"c": "x" * size}, {"ttl": "x" * size}, {"d": "x" * size}, {"r": "x" * size}):
        with pytest.raises(errors.BadRequest) as refused:
            options.decode_options([plain], 0)
        assert len(refused.value.message) < 300


# --- options: unknown ones, and what is remembered ------------------------------------------------


def test_options_we_do_not_know_are_ignored_whatever_they_hold() -> None:
    for value in (1, "x", None, b"x", (1, {"a": 1}), {"nested": {"map": 1}}):
        decoded = messages.decode_get(over_the_wire([b"k", {"later": value, "r": 2}]))
        assert decoded.options == messages.Options(r=2)


@pytest.mark.parametrize("trailing", [[], [None], [{}], [()]])
def test_options_may_be_missing_nil_or_empty(trailing: list[Any]) -> None:
    assert messages.decode_get(over_the_wire([b"k", *trailing])).options == messages.Options()


@pytest.mark.parametrize("trailing", [0, 7, "", "c", False, b"", (1,)])
def test_options_of_another_type_are_refused(trailing: Any) -> None:
    with pytest.raises(errors.BadOption):
        messages.decode_get(over_the_wire([b"k", trailing]))


@pytest.mark.parametrize("wrong", [True, 1.0])
@pytest.mark.parametrize("name", ["r", "w", "t", "limit", "ttl"])
def test_true_and_a_float_do_not_pass_for_1_because_1_was_seen(name: str, wrong: Any) -> None:
    """They are equal, and hash alike: a memory by value would take one for the other."""
    several: list[dict[str, Any]] = [{}, {"c": "one"}]
    for more in several:
        assert messages.decode_options([{name: 1, **more}], 0) != messages.Options()
        with pytest.raises(errors.BadRequest):
            messages.decode_options([{name: wrong, **more}], 0)


def test_what_is_remembered_of_options_is_bounded() -> None:
    for size in range(3 * options._CACHE_MAX):
        messages.decode_options([{"t": size + 1}], 0)
        messages.decode_options([{"t": size + 1, "c": "one"}], 0)
        messages.decode_options([{"unknown": bytes(100) + size.to_bytes(4, "big"), "r": 1}], 0)
    assert len(options._budgets) <= options._CACHE_MAX
    assert len(options._cache) <= options._CACHE_MAX
    assert not [known for known in options._cache if any("unknown" in str(part) for part in known)]


BAD: list[tuple[dict[Any, Any], type[errors.KVError]]] = [
    ({"ttl": 0}, errors.BadTtl),
    ({"ttl": -1}, errors.BadTtl),
    ({"ttl": 1.5}, errors.BadTtl),
    ({"exp": "tomorrow"}, errors.BadTtl),
    ({"c": "most"}, errors.BadConsistency),
    ({"c": 1}, errors.BadConsistency),
    ({"r": 0}, errors.BadConsistency),
    ({"w": limits.REPLICAS_MAX + 1}, errors.BadConsistency),
    ({"t": 0}, errors.BadOption),
    ({"t": limits.TIMEOUT_MS_MAX + 1}, errors.BadOption),
    ({"limit": 0}, errors.BadOption),
    ({"limit": limits.SCAN_LIMIT_MAX + 1}, errors.BadOption),
    ({"head": 1}, errors.BadOption),
    ({"keys_only": "yes"}, errors.BadOption),
    ({"prefix": "text"}, errors.BadOption),
    ({"prefix": b"x" * (limits.KEY_BYTES_MAX + 1)}, errors.BadOption),
    ({"d": "never"}, errors.BadOption),
]


@pytest.mark.parametrize(("plain", "kind"), BAD, ids=lambda x: str(x)[:30])
def test_a_wrong_option_is_refused_by_its_own_error(
    plain: dict[Any, Any], kind: type[errors.KVError]
) -> None:
    several: list[dict[str, Any]] = [{}, {"c": "one"}, {"later": {}}]
    for more in several:
        with pytest.raises(kind):
            messages.decode_options([{**more, **plain}], 0)


# --- hello ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offer", [(1, 1), (0, 1), (1, 9)])
def test_a_hello_that_offers_our_protocol_is_taken(offer: tuple[int, int]) -> None:
    assert messages.decode_hello([{"protocol": offer}]) == messages.Hello("", "", "")


@pytest.mark.parametrize(
    "offer", [None, (), (1,), (2, 3), (0, 0), ("1", "1"), (True, True, True), 1, deep(900), "1" * 10_000]
)
def test_a_hello_that_does_not_is_refused_with_both_sides_named(offer: Any) -> None:
    with pytest.raises(errors.ProtocolMismatch, match=f"supported {greeting.PROTOCOL}") as refused:
        messages.decode_hello([{"protocol": offer}])
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("field", ["agent", "cluster", "token"])
def test_the_fields_of_hello_are_text(field: str) -> None:
    with pytest.raises(errors.BadOption, match=field):
        messages.decode_hello([{"protocol": (1, 1), field: 7}])


# --- peers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flat",
    [
        (b"\0\0k", a_record(b""), b"\0\0k"),
        (b"\0\0", a_record(b"")),
        (b"\0\0k", a_record(b"")[:-1]),
        (b"\0\0k", b""),
        (b"\0\0k", None),
        ("\0\0k", a_record(b"")),
    ],
)
def test_a_peers_batch_with_a_broken_pair_is_refused_as_a_whole(flat: Any) -> None:
    with pytest.raises(errors.Malformed):
        messages.decode_peer_write((1, 5, False, flat))
    with pytest.raises(errors.Malformed):
        messages.decode_peer_page((flat, True))


@pytest.mark.parametrize("broken", [b"", b"short", bytes(record.HEADER_BYTES), "text", 7])
def test_a_peers_record_that_cannot_be_one_is_not_believed(broken: Any) -> None:
    assert messages.decode_peer_records((a_record(b"x"), broken), 2) is None


def test_statuses_are_one_byte_a_record() -> None:
    assert messages.decode_peer_stored((3, b"\0\1"), 2) == (3, b"\0\1")
    assert messages.decode_peer_stored((3, b"\0\1"), 3) is None
    assert messages.decode_peer_stored((3, "\0\1"), 2) is None


def test_batches_above_the_limit_are_refused() -> None:
    many = (b"k",) * (limits.BATCH_KEYS_MAX + 1)
    for decode in (messages.decode_get_many, messages.decode_delete_many):
        with pytest.raises(errors.BadOption, match="1000"):
            decode((many, OPERATION))
    with pytest.raises(errors.BadOption, match="1000"):
        messages.decode_put_many(((((b"k", b"v"),) * (limits.BATCH_KEYS_MAX + 1)), OPERATION))
    assert peer_messages.decode_peer_read((1, 1, many))[2] == many
