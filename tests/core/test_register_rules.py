"""Acceptor, round and glance: each answer of each rule."""

from __future__ import annotations

import pytest

from kvstore.core import record as records
from kvstore.core import register, window
from kvstore.core.leads import Leads
from kvstore.core.quorum import Verdict
from kvstore.core.register import Glance, Phase, Round
from kvstore.core.version import NODE_BITS, after, node_of, pack
from kvstore.types import Kind, NodeId, Version

A, B, C = NodeId(1), NodeId(2), NodeId(3)
OWNERS = (A, B, C)
NEXT = 1 << NODE_BITS
"""From a ballot to its successor."""


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
        (0, strong(7), 7, NEXT + 6),
        (0, strong(7), NEXT + 6, NEXT + 6),
        (0, strong(7), NEXT + 7, 0),
        (5, strong(7), 6, NEXT + 6),
        (9, strong(7), 8, NEXT + 6),
        (NEXT + 9, strong(7), NEXT + 8, NEXT + 9),
        (0, plain(7), 7, 7),
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
        (0, strong(3, b"a"), strong(3, b"b"), NEXT + 2),
        (4, strong(3), strong(3), NEXT + 2),
        (NEXT + 5, strong(3), strong(3), NEXT + 5),
        (0, strong(5), strong(3), NEXT + 4),
        (0, strong(5), strong(6), NEXT + 4),
        (0, strong(5), strong(NEXT + 4), NEXT + 4),
        (0, strong(5), strong(NEXT + 5), 0),
        (NEXT + 5, strong(5), strong(NEXT + 5), 0),
        (NEXT + 6, strong(5), strong(NEXT + 5), NEXT + 6),
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


def test_the_successor_is_the_next_version_of_the_same_node() -> None:
    for version in (pack(1_800_000_000_000, 7, B), pack(1_800_000_000_000, 4_095, C)):
        assert register.successor(strong(version)) == after(version, node_of(version))


def test_a_round_that_succeeds_another_only_accepts() -> None:
    current = Round.succeeding(OWNERS, strong(3))
    assert (current.phase, current.ballot, current.highest) == (Phase.ACCEPT, NEXT + 3, strong(3))
    assert current.promised(A, strong(9)) is Verdict.PENDING
    assert current.accepted(A) is Verdict.PENDING
    assert current.refused(B, 5_000, Phase.ACCEPT) is Verdict.PENDING
    assert current.accepted(C) is Verdict.REACHED
    assert (current.acked, current.beaten_by) == ((A, C), 5_000)


def test_a_lead_is_taken_once_and_ends_with_its_epoch() -> None:
    leads = Leads(capacity=2)
    leads.won(b"a", Version(1), epoch=1)
    assert leads.take(b"a", epoch=1) == 1
    assert leads.take(b"a", epoch=1) is None
    leads.won(b"a", Version(2), epoch=1)
    assert leads.take(b"a", epoch=2) is None
    leads.won(b"b", Version(3), epoch=2)
    assert leads.take(b"a", epoch=2) is None, "other owners accepted that"


def test_the_leads_won_first_are_forgotten_first() -> None:
    leads = Leads(capacity=2)
    for number, key in enumerate((b"a", b"b", b"a", b"c")):
        leads.take(key, epoch=0)
        leads.won(key, Version(number), epoch=0)
    assert len(leads) == 2
    assert [leads.take(key, epoch=0) for key in (b"a", b"b", b"c")] == [2, None, 3]


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


def test_a_glance_ends_when_too_few_are_left_to_show_anything() -> None:
    glance = Glance(OWNERS)
    assert glance.failed(A) is Verdict.PENDING
    assert glance.shown(B, 0, strong(3)) is Verdict.PENDING
    assert glance.failed(B) is Verdict.PENDING, "it has shown what it holds"
    assert glance.failed(C) is Verdict.LOST
    assert glance.shown(C, 0, strong(3)) is Verdict.LOST


def test_a_glance_that_has_its_answer_keeps_it() -> None:
    glance = Glance(OWNERS)
    glance.shown(A, 0, strong(3))
    assert glance.shown(A, 0, strong(3)) is Verdict.PENDING, "an owner that says it twice is one owner"
    assert glance.shown(B, 0, strong(3)) is Verdict.REACHED
    assert [glance.failed(C), glance.failed(C)] == [Verdict.REACHED] * 2
    assert glance.record == strong(3)
