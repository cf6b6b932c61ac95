"""Every request and every answer: what one side encodes, the other decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import errors, limits
from kvstore.core import record
from kvstore.types import Consistency, Durability, Kind, OperationId
from kvstore.wire import codec, messages, results
from kvstore.wire.codec import Packer
from kvstore.wire.session import Session

keys = st.binary(max_size=limits.KEY_BYTES_MAX)
values = st.binary(max_size=100)
operations = st.binary(min_size=16, max_size=16).map(OperationId)
counts = st.integers(0, (1 << 64) - 1)
numbers = st.lists(st.integers(0, limits.NODES_MAX - 1), max_size=4).map(tuple)
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
given_options = st.builds(
    messages.Options,
    ttl_ms=st.none() | st.integers(1, limits.EXPIRES_MS_MAX),
    expires_ms=st.none() | st.integers(1, limits.EXPIRES_MS_MAX),
    consistency=st.none() | st.sampled_from(Consistency),
    r=st.none() | st.integers(1, limits.REPLICAS_MAX),
    w=st.none() | st.integers(1, limits.REPLICAS_MAX),
    timeout_ms=st.none() | st.integers(1, limits.TIMEOUT_MS_MAX),
    durability=st.none() | st.just(Durability.ALWAYS),
    head=st.booleans(),
    prefix=st.binary(max_size=10),
    limit=st.none() | st.integers(1, limits.SCAN_LIMIT_MAX),
    keys_only=st.booleans(),
    attempt=st.none() | st.integers(1, 1_000),
)


def over_the_wire(params: Sequence[Any]) -> Any:
    """As the other side gets it."""
    session = Session()
    session.raise_limits()
    return session.receive(Packer().request(1, "x", params))[0][3]


def answered(result: Any) -> Any:
    session = Session()
    session.raise_limits()
    return session.receive(Packer().response(1, result))[0][3]


@given(given_options)
def test_options(plain: messages.Options) -> None:
    assert messages.decode_options(over_the_wire([messages.encode_options(plain)]), 0) == plain


@given(keys, values, operations, given_options)
def test_put(key: bytes, value: bytes, operation: OperationId, plain: messages.Options) -> None:
    params = messages.encode_put(key, value, operation, messages.encode_options(plain))
    assert messages.decode_put(over_the_wire(params)) == messages.Put(key, value, operation, plain)


@given(keys, given_options)
def test_get(key: bytes, plain: messages.Options) -> None:
    params = messages.encode_get(key, messages.encode_options(plain))
    assert messages.decode_get(over_the_wire(params)) == messages.Get(key, plain)


@given(keys, operations, given_options)
def test_delete_touch_persist(key: bytes, operation: OperationId, plain: messages.Options) -> None:
    params = messages.encode_retime(key, operation, messages.encode_options(plain))
    assert messages.decode_retime(over_the_wire(params)) == messages.Retime(key, operation, plain)


@given(st.lists(keys, max_size=5).map(tuple), given_options)
def test_get_many(many: tuple[bytes, ...], plain: messages.Options) -> None:
    params = messages.encode_get_many(many, messages.encode_options(plain))
    assert messages.decode_get_many(over_the_wire(params)) == messages.GetMany(many, plain)


@given(st.lists(st.tuples(keys, values), max_size=5).map(tuple), operations, given_options)
def test_put_many(
    items: tuple[tuple[bytes, bytes], ...], operation: OperationId, plain: messages.Options
) -> None:
    params = messages.encode_put_many(items, operation, messages.encode_options(plain))
    assert messages.decode_put_many(over_the_wire(params)) == messages.PutMany(items, operation, plain)


@given(st.lists(keys, max_size=5).map(tuple), operations, given_options)
def test_delete_many(many: tuple[bytes, ...], operation: OperationId, plain: messages.Options) -> None:
    params = messages.encode_delete_many(many, operation, messages.encode_options(plain))
    assert messages.decode_delete_many(over_the_wire(params)) == messages.DeleteMany(many, operation, plain)


@given(st.none() | st.binary(min_size=2, max_size=limits.KEY_BYTES_MAX + 3), given_options)
def test_scan(cursor: bytes | None, plain: messages.Options) -> None:
    params = messages.encode_scan(cursor, messages.encode_options(plain))
    assert messages.decode_scan(over_the_wire(params)) == messages.Scan(cursor, plain)


@given(st.builds(messages.Hello, st.text(max_size=200), st.text(max_size=40), st.text(max_size=40)))
def test_hello(hello: messages.Hello) -> None:
    assert messages.decode_hello(over_the_wire(messages.encode_hello(hello))) == hello


@given(counts, counts, numbers, st.booleans(), st.booleans(), st.sampled_from(Durability), numbers)
def test_receipt(
    version: int,
    epoch: int,
    acked: tuple[int, ...],
    superseded: bool,
    existed: bool,
    durability: Durability,
    repaired: tuple[int, ...],
) -> None:
    encoded = results.encode_receipt(
        version=version,
        epoch=epoch,
        acked=acked,
        superseded=superseded,
        existed=existed,
        durability=durability,
        repaired=repaired,
    )
    written = results.decode_receipt(answered(encoded))
    assert bool(written.flags & results.FLAG_SUPERSEDED) is superseded
    assert bool(written.flags & results.FLAG_EXISTED) is existed
    assert tuple(written) == (version, epoch, acked, superseded + 2 * existed, durability, repaired)


found_ = st.builds(results.Found, st.none() | values, counts, counts, counts, numbers, numbers, st.booleans())


@given(found_)
def test_found(found: results.Found) -> None:
    assert results.decode_found(answered(results.encode_found(found))) == found


@given(
    st.builds(
        results.Rows,
        st.lists(st.builds(results.Row, keys, st.none() | values, counts, counts), max_size=4),
        st.none() | keys,
        counts,
        numbers,
    )
)
def test_rows(rows: results.Rows) -> None:
    assert results.decode_rows(answered(results.encode_rows(rows))) == rows


@given(
    st.lists(found_ | st.sampled_from([errors.NotReady(reason="no"), errors.Overloaded(what="x", maximum=1)]))
)
def test_outcomes_of_many(outcomes: list[Any]) -> None:
    encoded = [
        results.encode_failure(each) if isinstance(each, errors.KVError) else results.encode_found(each)
        for each in outcomes
    ]
    back = results.decode_many(answered(encoded), len(outcomes), results.decode_found)
    for one, other in zip(outcomes, back, strict=True):
        if isinstance(one, errors.KVError):
            assert type(other) is type(one)
            assert isinstance(other, errors.KVError)
            assert other.message == one.message
        else:
            assert other == one


@given(st.none() | st.just(0))
def test_no_such_key_is_a_nil_receipt_only_where_it_may_be(nil: object) -> None:
    assert (results.decode_receipt_or_nil(answered(None)) is None) is True
    with pytest.raises(errors.Malformed):
        results.decode_receipt(answered(nil))


@given(st.text(max_size=40), st.integers(0, 1023), st.text(max_size=40), counts, st.text(max_size=40), counts)
def test_peer_hello(cluster: str, node: int, uuid: str, epoch: int, token: str, wall_ms: int) -> None:
    plain = {"protocol": [1, 1], "cluster": cluster, "node": node, "uuid": uuid, "epoch": epoch}
    decoded = messages.decode_peer_hello(over_the_wire([{**plain, "token": token, "wall_ms": wall_ms}]))
    assert decoded == messages.PeerHello(cluster, node, uuid, epoch, token, wall_ms, None)
    assert messages.decode_peer_hello(over_the_wire([{**plain, "told": [7, node]}])).told == (7, node)
    for wrong in (1, "1", [1], [1, -1], [1, True], [1.0, 2], [1, 2, 3]):
        with pytest.raises(errors.BadOption):
            messages.decode_peer_hello(over_the_wire([{**plain, "told": wrong}]))
    assert messages.decode_peer_hello(over_the_wire([plain])).wall_ms == 0
    for name in ("node", "epoch"):
        with pytest.raises(errors.BadOption):
            messages.decode_peer_hello(over_the_wire([{**plain, name: "1"}]))


@given(anything)
def test_users_values_come_back_as_they_went(value: Any) -> None:
    listed = codec.unpack_value(codec.pack_value(value))
    assert codec.pack_value(listed) == codec.pack_value(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, 1 << 64, 1j])
def test_a_value_that_msgpack_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(errors.BadOption, match="MessagePack"):
        codec.pack_value(value)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x01", b"\x01\x02", b"\xa1\xff"])
def test_a_stored_value_that_is_no_msgpack_is_refused(data: bytes) -> None:
    with pytest.raises(errors.BadOption, match="MessagePack"):
        codec.unpack_value(data)


def a_record(payload: bytes) -> bytes:
    return record.encode(1 << 30, 0, Kind.VALUE, payload)  # type: ignore[arg-type]


skeys = st.binary(min_size=3, max_size=20)
records_ = values.map(a_record)


@given(counts, counts, st.booleans(), st.lists(st.tuples(skeys, records_), max_size=5))
def test_peer_write(epoch: int, budget: int, sync: bool, pairs: list[tuple[bytes, bytes]]) -> None:
    flat = tuple(part for pair in pairs for part in pair)
    assert messages.decode_peer_write(over_the_wire([epoch, budget, sync, flat])) == (
        epoch,
        budget,
        sync,
        flat,
    )


@given(counts, counts, st.lists(skeys, max_size=5).map(tuple))
def test_peer_read(epoch: int, budget: int, many: tuple[bytes, ...]) -> None:
    assert messages.decode_peer_read(over_the_wire([epoch, budget, many])) == (epoch, budget, many)


@given(st.lists(st.none() | records_, max_size=5).map(tuple))
def test_peer_records(many: tuple[bytes | None, ...]) -> None:
    assert messages.decode_peer_records(answered(many), len(many)) == many
    for asked in range(len(many) + 3):
        taken = messages.decode_peer_records(answered(many), asked)
        # It may end early, but not before the first.
        assert taken == (many if len(many) == asked or 0 < len(many) < asked else None)


@given(counts, counts, skeys, skeys, values, st.integers(0, 5_000), st.integers(0, 4 << 20))
def test_peer_scan(
    epoch: int, budget: int, start: bytes, stop: bytes, prefix: bytes, limit: int, size: int
) -> None:
    params = messages.encode_peer_scan(epoch, budget, start, stop, prefix, limit, size)
    assert messages.decode_peer_scan(over_the_wire(params)) == (
        epoch,
        budget,
        start,
        stop,
        prefix,
        min(limit, limits.SCAN_STEP_KEYS_MAX),
        min(size, limits.SCAN_PAGE_BYTES_MAX),
    )


@given(st.lists(st.tuples(skeys, records_), max_size=5), st.booleans())
def test_peer_page(entries: list[tuple[bytes, bytes]], more: bool) -> None:
    encoded = messages.encode_peer_page(entries, more)
    assert messages.decode_peer_page(answered(encoded)) == (entries, more)
