"""Rules, each broken by a patch: for simulated clusters, and for real nodes (`broken_node`).

A judge that never convicts proves nothing. None of this can be reached from the product: no flag, no
variable, no file of it does any of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from kvstore import errors
from kvstore.core import admission, quorum, reading, register, writing
from kvstore.core import record as records
from kvstore.core.changes import Request
from kvstore.core.quorum import Verdict
from kvstore.core.register import Glance
from kvstore.core.skew import ClockGuard
from kvstore.core.window import Outcome, Window
from kvstore.node import replica as replicas
from kvstore.node.coordinator import Coordinator
from kvstore.node.proposers import OnSettled, Settled
from kvstore.node.registers import Registers
from kvstore.node.verbs import Verbs
from kvstore.storage import recovery
from kvstore.storage import store as stores
from kvstore.types import Consistency, NodeId, OperationId
from kvstore.wire import messages

Patch = pytest.MonkeyPatch
Broken = Callable[[Patch], None]

# --- quorum calls ------------------------------------------------------------------------


def answer_before_the_sync(patch: Patch) -> None:
    """Rule: an answer leaves after the fsync."""
    honest = stores.Store.commit

    def commit(
        self: stores.Store, done: Callable[[BaseException | None], None], *, sync: bool = False
    ) -> None:
        honest(self, lambda _failure: None, sync=sync)
        asyncio.get_running_loop().call_soon(done, None)

    patch.setattr(stores.Store, "commit", commit)


def one_answer_taken_for_a_quorum(patch: Patch) -> None:
    """Rule: R + W > N."""
    honest = quorum.needed

    def needed(level: Consistency | None, explicit: int | None, copies: int, *, operation: str) -> int:
        count = honest(level, explicit, copies, operation=operation)
        return 1 if count == quorum.majority(copies) else count

    patch.setattr(quorum, "needed", needed)


def read_without_repair(patch: Patch) -> None:
    """Rule: enough replicas hold what a read returns before it returns it."""
    patch.setattr(reading, "holders_needed", lambda _needed, _copies: 0)
    patch.setattr(reading.ReadDecision, "repairs", lambda _self: ())


def visible_before_durable(patch: Patch) -> None:
    """Rule: a record is visible once its batch is on the disk."""
    honest = stores.Store.get

    def get(self: stores.Store, skey: bytes) -> bytes | None:
        group = self._group
        return group.staged.get(skey) or group.flying.get(skey) or honest(self, skey)

    patch.setattr(stores.Store, "get", get)


def expired_dropped_outright(patch: Patch) -> None:
    """Decision 0001: an expired record leaves a tombstone."""
    honest = stores.Store.get

    def get(self: stores.Store, skey: bytes) -> bytes | None:
        found = honest(self, skey)
        return None if found is not None and records.flags_of(found) & records.FLAG_RECLAIMED else found

    patch.setattr(stores.Store, "get", get)


def whatever_comes_last_is_taken(patch: Patch) -> None:
    """Rule: a replica applies iff newer."""
    patch.setattr(records, "is_newer", lambda _record, _than: True)


def an_indefinite_failure_told_as_definite(patch: Patch) -> None:
    """Rule: once a replica may hold it, nobody says it did not happen."""
    refusal = errors.NotReady(reason="nothing was written, honestly")
    patch.setattr(writing.WriteDecision, "failure", lambda _self: refusal)


def a_lost_quorum_counts_as_reached(patch: Patch) -> None:
    """Rule: a write that too few replicas took is not acknowledged."""
    honest = quorum.Tally.fail

    def fail(self: quorum.Tally, replica: int) -> Verdict:
        verdict = honest(self, replica)  # type: ignore[arg-type]
        return Verdict.REACHED if verdict is Verdict.LOST else verdict

    patch.setattr(quorum.Tally, "fail", fail)


# --- registers ---------------------------------------------------------------------------


def votes_leave_before_the_sync(patch: Patch) -> None:
    """Rule: a vote leaves after the fsync."""

    def when_durable(_self: replicas.Replica, done: Callable[[Any], None], *, sync: bool = False) -> None:
        del sync
        done(None)

    patch.setattr(replicas.Replica, "when_durable", when_durable)


def any_ballot_is_accepted(patch: Patch) -> None:
    """Rule: nothing is accepted below a promise."""
    patch.setattr(register, "on_accept", lambda _promised, _held, _record: 0)


def the_window_is_not_asked(patch: Patch) -> None:
    """Rule: an operation found in the window is not done again."""

    def find(_self: Window, _operation: OperationId) -> Outcome | None:
        return None

    patch.setattr(Window, "find", find)
    patch.setattr(Window, "dropped_ms", 0, raising=False)


def a_read_takes_the_highest_answer(patch: Patch) -> None:
    """Rule: a read without a round needs a majority that shows the same."""

    def shown(self: Glance, node: NodeId, _promised: int, record: bytes | None) -> Verdict:
        self._seen[node] = record
        if record is not None and (self.record is None or records.is_newer(record, self.record)):
            self.record = record
        if len(self._seen) >= 2:
            self.verdict = Verdict.REACHED
        return self.verdict

    patch.setattr(Glance, "shown", shown)


def timeouts_told_as_refusals(patch: Patch) -> None:
    """Rule: what was sent in an accept may have been applied (RELIABILITY P12)."""
    honest = Registers.start

    def start(self: Registers, key: bytes, request: Request, deadline: float, done: OnSettled) -> None:
        def told(settled: Settled | None, error: errors.KVError | None) -> None:
            unsure = isinstance(error, errors.Unresolved)
            done(settled, errors.NoMajority(operation="honestly") if unsure else error)

        honest(self, key, request, deadline, told)

    patch.setattr(Registers, "start", start)


def plain_writes_pass_registers_by(patch: Patch) -> None:
    """Rule: a plain write gives way to a register, and to a promise that one may be coming."""

    def is_newer(record: bytes, than: bytes | None) -> bool:
        return than is None or record[:8] > than[:8]

    patch.setattr(records, "is_newer", is_newer)
    patch.setattr(stores.Store, "_is_promised_away", lambda *_call, **_repair: False)


# --- clocks and logs ----------------------------------------------------------------------


def any_clock_is_believed(patch: Patch) -> None:
    """Rule: a clock that disagrees with its peers makes no versions and judges no expiry."""
    patch.setattr(ClockGuard, "verdict", lambda _self: None)
    patch.setattr(Coordinator, "trusted_now", lambda self: self._clock.wall_ms())


def ends_come_from_any_clock(patch: Patch) -> None:
    """Rule: a ttl becomes an instant by the trusted clock, also where another node stores it."""

    def expires(self: Verbs, options: messages.Options) -> int:
        now_ms = self._coordinator._clock.wall_ms()
        return admission.expires_from(ttl_ms=options.ttl_ms, expires_ms=options.expires_ms, now_ms=now_ms)

    patch.setattr(Verbs, "expires", expires)


def a_torn_tail_is_left_in_the_log(patch: Patch) -> None:
    """Rule: what is behind the last whole record is cut off before anything follows it."""
    patch.setattr(recovery, "_close_tail", lambda *_call: None)
