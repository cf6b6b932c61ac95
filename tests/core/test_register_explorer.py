"""Registers, every interleaving up to a bound: the rules are sound, and each is needed (DESIGN 6)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from register_explorer import OWNERS, Explorer, Rules
from register_orders import Call

from kvstore.core import record as records
from kvstore.core import register
from kvstore.core.quorum import Verdict
from kvstore.core.record import Order
from kvstore.core.register import Glance
from kvstore.core.version import NODE_BITS
from kvstore.types import NodeId


def incr(by: int) -> Call:
    return Call("incr", (by, 0, None, None, 0))


def plain(value: bytes) -> Call:
    return Call("put", (value,), plain=True)


def put(value: bytes, after: int = -1) -> Call:
    return Call("put", (value, 0), after=after)


def then_incr(by: int, succeeds: int) -> Call:
    """By the proposer of an earlier call, without a prepare."""
    return Call("incr", (by, 0, None, None, 0), succeeds=succeeds)


def get(after: int = -1) -> Call:
    return Call("get", after=after)


_SUCCESSION = (incr(1), then_incr(10, succeeds=0), incr(100))
SOUND: dict[str, Explorer] = {
    "two increments, answers lost": Explorer((incr(1), incr(10))),
    "two increments, each tried twice": Explorer((incr(1), incr(10)), attempts=2, lost_answers=False),
    "three increments": Explorer((incr(1), incr(10), incr(100)), lost_answers=False),
    "one increment tried twice, and a read": Explorer((incr(1), get()), attempts=2, lost_answers=False),
    "an increment and a read, answers lost": Explorer((incr(1), get())),
    "an increment and two reads in a row, with merges": Explorer(
        (incr(1), get(), get(after=1)), merges=1, lost_answers=False
    ),
    "a plain write, a change that sees it, and a read": Explorer(
        (plain(b"x"), Call("get_and_set", (b"y", 0)), get(after=1)), lost_answers=False
    ),
    "a plain write and a change, with merges": Explorer(
        (plain(b"x"), Call("get_and_set", (b"y", 0))), merges=2, lost_answers=False
    ),
    "put, delete, read in order": Explorer(
        (put(b"a"), Call("delete", after=0), get(after=1)), lost_answers=False, attempts=2
    ),
    "two compare-and-sets from nothing, and a read": Explorer(
        (Call("cas_value", (None, b"a", 0)), Call("cas_value", (None, b"b", 0)), get()), lost_answers=False
    ),
    "an increment, its successor, and another proposer": Explorer(
        _SUCCESSION, lost_answers=False, close=True
    ),
    "a successor and another proposer, with merges": Explorer(
        _SUCCESSION, merges=1, lost_answers=False, close=True
    ),
    "a successor tried again, and another proposer": Explorer(_SUCCESSION, attempts=2, lost_answers=False),
    "a successor and reads in a row, with merges": Explorer(
        (incr(1), then_incr(10, succeeds=0), get(), get(after=2)), merges=1, lost_answers=False
    ),
    "a successor of a successor, answers lost": Explorer(
        (incr(1), then_incr(10, succeeds=0), then_incr(100, succeeds=1), get(after=1))
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_every_interleaving_has_an_order(name: str) -> None:
    explorer = SOUND[name]
    assert explorer.run() is None
    assert not explorer.exhausted, "the bound of states was reached: this proves nothing"
    assert explorer.completed >= 3


def held_is_enough(promised: int, held: bytes | None, record: bytes) -> int:
    """Acknowledge a record that is already there, whatever was promised meanwhile."""
    if held is not None and records.compare(record, held) is Order.SAME:
        return 0
    return register.on_accept(promised, held, record)


def promises_do_not_bind(_promised: int, held: bytes | None, record: bytes) -> int:
    return register.on_accept(0, held, record)


def more_than_promised(promised: int, held: bytes | None, record: bytes) -> int:
    """`>` where a promise allows `>=`."""
    if promised and records.version_of(record) <= promised:
        return promised
    return register.on_accept(promised, held, record)


def anonymous(record: bytes | None) -> bytes | None:
    """A plain record that does not say which operation wrote it."""
    if record is None or records.flags_of(record) & records.FLAG_STRONG:
        return record
    kind = records.kind_of(record)
    return records.encode(records.version_of(record), 0, kind, records.payload_of(record))


def promise_between(promised: int, held: bytes | None, ballot: int) -> int:
    """A ballot between a record and its successor."""
    top = max(promised, records.version_of(held) if held is not None else 0)
    return 0 if ballot > top else top


def accept_between(promised: int, held: bytes | None, record: bytes) -> int:
    ballot, version = records.version_of(record), records.version_of(held) if held is not None else 0
    if ballot >= promised and (ballot > version or (held is not None and held == record)):
        return 0
    return max(promised, version)


class Blind(Glance):
    """A fast read that ignores a higher promise."""

    def shown(self, node: NodeId, promised: int, record: bytes | None) -> Verdict:
        del promised
        return super().shown(node, 0, record)


class Highest(Glance):
    """A fast read that returns the highest answer though no majority shows it."""

    def shown(self, node: NodeId, promised: int, record: bytes | None) -> Verdict:
        del promised
        self._seen[node] = record
        if record is not None and (self.record is None or records.is_newer(record, self.record)):
            self.record = record
        if len(self._seen) >= 2:
            self.verdict = Verdict.REACHED
        return self.verdict


_CAS = Call("cas_value", (None, b"y", 0))
_PUT_DELETE_GET = (put(b"a"), Call("delete", after=0), get(after=1))
MUTANTS: dict[str, Explorer] = {
    "a promise kept only in memory": Explorer(
        (incr(1), incr(10)), rules=Rules(keeps_promises=False), restarts=1, lost_answers=False
    ),
    "an accept acknowledged because the record is already there": Explorer(
        (incr(1), incr(10)), rules=Rules(on_accept=held_is_enough), merges=1, lost_answers=False
    ),
    "an accept below a promise": Explorer(
        (incr(1), incr(10)), rules=Rules(on_accept=promises_do_not_bind), lost_answers=False
    ),
    "a plain record without its operation id": Explorer(
        (Call("get_and_set", (b"y", 0)), plain(b"x"), get(after=0)),
        rules=Rules(adopt=anonymous),
        attempts=2,
        lost_answers=False,
    ),
    "a ballot taken between a record and its successor": Explorer(
        _SUCCESSION,
        rules=Rules(on_prepare=promise_between, on_accept=accept_between),
        lost_answers=False,
        close=True,
    ),
    "a successor proposed twice": Explorer(
        (incr(1), then_incr(10, succeeds=0), then_incr(100, succeeds=0), get(after=1)),
        rules=Rules(succeeds_once=False),
        merges=1,
        lost_answers=False,
    ),
    "no prepare for a ballot that is not the successor": Explorer(
        _SUCCESSION, rules=Rules(next_ballot=lambda ballot: ballot + (4 << NODE_BITS)), lost_answers=False
    ),
    "a fast read that ignores a higher promise": Explorer(
        (get(), incr(1), incr(10)), rules=Rules(glance=Blind), merges=1, lost_answers=False
    ),
    "a read of the highest answer without a majority": Explorer(
        (incr(1), get(), get(after=1)), rules=Rules(glance=Highest), lost_answers=False
    ),
    "a retry without the operation id": Explorer(
        (incr(1), get()), rules=Rules(retry_operation=lambda actor, attempt: actor + 8 * attempt), attempts=2
    ),
    "one acceptor, or a fallback, taken for a quorum": Explorer(
        (incr(1), incr(10)), rules=Rules(quorum=1), lost_answers=False
    ),
    "a failed change answered without an accept": Explorer(
        (put(b"a"), _CAS, get(after=1)), rules=Rules(tells_failures_early=True), lost_answers=False
    ),
    "a deleted register recreated from a laggard": Explorer(
        _PUT_DELETE_GET, rules=Rules(collects_tombstones=True), lost_answers=False
    ),
}


@pytest.mark.patches
@pytest.mark.parametrize("name", MUTANTS)
def test_without_the_rule_an_interleaving_has_no_order(name: str) -> None:
    explorer = MUTANTS[name]
    assert explorer.run() is not None, f"{explorer.states} states, and no violation"


@pytest.mark.parametrize("name", MUTANTS)
def test_with_the_rule_the_same_calls_have_an_order(name: str) -> None:
    """The conviction above is of the mutant, not of the explorer."""
    mutant = MUTANTS[name]
    sound = Explorer(
        mutant.calls,
        rules=replace(Rules()),
        attempts=mutant.attempts,
        merges=mutant.merges,
        restarts=mutant.restarts,
        lost_answers=mutant.lost_answers,
        close=mutant.close,
        states_max=10_000,
    )
    assert sound.run() is None


def test_an_accept_that_wants_more_than_the_promise_never_completes() -> None:
    """The one trap that costs liveness, not safety."""
    stuck = Explorer((incr(1),), rules=Rules(on_accept=more_than_promised), attempts=2)
    assert stuck.run() is None
    assert stuck.completed == 0
    sound = Explorer((incr(1),), attempts=2)
    assert sound.run() is None
    assert sound.completed > 0


def test_a_glance_counts_an_owner_once() -> None:
    glance = Glance(OWNERS)
    assert glance.shown(OWNERS[0], 0, None) is Verdict.PENDING
    assert glance.shown(OWNERS[0], 0, None) is Verdict.PENDING
    assert glance.failed(OWNERS[1]) is Verdict.PENDING
    assert glance.failed(OWNERS[2]) is Verdict.LOST
