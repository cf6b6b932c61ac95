"""Acceptor, round and glance: each answer of each rule."""

from __future__ import annotations

import pytest

from kvstore.core import record as records
from kvstore.core import register, window
from kvstore.core.quorum import Verdict
from kvstore.core.register import Glance, Phase, Round
from kvstore.types import Kind, NodeId, Version

A, B, C = NodeId(1), NodeId(2), NodeId(3)
OWNERS = (A, B, C)


def strong(version: int, value: bytes = b"v") -> bytes:
    payload = window.encode(version, window.Window(), value)
    return records.encode(Version(version), 0, Kind.VALUE, payload, flags=records.FLAG_STRONG)


def plain(version: int) -> bytes:
    return records.encode(Version(version), 0, Kind.VALUE, b"p")


@pytest.mark.parametrize(
    ("promised", "held", "ballot", "beaten_by"),
    [
        (0, None, 1, 0),
        (5, None, 6, 0),
        (5, None, 5, 5),
        (5, None, 4, 5),
        (0, strong(7), 7, 7),
        (5, strong(7), 6, 7),
        (9, strong(7), 8, 9),
        (0, plain(7), 8, 0),
    ],
)
def test_a_promise_needs_more_than_all_before(
    promised: int, held: bytes | None, ballot: int, beaten_by: int
) -> None:
    assert register.on_prepare(promised, held, ballot) == beaten_by


@pytest.mark.parametrize(
    ("promised", "held", "record", "beaten_by"),
    [
        (0, None, strong(3), 0),
        (3, None, strong(3), 0),
        (4, None, strong(3), 4),
        (0, strong(3), strong(3), 0),
        (0, strong(3, b"a"), strong(3, b"b"), 3),
        (4, strong(3), strong(3), 4),
        (0, strong(5), strong(3), 5),
        (2, plain(5), strong(3), 5),
        (2, plain(2), strong(3), 0),
    ],
)
def test_an_accept_needs_the_promise_and_a_newer_record(
    promised: int, held: bytes | None, record: bytes, beaten_by: int
) -> None:
    assert register.on_accept(promised, held, record) == beaten_by


def test_a_round_adopts_the_highest_and_counts_each_owner_once() -> None:
    current = Round(OWNERS, Version(10))
    assert current.promised(A, strong(3)) is Verdict.PENDING
    assert current.promised(A, strong(9)) is Verdict.PENDING
    assert current.promised(B, strong(4)) is Verdict.REACHED
    assert current.highest is not None
    assert current.missing == (C,)
    current.begin_accept()
    assert current.promised(C, None) is Verdict.PENDING, "a late promise is no accept"
    assert current.refused(A, 12, Phase.PREPARE) is Verdict.PENDING
    assert current.accepted(A) is Verdict.PENDING
    assert current.accepted(C) is Verdict.REACHED
    assert current.acked == (A, C)
    assert current.beaten_by == 12
    assert current.verdict is Verdict.REACHED


def test_a_strong_record_beats_a_plain_one_of_a_higher_version() -> None:
    current = Round(OWNERS, Version(10))
    current.promised(A, plain(9))
    current.promised(B, strong(3))
    assert current.highest == strong(3)


def test_a_round_is_lost_when_no_majority_is_left() -> None:
    current = Round(OWNERS, Version(10))
    assert current.refused(A, 11, Phase.PREPARE) is Verdict.PENDING
    assert current.failed(B, Phase.PREPARE) is Verdict.LOST
    assert current.promised(C, strong(3)) is Verdict.LOST
    assert current.highest is None


def test_a_fuller_record_replaces_its_own_remains() -> None:
    live = records.encode(
        Version(3), 50, Kind.VALUE, window.encode(3, window.Window(), b"v"), flags=records.FLAG_STRONG
    )
    current = Round(OWNERS, Version(10))
    current.promised(A, records.reclaim(live))
    current.promised(B, live)
    assert current.highest == live


@pytest.mark.parametrize(
    ("shown", "verdict"),
    [
        ([(A, 0, None), (B, 0, None)], Verdict.REACHED),
        ([(A, 0, strong(3)), (C, 3, strong(3))], Verdict.REACHED),
        ([(A, 0, strong(3))], Verdict.PENDING),
        ([(A, 4, strong(3))], Verdict.LOST),
        ([(A, 1, None)], Verdict.LOST),
        ([(A, 0, plain(3))], Verdict.LOST),
        ([(A, 0, strong(3)), (B, 0, strong(4))], Verdict.LOST),
        ([(A, 0, strong(3)), (B, 0, None)], Verdict.LOST),
    ],
)
def test_a_glance(shown: list[tuple[NodeId, int, bytes | None]], verdict: Verdict) -> None:
    glance = Glance(OWNERS)
    for node, promised, record in shown:
        glance.shown(node, promised, record)
    assert glance.verdict is verdict
    assert glance.shown(C, 99, strong(50)) is (verdict if verdict is not Verdict.PENDING else Verdict.LOST)
    assert glance.failed(B) is glance.verdict
    assert len(glance.answered) <= 2
