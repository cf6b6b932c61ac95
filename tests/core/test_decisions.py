"""Quorums, writes and reads: each decision against every way the answers could come."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import errors
from kvstore.core import quorum
from kvstore.core import record as records
from kvstore.core.quorum import Tally, Verdict
from kvstore.core.reading import ReadDecision, holders_needed
from kvstore.core.writing import WriteDecision
from kvstore.types import Applied, Consistency, Kind, NodeId, Version

NODES = tuple(NodeId(n) for n in (4, 9, 2, 7, 1))


def record(version: int, payload: bytes = b"") -> bytes:
    return records.encode(Version(version), 0, Kind.VALUE, payload or b"v%d" % version)


# --- quorum -----------------------------------------------------------------------------


@pytest.mark.parametrize("copies", range(1, 8))
def test_levels(copies: int) -> None:
    def count(level: Consistency | None, explicit: int | None = None) -> int:
        return quorum.needed(level, explicit, copies, operation="get")

    assert count(Consistency.ONE) == 1
    assert count(Consistency.ALL) == copies
    assert count(None) == count(Consistency.QUORUM) == quorum.majority(copies)
    assert 2 * quorum.majority(copies) > copies
    assert count(Consistency.ALL, 1) == 1
    for wrong in (0, copies + 1, -1):
        with pytest.raises(errors.BadConsistency):
            count(None, wrong)
    with pytest.raises(errors.Unsupported):
        count(Consistency.LINEARIZABLE)


def verdict_by_enumeration(unseen: int, acked: int, needed: int) -> Verdict:
    """The dumb twin: try every way the round could still end."""
    ends = {acked + sum(rest) >= needed for rest in product((0, 1), repeat=unseen)}
    return Verdict.PENDING if len(ends) == 2 else Verdict.REACHED if ends == {True} else Verdict.LOST


@given(
    st.integers(1, 5).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12),
)
def test_a_tally_is_what_enumeration_says(shape: tuple[int, int], answers: list[tuple[int, bool]]) -> None:
    copies, needed = shape
    tally = Tally(NODES[:copies], needed)
    first: dict[NodeId, bool] = {}
    fallen = Verdict.PENDING
    for at, good in answers:
        replica = NODES[at % copies]
        first.setdefault(replica, good)
        verdict = tally.ack(replica) if good else tally.fail(replica)
        expected = verdict_by_enumeration(copies - len(first), sum(first.values()), needed)
        assert verdict == tally.verdict == (fallen if fallen is not Verdict.PENDING else expected)
        fallen = verdict
    assert set(tally.acked) == {replica for replica, good in first.items() if good}
    assert set(tally.acked) | set(tally.missing) == set(NODES[:copies])
    assert str(tally).endswith(f"(needs {needed})")


# --- writing ----------------------------------------------------------------------------

ANSWERS = st.sampled_from([*map(int, Applied), None])


@given(st.integers(1, 3), st.permutations(range(3)), st.tuples(ANSWERS, ANSWERS, ANSWERS))
def test_a_write_fails_definitely_only_when_nobody_can_hold_it(
    needed: int, order: list[int], answers: tuple[int | None, ...]
) -> None:
    decision = WriteDecision(NODES[:3], needed)
    verdict = Verdict.PENDING
    for at in order:
        answer = answers[at]
        verdict = decision.fail(NODES[at]) if answer is None else decision.answer(NODES[at], answer)
    stored = [a for a in answers if a is not None and a <= Applied.DUPLICATE]
    assert (verdict is Verdict.REACHED) == (len(stored) >= needed)
    assert len(decision.acked) == len(stored)
    assert len(decision.missing) == 3 - len(stored)
    assert decision.superseded == (Applied.SUPERSEDED in answers)
    assert decision.existed == (Applied.REPLACED in answers)
    refused = (Applied.REFUSED, Applied.DISK_FULL, Applied.NOT_OWNER)
    assert decision.failure().definite == all(answer in refused for answer in answers)


@pytest.mark.parametrize(
    ("applied", "kind"),
    [
        (Applied.DISK_FULL, errors.DiskFull),
        (Applied.REFUSED, errors.ClockSkew),
        (Applied.NOT_OWNER, errors.StaleEpoch),
        (Applied.FAILED, errors.QuorumTimeout),
    ],
)
def test_a_failed_write_says_why(applied: Applied, kind: type[errors.KVError]) -> None:
    decision = WriteDecision(NODES[:2], 2)
    for node in NODES[:2]:
        decision.answer(node, applied)
    assert isinstance(decision.failure(), kind)
    assert decision.failure().one_line().startswith("error[")


def test_the_first_answer_of_a_replica_stands() -> None:
    decision = WriteDecision(NODES[:3], 2)
    decision.fail(NODES[0])
    assert decision.answer(NODES[0], Applied.APPLIED) is Verdict.PENDING
    assert decision.answer(NODES[1], Applied.APPLIED) is Verdict.PENDING
    assert decision.answer(NODES[1], Applied.APPLIED) is Verdict.PENDING
    assert decision.answer(NODES[2], Applied.DUPLICATE) is Verdict.REACHED


# --- reading ----------------------------------------------------------------------------


@pytest.mark.parametrize("copies", range(1, 8))
def test_what_a_read_returns_is_met_by_every_later_read_of_its_level(copies: int) -> None:
    for needed in range(1, copies + 1):
        holders = holders_needed(needed, copies)
        if needed == 1 < copies:
            assert holders == 0
        else:
            assert holders + needed > copies
            assert holders >= quorum.majority(copies)


EVENTS = st.lists(st.tuples(st.sampled_from(["answer", "fail", "repaired"]), st.integers(0, 4)), max_size=25)


@given(
    st.sampled_from([1, 3, 5]).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.lists(st.one_of(st.none(), st.integers(1, 4)), min_size=5, max_size=5),
    EVENTS,
)
def test_a_read_returns_the_newest_counted_answer_and_enough_replicas_hold_it(
    shape: tuple[int, int], held: list[int | None], events: list[tuple[str, int]]
) -> None:
    copies, needed = shape
    nodes = NODES[:copies]
    truth = {node: None if held[at] is None else record(held[at]) for at, node in enumerate(nodes)}  # type: ignore[arg-type]
    holders = holders_needed(needed, copies)
    decision = ReadDecision(nodes, needed, holders)
    asked: dict[NodeId, bytes] = {}
    under_way: dict[NodeId, list[bytes]] = {node: [] for node in nodes}
    counted: list[bytes | None] = []
    reached = False
    for what, at in events:
        node = nodes[at % copies]
        if what == "answer":
            if node not in decision.answered:
                counted.append(truth[node])
            verdict = decision.answer(node, truth[node])
        elif what == "fail":
            del under_way[node][:1]
            verdict = decision.fail(node)
        else:
            if under_way[node]:  # answered in the order they were asked
                truth[node] = max(truth[node] or b"", under_way[node].pop(0))
            verdict = decision.repaired(node)
        for behind in decision.repairs():
            assert asked.get(behind) != decision.newest, "asked once for each newest"
            assert decision.newest is not None
            assert truth[behind] is None or records.is_newer(decision.newest, truth[behind])
            asked[behind] = decision.newest
            under_way[behind].append(decision.newest)
        if verdict is Verdict.REACHED and not reached:
            reached = True
            best = max((r for r in counted if r is not None), default=None)
            assert decision.newest == best
            assert len(decision.answered) >= needed
            if best is not None:
                assert sum(value == best for value in truth.values()) >= holders
        elif reached:
            assert verdict is Verdict.REACHED, "a verdict never changes"
    assert set(decision.answered) | set(decision.missing) == set(nodes)


def test_a_repair_nobody_asked_for_and_a_second_answer_change_nothing() -> None:
    decision = ReadDecision(NODES[:3], 2, 2)
    assert decision.repaired(NODES[0]) is Verdict.PENDING
    decision.answer(NODES[0], record(1))
    assert decision.answer(NODES[0], record(9)) is Verdict.PENDING
    assert decision.newest == record(1)
    decision.answer(NODES[1], record(2))
    assert decision.repairs() == (NODES[0],)
    assert decision.repaired(NODES[0]) is Verdict.REACHED


def test_the_answer_to_a_repair_says_nothing_of_what_was_found_newer_meanwhile() -> None:
    """Simulator, seed 15300168: the newest was on one replica, and the read was answered as if on two."""
    one, two, three = NODES[:3]
    decision = ReadDecision((one, two, three), 2, 2)
    decision.answer(one, record(1))
    decision.answer(two, record(2))
    assert decision.repairs() == (one,)
    decision.answer(three, record(3))
    assert decision.repairs() == (two,), "one has not told what became of the first"
    assert decision.repaired(one) is Verdict.PENDING, "it holds the second, not the third"
    assert decision.repairs() == (one,)
    assert decision.repaired(one) is Verdict.REACHED


def test_a_repair_that_failed_is_not_the_last_one_when_something_newer_is_found() -> None:
    one, two, three = NODES[:3]
    decision = ReadDecision((one, two, three), 2, 2)
    decision.answer(one, record(1))
    decision.answer(two, record(2))
    assert decision.repairs() == (one,)
    decision.fail(one)
    assert decision.repairs() == ()
    decision.answer(three, record(3))
    assert decision.repairs() == (one, two)
    assert decision.repaired(one) is Verdict.REACHED


def test_a_read_is_lost_when_its_level_or_its_repair_cannot_be_had() -> None:
    decision = ReadDecision(NODES[:3], 2, 2)
    decision.fail(NODES[0])
    assert decision.fail(NODES[1]) is Verdict.LOST
    decision = ReadDecision(NODES[:3], 2, 2)
    decision.answer(NODES[0], record(5))
    assert decision.answer(NODES[1], None) is Verdict.PENDING
    assert decision.repairs() == (NODES[1],)
    decision.fail(NODES[1])
    assert decision.fail(NODES[2]) is Verdict.LOST


def test_a_live_copy_is_preferred_to_its_reclaimed_tombstone_and_neither_is_repaired() -> None:
    live = records.encode(Version(7), 99, Kind.VALUE, b"v")
    for order in ((live, records.reclaim(live)), (records.reclaim(live), live)):
        decision = ReadDecision(NODES[:3], 2, 2)
        decision.answer(NODES[0], order[0])
        assert decision.answer(NODES[1], order[1]) is Verdict.REACHED
        assert decision.newest == live
        assert decision.repairs() == ()
