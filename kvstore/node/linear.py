"""What clients ask of registers: reads that hope for one round trip, changes, and plain writes that met one.

Rules kept here:
- a read is answered without a round only when `core.register.Glance` allows it, and when every clock within
  the drift agrees that the record has not expired; else a round decides, and makes the end visible to all;
- a plain write that met a register is run as a change under the same operation id, as a retry: its
  record may sit on a replica already, and may have been adopted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kvstore import errors
from kvstore.core import admission, ring, window
from kvstore.core import record as records
from kvstore.core.changes import BAD_TYPE, TOO_OLD, Request
from kvstore.core.record import NO_OPERATION
from kvstore.core.register import Glance
from kvstore.core.window import Outcome
from kvstore.core.writing import WriteDecision
from kvstore.node.acceptor import Acceptor
from kvstore.node.coordinator import Coordinator
from kvstore.node.link import Link
from kvstore.node.phase import GlanceWait
from kvstore.node.proposers import OnSettled, Settled, awaited
from kvstore.node.registers import Registers
from kvstore.node.waiting import Waiting
from kvstore.types import Applied, Consistency, Kind, NodeId, OperationId
from kvstore.wire import messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstore.node.deadlines import Deadlines
    from kvstore.node.operations import WriteOperation

GLANCE_S = 0.5
"""How long a read waits for a majority to show its state before it takes the slow path."""


class Linear:
    """The linearizable verbs of a coordinator."""

    def __init__(
        self,
        *,
        number: NodeId,
        coordinator: Coordinator,
        registers: Registers,
        acceptor: Acceptor,
        links: Mapping[NodeId, Link],
        deadlines: Deadlines,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        loop: asyncio.AbstractEventLoop,
        drift_ms_max: int,
    ) -> None:
        self._number = number
        self._coordinator = coordinator
        self._registers = registers
        self._acceptor = acceptor
        self._links = links
        self._deadlines = deadlines
        self._spawn = spawn
        self._loop = loop
        self._drift_ms_max = drift_ms_max
        coordinator.on_register = self.convert

    # --- reading ------------------------------------------------------------------------

    async def read(self, key: bytes, timeout_ms: int, *, head: bool) -> list[Any]:
        """The entry of a key, as `wire.results` has it. Raises as `Registers.change` does."""
        coordinator = self._coordinator
        admission.check_key(key)
        with self._counted():
            coordinator.counters.reads += 1
            self._registers.check_alive(key)
            deadline = self._loop.time() + timeout_ms / 1000
            glance = await self._glance(key, deadline)
            epoch = coordinator.topology.epoch
            if glance is not None:
                record = glance.record
                expires_ms = records.expires_of(record) if record is not None else 0
                if not expires_ms or coordinator.trusted_now() + self._drift_ms_max < expires_ms:
                    return _entry(record, epoch, glance.answered, head=head)
            coordinator.counters.register_reads_slow += 1
            request = Request(NO_OPERATION, True, "get", ())
            outcome, acked = await self._registers.change(key, request, deadline)
            exists = outcome.value is not None
            shown = None if head else outcome.value
            ends = outcome.expires_ms if exists else 0
            return [shown, outcome.version, ends, epoch, acked, (), exists]

    async def _glance(self, key: bytes, deadline: float) -> Glance | None:
        """What a majority shows; None when a round is needed."""
        topology = self._coordinator.topology
        partition = topology.partition(key)
        owners, skey = topology.owners[partition], ring.storage_key(partition, key)
        answer: asyncio.Future[bool] = self._loop.create_future()
        wait = GlanceWait(Glance(owners), answer)
        until = min(deadline, self._loop.time() + GLANCE_S)
        wait.bucket = self._deadlines.add(until, wait)
        for number in owners:
            if number != self._number:
                self._links[number].ask_peek(skey, wait, deadline=until)
        if self._number in owners:
            promised, record = self._acceptor.peek((skey,))
            wait.peeked(self._number, promised, record)
        return wait.glance if await answer else None

    # --- changing -----------------------------------------------------------------------

    def start(self, key: bytes, request: Request, timeout_ms: int, done: OnSettled) -> None:
        """Have a change done; `done` is told what it came to, or the error that stands for it.

        Raises as `Registers.start` does.
        """
        admission.check_key(key)
        coordinator = self._coordinator
        coordinator.admit_register()
        coordinator.counters.writes += 1
        coordinator.in_flight += 1

        def told(settled: Settled | None, error: errors.KVError | None) -> None:
            coordinator.in_flight -= 1
            if settled is not None:
                error = failure_of(settled[0], request)
            done(settled if error is None else None, error)

        try:
            self._registers.start(key, request, self._loop.time() + timeout_ms / 1000, told)
        except errors.KVError:
            coordinator.in_flight -= 1
            raise

    async def change(self, key: bytes, request: Request, timeout_ms: int) -> Settled:
        """As `start`, awaited. Raises what `done` would be told."""
        return await awaited(self.start, key, request, timeout_ms)

    async def retime(
        self, key: bytes, operation: OperationId, expires_ms: int, timeout_ms: int, *, first: bool
    ) -> tuple[Any, ...] | None:
        """Change the expiry; None when there is no such key."""
        request = Request(operation, first, "retime", (expires_ms, 0))
        settled = await self.change(key, request, timeout_ms)
        return self.receipt(settled) if settled[0].applied else None

    def receipt(self, settled: Settled) -> tuple[Any, ...]:
        """What a client learns about a put or a delete."""
        outcome, acked = settled
        existed = bool(outcome.flags & window.EXISTED)
        return messages.encode_receipt(
            outcome.version, self._coordinator.topology.epoch, tuple(acked), False, existed, 3
        )

    def changed(self, settled: Settled) -> tuple[Any, ...]:
        """What a client learns about a change by name."""
        return messages.encode_changed(settled[0], self._coordinator.topology.epoch, settled[1])

    # --- plain writes that met a register ------------------------------------------------

    def convert(self, write: WriteOperation) -> None:
        """Run a plain write as a change; its sink is told in the end."""
        self._spawn(self._convert(write))

    async def _convert(self, write: WriteOperation) -> None:
        record = write.record
        name, args = _change_of(record)
        request = Request(records.operation_of(record), False, name, args)
        try:
            if name is None:
                write.fail_with(await self._why_not_added(write))
                return
            outcome, acked = await self._registers.change(write.key, request, write.deadline)
            if (failure := failure_of(outcome, request)) is not None:
                raise failure
        except errors.KVError as error:
            # The plain record was sent, and may yet be adopted: nothing is definite any more.
            write.fail_with(errors.Unresolved(message=error.message) if error.definite else error)
            return
        owners = self._coordinator.topology.preference(write.key)
        decision = WriteDecision(owners, min(len(acked), len(owners)) or 1)
        for node in acked:
            decision.answer(node, int(Applied.APPLIED))
        decision.existed = bool(outcome.flags & window.EXISTED)
        decision.superseded = not outcome.applied
        write.settle(decision, outcome.version)

    async def _why_not_added(self, write: WriteOperation) -> errors.KVError:
        """What an addition to a counter comes to that met a register, or a promise of one, on its way.

        Refused when a majority holds a register made without it: what others took loses against that one.
        A register that took the addition over shows a later version than it has.
        """
        read = Waiting()
        left_ms = max(int((write.deadline - self._loop.time()) * 1000), 1)
        try:
            self._coordinator.read(
                read, 0, key=write.key, consistency=Consistency.QUORUM, r=None, timeout_ms=left_ms
            )
            found = (await read.read()).newest
        except errors.KVError as error:
            return errors.Unresolved(message=error.message)
        refused = errors.NeedsRegister()
        strong = found is not None and records.flags_of(found) & records.FLAG_STRONG
        if found is not None and strong and records.shown_version_of(found) < write.version:
            return refused
        return errors.Unresolved(message=refused.message)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        coordinator = self._coordinator
        coordinator.admit_register()
        coordinator.in_flight += 1
        try:
            yield
        finally:
            coordinator.in_flight -= 1


def failure_of(outcome: Outcome, request: Request) -> errors.KVError | None:
    """The error that an outcome stands for; None when it is a plain yes or no."""
    if not outcome.flags & (TOO_OLD | window.CANCELLED | BAD_TYPE):
        return None
    if outcome.flags & TOO_OLD:
        return errors.Forgotten(operation=request.operation.hex())
    if outcome.flags & BAD_TYPE:
        return errors.NotANumber(key="the key", found="something else")
    return errors.Cancelled(operation=request.operation.hex()) if request.name != "resolve" else None


def _change_of(record: bytes) -> tuple[Any, tuple[Any, ...]]:
    expires_ms = int(records.expires_of(record))
    if records.revision_of(record):
        return "retime", (expires_ms, int(records.version_of(record)))
    match records.kind_of(record):
        case Kind.VALUE:
            return "put", (records.payload_of(record), expires_ms)
        case Kind.TOMBSTONE:
            return "delete", ()
        case _:
            return None, ()


def _entry(record: bytes | None, epoch: int, answered: Iterable[NodeId], *, head: bool) -> list[Any]:
    if record is None:
        return [None, 0, 0, epoch, tuple(answered), (), False]
    version = records.shown_version_of(record)
    if records.kind_of(record) == Kind.TOMBSTONE:
        return [None, version, 0, epoch, tuple(answered), (), False]
    payload = None if head else records.readable_of(record)
    return [payload, version, records.expires_of(record), epoch, tuple(answered), (), True]
