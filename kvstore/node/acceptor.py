"""This node's part in registers of others' rounds: promises and accepts, durable before any answer.

The rules are `core.register`'s; here they meet the store, the clock, and the disk.

Rules kept here:
- an answer leaves only after the log batch with the promise or the record is synced, in every sync mode;
- decisions are made by what is on its way to the disk, peeks show only what is on it: both are states
  that this acceptor is or was in, and nobody was told of a later one;
- what is stored is a record: one that is none gets no vote, whoever asks;
- a ballot too far ahead of our clock is not taken: one bad clock must not poison a register;
- a node whose acknowledgements do not mean "on disk" takes no part (DESIGN 6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kvstore import errors, limits
from kvstore.core import record as records
from kvstore.core import register
from kvstore.core import version as versions
from kvstore.core.version import HybridClock
from kvstore.node.metrics import Counters
from kvstore.node.replica import Replica
from kvstore.storage.store import Store
from kvstore.types import Kind, NodeId
from kvstore.wire.register_messages import BEATEN, FAILED, FULL, GRANTED, PREPARE

Vote = tuple[int, int, bytes | None]
"""Status, number to beat, record."""


class Proposing(Protocol):
    """A proposer's phase that waits for votes."""

    def voted(self, node: NodeId, vote: Vote) -> None:
        """An acceptor answered."""
        ...

    def fail(self, node: NodeId) -> None:
        """It will not."""
        ...


class _Votes:
    """What is told to a peer when it is durable. No nested function: compiled, that refers to itself."""

    __slots__ = ("_done", "_flat")

    def __init__(self, done: Callable[[list[Any]], None], flat: list[Any]) -> None:
        self._done = done
        self._flat = flat

    def durable(self, failure: BaseException | None) -> None:
        """Answer."""
        self._done(self._flat if failure is None else [FAILED, 0, None] * (len(self._flat) // 3))


class Acceptor:
    """Votes, over the store that records live in."""

    def __init__(
        self,
        *,
        number: NodeId,
        store: Store,
        replica: Replica,
        versions_clock: HybridClock,
        counters: Counters,
        durable: bool,
    ) -> None:
        self._number = number
        self._store = store
        self._replica = replica
        self._clock = versions_clock
        self._counters = counters
        self._durable = durable

    def check(self) -> None:
        """Raises errors.UnsafeRegisters on a node that could forget what it promised."""
        if not self._durable:
            raise errors.UnsafeRegisters

    def vote_local(self, kind: int, skey: bytes, what: Any, asker: Proposing, *, now_ms: int) -> None:
        """Vote for this node's own proposer; it is told when that is durable."""
        vote = self._vote(kind, skey, what, now_ms)

        def durable(failure: BaseException | None) -> None:
            if failure is None:
                asker.voted(self._number, vote)
            else:
                asker.fail(self._number)

        self._replica.when_durable(durable, sync=True)

    def vote(
        self, asked: Sequence[tuple[int, bytes, Any]], *, now_ms: int, done: Callable[[list[Any]], None]
    ) -> None:
        """Vote for a peer's proposers; `done([status, number, record, ...])` when all is durable.

        On as many from the front as fit in an answer: of the others none was cast, and they are asked again.
        """
        self.check()
        flat: list[Any] = []
        room = limits.ANSWER_BYTES_MAX
        for kind, skey, what in asked:
            vote = self._vote(kind, skey, what, now_ms)
            flat += vote
            held = vote[2]
            if held is not None:
                room -= len(held)
                if room < 0:
                    break
        self._replica.when_durable(_Votes(done, flat).durable, sync=True)

    def latest(self, skey: bytes) -> bytes | None:
        """What this acceptor holds, durable or on its way. Raises DamagedRecord."""
        return self._store.promises.latest(skey)

    def peek(self, skeys: Sequence[bytes]) -> list[Any]:
        """`[promised, record, ...]` of as many as fit in an answer, as the disk has it or will have it."""
        store = self._store
        flat: list[Any] = []
        room = limits.ANSWER_BYTES_MAX
        for skey in skeys:
            record = store.get(skey)
            flat.append(store.promises.promised(skey))
            flat.append(record)
            if record is not None:
                room -= len(record)
                if room < 0:
                    break
        return flat

    def _vote(self, kind: int, skey: bytes, what: Any, now_ms: int) -> Vote:
        if not self._replica.owns(skey) or self._store.failed is not None:
            return FAILED, 0, None
        ballot = what if kind == PREPARE else int(records.version_of(what))
        if versions.millis_of(ballot) > now_ms + self._clock.drift_ms_max:
            self._counters.future_versions += 1
            return FAILED, 0, None
        self._clock.observe(ballot, now_ms)
        return self._prepare(skey, ballot) if kind == PREPARE else self._accept(skey, what, now_ms)

    def _prepare(self, skey: bytes, ballot: int) -> Vote:
        promises = self._store.promises
        held = promises.latest(skey)
        beaten_by = register.on_prepare(promises.promised(skey), held, ballot)
        if beaten_by:
            return BEATEN, beaten_by, None
        promises.promise(skey, ballot)
        return GRANTED, 0, held

    def _accept(self, skey: bytes, record: bytes, now_ms: int) -> Vote:
        promises = self._store.promises
        held = promises.latest(skey)
        if not records.is_well_formed(record, held):
            return FAILED, 0, None
        if promises.is_full and not _is_way_out(record, held):
            return FULL, 0, None
        beaten_by = register.on_accept(promises.promised(skey), held, record)
        if beaten_by:
            return BEATEN, beaten_by, None
        self._store.apply(skey, record, now_ms, repair=True, held=held)
        return GRANTED, 0, None


def _is_way_out(record: bytes, held: bytes | None) -> bool:
    """Whether a full disk takes it: a deletion, or the round of a read, which changes nothing."""
    if records.kind_of(record) == Kind.TOMBSTONE:
        return True
    return held is not None and records.shown_version_of(record) == records.shown_version_of(held)
