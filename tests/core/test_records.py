"""Records merge alike everywhere, in whatever order they meet."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.core import record as records
from kvstore.core import window
from kvstore.core.record import Order
from kvstore.types import Kind, Millis, OperationId, Version

RECORDS = st.builds(
    lambda version, expires, kind, payload, strong, revision: records.encode(
        Version(version),
        Millis(expires),
        kind,
        (window.encode(version, window.Window(), b"") if strong else b"")
        + (payload if kind is not Kind.TOMBSTONE else b""),
        flags=records.FLAG_STRONG if strong else 0,
        revision=revision,
    ),
    st.integers(1, 3),
    st.sampled_from([0, 10, 20]),
    st.sampled_from([Kind.VALUE, Kind.TOMBSTONE]),
    st.sampled_from([b"", b"a", b"b"]),
    st.booleans(),
    st.integers(0, 2),
)


def merged(order: tuple[bytes, ...]) -> bytes:
    held: bytes | None = None
    for record in order:
        if records.is_newer(record, held):
            held = record
    assert held is not None
    return held


@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_any_order_of_arrival_ends_alike(some: list[bytes]) -> None:
    assert len({merged(order) for order in permutations(some)}) == 1


@given(RECORDS, RECORDS)
def test_compare_is_antisymmetric_and_agrees_with_is_newer(one: bytes, other: bytes) -> None:
    opposite = {
        Order.NEWER: Order.OLDER,
        Order.OLDER: Order.NEWER,
        Order.SAME: Order.SAME,
        Order.CONFLICT_WINS: Order.CONFLICT_LOSES,
        Order.CONFLICT_LOSES: Order.CONFLICT_WINS,
    }
    order = records.compare(one, other)
    assert records.compare(other, one) is opposite[order]
    assert records.is_newer(one, other) == (order in (Order.NEWER, Order.CONFLICT_WINS))


@given(RECORDS)
def test_fields_come_out_as_they_went_in(record: bytes) -> None:
    again = records.encode(
        records.version_of(record),
        records.expires_of(record),
        records.kind_of(record),
        records.raw_payload_of(record),
        operation=records.operation_of(record),
        flags=records.flags_of(record),
        revision=records.revision_of(record),
    )
    assert again == record
    assert records.is_well_formed(record)
    assert not records.is_well_formed(record[: records.HEADER_BYTES - 1])


def test_a_plain_record_never_replaces_a_strong_one() -> None:
    strong = records.encode(
        Version(1), 0, Kind.VALUE, window.encode(1, window.Window(), b"s"), flags=records.FLAG_STRONG
    )
    plain = records.encode(Version(9), 0, Kind.VALUE, b"p")
    assert not records.is_newer(plain, strong)
    assert records.is_newer(strong, plain)
    assert (records.shown_version_of(strong), records.shown_version_of(plain)) == (1, 9)


@given(RECORDS, st.integers(0, 30))
def test_live_is_there_and_not_deleted_and_not_expired(record: bytes, now: int) -> None:
    ends = records.expires_of(record)
    assert records.is_expired(record, now) == (ends != 0 and ends <= now)
    dead = records.kind_of(record) == Kind.TOMBSTONE or records.is_expired(record, now)
    assert records.is_live(record, now) == (not dead)
    assert not records.is_live(None, now)


def test_a_reclaimed_record_keeps_its_place_and_nothing_else() -> None:
    live = records.encode(Version(5), 9, Kind.VALUE, b"payload", operation=OperationId(b"o" * 16), revision=3)
    gone = records.reclaim(live)
    assert (records.version_of(gone), records.revision_of(gone), records.payload_of(gone)) == (5, 3, b"")
    assert records.operation_of(gone) == b"o" * 16
    assert records.compare(gone, live) is Order.SAME
    assert records.fuller(live, gone)
    assert not records.fuller(gone, live)
    assert not records.fuller(gone, gone)
    older = records.encode(Version(4), 0, Kind.VALUE, b"old")
    assert not records.is_newer(older, gone), "what it overwrote stays overwritten"
    assert not records.is_live(gone, 0)


def test_a_touch_is_above_its_value_and_below_every_later_put() -> None:
    value = records.encode(Version(100), 0, Kind.VALUE, b"v")
    touch = records.encode(Version(100), 50, Kind.VALUE, b"v", revision=1)
    put = records.encode(Version(101), 0, Kind.VALUE, b"w")
    assert records.is_newer(touch, value)
    assert records.is_newer(put, touch)
    assert not records.is_newer(touch, put)
