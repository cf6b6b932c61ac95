"""Versions never repeat, never go back, never run away (RELIABILITY T5 to T7, P6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import errors
from kvstore.core import version as versions
from kvstore.core.skew import ClockGuard
from kvstore.core.version import EPOCH_MS, HybridClock
from kvstore.types import NodeId

NOW = EPOCH_MS + 10**10
ONE = NodeId(1)


@given(st.integers(EPOCH_MS, EPOCH_MS + (1 << 42) - 1), st.integers(0, 4_095), st.integers(0, 1_023))
def test_a_version_comes_apart_again(ms: int, logical: int, node: int) -> None:
    version = versions.pack(ms, logical, node)
    assert (versions.millis_of(version), versions.logical_of(version), versions.node_of(version)) == (
        ms,
        logical,
        node,
    )
    assert version < 1 << 64


@given(st.lists(st.tuples(st.integers(-400, 400), st.one_of(st.none(), st.integers(-900, 900))), max_size=60))
def test_versions_grow_and_stay_within_the_drift(steps: list[tuple[int, int | None]]) -> None:
    """Clock readings go back and forth; some steps observe a peer's version first."""
    clock, now = HybridClock(ONE), NOW
    last = 0
    for move, peer in steps:
        now += move
        try:
            if peer is not None:
                seen = versions.pack(now + peer, 7, 2)
                clock.observe(seen, now)
                last = max(last, seen)
            version = clock.next(now)
        except errors.ClockSkew:
            continue
        assert version > last
        assert versions.millis_of(version) <= now + 500
        assert versions.node_of(version) == ONE
        last = version


def test_an_observed_version_too_far_ahead_leaves_the_clock_untouched() -> None:
    clock = HybridClock(ONE)
    before = clock.next(NOW)
    with pytest.raises(errors.ClockSkew):
        clock.observe(versions.pack(NOW + 501, 0, 2), NOW)
    assert clock.last == before
    clock.observe(versions.pack(NOW + 500, 0, 2), NOW)
    assert clock.next(NOW) > versions.pack(NOW + 500, 0, 2)


def test_the_counter_carries_into_the_next_millisecond() -> None:
    clock = HybridClock(ONE)
    issued = [clock.next(NOW) for _ in range(5_000)]
    assert len(set(issued)) == 5_000
    assert issued == sorted(issued)
    assert versions.millis_of(issued[-1]) == NOW + 1


def test_after_a_restart_with_the_clock_back_nothing_is_issued_below_the_log() -> None:
    before = HybridClock(ONE).next(NOW)
    clock = HybridClock(ONE, last=before)
    assert clock.next(NOW - 400) > before
    with pytest.raises(errors.ClockSkew):
        HybridClock(ONE, last=before).next(NOW - 3_600_000)


def test_a_guard_without_peers_accepts_a_jump() -> None:
    guard = ClockGuard(500, nodes=3)
    guard.reading(NOW, 1.0)
    guard.reading(NOW + 86_400_000, 2.0)
    assert guard.verdict() is None
    assert not guard.knows_peers


@pytest.mark.parametrize("jump", [86_400_000, -3_600_000, 501, -501])
def test_a_jump_is_not_trusted_until_a_peer_confirms_it(jump: int) -> None:
    guard = ClockGuard(500, nodes=3)
    guard.peer(NodeId(2), 3)
    guard.reading(NOW, 1.0)
    guard.reading(NOW + 1_000 + jump, 2.0)
    assert guard.verdict() == jump
    guard.peer(NodeId(2), -jump)
    assert guard.verdict() == jump, "the peer says that we are off"
    guard.peer(NodeId(2), 10)
    assert guard.verdict() is None


def test_small_corrections_are_no_jump() -> None:
    guard = ClockGuard(500, nodes=3)
    guard.peer(NodeId(2), 0)
    for step in range(10):
        guard.reading(NOW + step * 1_400, float(step))
    assert guard.verdict() is None


@given(st.lists(st.integers(-5_000, 5_000), min_size=1, max_size=8), st.integers(0, 4))
def test_who_is_contradicted_needs_a_majority_of_the_cluster(offsets: list[int], silent: int) -> None:
    nodes = 1 + len(offsets) + silent
    guard = ClockGuard(500, nodes=nodes)
    for number, offset in enumerate(offsets):
        guard.peer(NodeId(number), offset)
    off = sum(abs(offset) > 500 for offset in offsets)
    assert (guard.verdict() is not None) == (off > 0 and 2 * (1 + len(offsets) - off) <= nodes)
    for number in range(len(offsets)):
        guard.forget(NodeId(number))
    assert guard.verdict() is None


def test_two_clocks_of_five_that_are_off_do_not_outvote_the_one_that_is_left() -> None:
    """Simulator, seed 11579243: both started so, and saw no jump; two right ones were down."""
    guard = ClockGuard(500, nodes=5)
    guard.peer(NodeId(2), 0)
    guard.peer(NodeId(3), -86_400_000)
    assert guard.verdict() == 86_400_000


def test_peers_that_jumped_along_do_not_make_a_jump_right() -> None:
    """Found on real processes: two of five nodes asked the same broken time server."""
    guard = ClockGuard(500, nodes=5)
    for peer in (2, 3, 4, 5):
        guard.peer(NodeId(peer), 0)
    guard.reading(1_000_000, 0.0)
    guard.reading(1_002_000, 0.0)
    assert guard.verdict() == 2_000
    guard.peer(NodeId(2), 0)
    assert guard.verdict() == 2_000, "two of five are no majority"
    guard.peer(NodeId(3), 10)
    assert guard.verdict() is None


def test_what_was_only_read_moves_a_clock_up_to_the_drift_and_raises_nothing() -> None:
    clock = HybridClock(NodeId(1), drift_ms_max=500)
    now_ms = 1_800_000_000_000
    for ahead_ms, moves in ((-10, True), (500, True), (400, False), (501, False), (86_400_000, False)):
        before, read = clock.last, versions.pack(now_ms + ahead_ms, 3, NodeId(2))
        clock.note(read, now_ms)
        assert clock.last == (read if moves else before)
    assert clock.next(now_ms) > versions.pack(now_ms + 500, 3, NodeId(2))
