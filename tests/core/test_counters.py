"""Counters merge without loss, in any order and any number of times."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.core import counters
from kvstore.core import record as records
from kvstore.core.reading import ReadDecision
from kvstore.core.record import Order
from kvstore.core.scanning import Page, merge
from kvstore.types import Kind, NodeId, Version

PARTS = st.dictionaries(
    st.sampled_from([b"a" * 8, b"b" * 8, b"c" * 8]), st.tuples(st.integers(0, 5), st.integers(0, 5))
)
PAYLOADS = st.builds(counters.encode, st.sampled_from([0, 2, 7]), PARTS)


def counter(version: int, payload: bytes) -> bytes:
    return records.encode(Version(version), 0, Kind.COUNTER, payload, flags=records.FLAG_COUNTER)


RECORDS = st.one_of(
    st.builds(counter, st.integers(1, 9), PAYLOADS),
    st.builds(lambda v: records.encode(Version(v), 0, Kind.TOMBSTONE, b""), st.integers(1, 9)),
    st.builds(
        lambda v, p: records.encode(Version(v), 0, Kind.VALUE, p),
        st.integers(1, 9),
        st.sampled_from([b"x", b"y"]),
    ),
)


@given(PAYLOADS)
def test_what_is_written_is_well_formed_and_comes_out(payload: bytes) -> None:
    assert counters.is_well_formed(payload)
    assert counters.encode(counters.generation_of(payload), counters.parts_of(payload)) == payload
    assert counters.total_of(payload) == sum(p - m for p, m in counters.parts_of(payload).values())


def test_what_is_not_a_counter_is_told() -> None:
    good = counters.encode(1, {b"a" * 8: (1, 2), b"b" * 8: (3, 4)})
    for cut in range(len(good)):
        assert counters.is_well_formed(good[:cut]) == (cut in (8, 32))
    assert not counters.is_well_formed(good[:8] + good[32:] + good[8:32]), "out of order"
    assert not records.is_well_formed(counter(1, good[:-1]))
    assert not records.is_well_formed(records.encode(Version(1), 0, Kind.COUNTER, good))
    assert not records.is_well_formed(
        records.encode(Version(1), 0, Kind.VALUE, good, flags=records.FLAG_COUNTER)
    )


@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_every_order_and_repetition_ends_alike(given_records: list[bytes]) -> None:
    ends = set()
    for order in permutations(given_records):
        held = order[0]
        for record in (*order, *order):
            assert records.is_newer(record, held) == (records.merged(record, held) != held)
            held = records.merged(record, held)
        ends.add(held)
    assert len(ends) == 1


@given(RECORDS, RECORDS)
def test_comparing_agrees_with_merging(one: bytes, other: bytes) -> None:
    order = records.compare(one, other)
    assert (order in (Order.NEWER, Order.CONFLICT_WINS)) == (records.merged(one, other) != other)
    assert (order is Order.SAME) == (one == other)


def test_totals_add_up_over_parts_and_nothing_counts_twice() -> None:
    one = counter(5, counters.encode(0, {b"a" * 8: (3, 0)}))
    two = counter(4, counters.encode(0, {b"a" * 8: (2, 0), b"b" * 8: (10, 1)}))
    both = records.merged(one, two)
    assert records.readable_of(both) == b"12"
    assert records.version_of(both) == 5
    assert records.merged(one, both) == both == records.merged(two, both)
    assert records.readable_of(records.encode(Version(1), 0, Kind.VALUE, b"x")) == b"x"


def test_payloads_of_two_generations_do_not_mix() -> None:
    old, new = counters.encode(1, {b"a" * 8: (3, 0)}), counters.encode(2, {b"b" * 8: (4, 0)})
    assert counters.join(old, new) == counters.join(new, old) == new


def test_a_deletion_ends_what_was_counted_before_and_a_later_generation_begins() -> None:
    before = counter(9, counters.encode(0, {b"a" * 8: (3, 0)}))
    deleted = records.encode(Version(7), 0, Kind.TOMBSTONE, b"")
    after = counter(8, counters.encode(7, {b"a" * 8: (1, 0)}))
    assert records.merged(before, deleted) == deleted, "though its version is higher"
    assert records.merged(after, deleted) == after
    assert records.merged(before, after) == after


def test_a_read_and_a_scan_join_what_replicas_hold_apart() -> None:
    one = counter(5, counters.encode(0, {b"a" * 8: (3, 0)}))
    two = counter(4, counters.encode(0, {b"b" * 8: (4, 0)}))
    decision = ReadDecision((NodeId(1), NodeId(2), NodeId(3)), 2, 2)
    decision.answer(NodeId(1), one)
    decision.answer(NodeId(2), two)
    assert decision.newest is not None
    assert records.readable_of(decision.newest) == b"7"
    assert decision.repairs() == (1, 2)
    page = merge([Page([(b"k", one)], False), Page([(b"k", two)], False)], 0)
    assert records.readable_of(page.entries[0][1]) == b"7"
    assert page.stale == 1


@given(st.integers(1, 9), PAYLOADS)
def test_a_counter_that_expired_leaves_a_well_formed_tombstone(version: int, payload: bytes) -> None:
    """Counters do not expire any more, but some were given an end."""
    left = records.reclaim(counter(version, payload))
    assert records.is_well_formed(left)
    assert records.kind_of(left) == Kind.TOMBSTONE
    assert records.version_of(left) == version
