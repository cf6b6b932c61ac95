"""Runs the reads and writes that clients bring to this node (DESIGN 5).

A write makes its version here, goes to all owners, and is answered when the level is met. A read
asks all owners; the newest record wins, and at quorum and above those behind are mended before
the answer.

Rules kept here:
- a request that cannot meet its level is refused before anything is sent (`unavailable`,
  definite); after the first byte has left, failure is unresolved;
- no version leaves this node before the log holds a ceiling above it, so that a restart with a
  clock gone back never issues it again;
- a version made here is above every version read here, so that who writes what it has read is not superseded;
- a node whose clock disagrees with the majority of its peers coordinates no writes; one that has just
  started waits for the first comparison, because a ceiling a day ahead would bind it for a day;
- touch and persist keep the version they read and take its next revision, so that a put that came in
  between wins everywhere, and they notice (`superseded`) and read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from kvstore import errors
from kvstore.core import quorum, reading, ring
from kvstore.core import record as records
from kvstore.core.reading import ReadDecision
from kvstore.core.skew import ClockGuard
from kvstore.core.topology import Topology
from kvstore.core.version import HybridClock
from kvstore.core.writing import WriteDecision
from kvstore.node.ceiling import Ceiling
from kvstore.node.deadlines import Deadlines
from kvstore.node.link import Link
from kvstore.node.metrics import Counters
from kvstore.node.operations import ReadOperation, ReadSink, WriteOperation, WriteSink
from kvstore.node.options import NodeOptions
from kvstore.node.replica import Replica
from kvstore.ports import Clock, Dice
from kvstore.types import Consistency, Kind, NodeId, OperationId

_ONE = 1


class Coordinator:
    """Turns requests into operations, and operations into messages."""

    def __init__(  # noqa: PLR0913  everything it uses, handed in by name
        self,
        *,
        number: NodeId,
        topology: Topology,
        replica: Replica,
        links: Mapping[NodeId, Link],
        versions_clock: HybridClock,
        ceiling: Ceiling,
        guard: ClockGuard,
        clock: Clock,
        deadlines: Deadlines,
        dice: Dice,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        options: NodeOptions,
    ) -> None:
        self._number = number
        self._replica = replica
        self._links = links
        self._versions = versions_clock
        self._ceiling = ceiling
        self._guard = guard
        self._clock = clock
        self._deadlines = deadlines
        self._dice = dice
        self._loop = loop
        self.counters = counters
        self._options = options
        self.topology = topology
        self.in_flight = 0
        self.on_register: Callable[[WriteOperation], None] = lambda write: write.fail_with(
            errors.NeedsRegister()
        )
        """Where a plain write goes that met a register."""
        self.compare_until = 0.0
        """Until then, by the monotonic clock, ours is not believed unless a peer's has been seen."""
        self.refusing: str = ""
        """Why requests are refused; empty when they are served."""

    # --- writing ------------------------------------------------------------------------

    def write(  # noqa: PLR0913  a write and its terms; an object for them would cost the hot path
        self,
        sink: WriteSink,
        tag: int,
        *,
        key: bytes,
        kind: Kind,
        payload: bytes,
        expires_ms: int,
        operation: OperationId,
        consistency: Consistency | None,
        w: int | None,
        timeout_ms: int,
        sync: bool,
        touches: bytes | None = None,
    ) -> None:
        """Begin a write; `sink` is told. Raises a Refused error when it cannot begin.

        `touches` is the record whose expiry changes: its version stays, its revision grows.
        """
        topology = self.topology
        partition = topology.partition(key)
        replicas = topology.owners[partition]
        needed = quorum.needed(consistency, w, len(replicas), operation="put")
        self._admit("put", replicas, needed)
        now_ms = self.trusted_now()
        if touches is None:
            version, revision = self._versions.next(now_ms), 0
        else:
            version, revision = records.version_of(touches), records.revision_of(touches) + 1
        flags = records.FLAG_COUNTER if kind is Kind.COUNTER else 0
        record = records.encode(
            version, expires_ms, kind, payload, operation=operation, flags=flags, revision=revision
        )
        self.in_flight += 1
        self.counters.writes += 1
        deadline = self._loop.time() + timeout_ms / 1000
        write = WriteOperation(
            sink, tag, WriteDecision(replicas, needed), version, self, key, record, deadline
        )
        write.wait_in(self._deadlines.add(deadline, write))
        skey = ring.storage_key(partition, key)
        if version <= self._ceiling.durable or touches is not None:
            self._send_write(write, replicas, skey, record, now_ms, deadline, sync)
        else:
            self._ceiling.when_above(
                version,
                now_ms,
                lambda ok: (
                    self._send_write(write, replicas, skey, record, now_ms, deadline, sync)
                    if ok
                    else write.expire()
                ),
            )
        self._ceiling.keep_ahead(now_ms)

    def _send_write(
        self,
        write: WriteOperation,
        replicas: tuple[NodeId, ...],
        skey: bytes,
        record: bytes,
        now_ms: int,
        deadline: float,
        sync: bool,
    ) -> None:
        links, own = self._links, self._number
        for number in replicas:
            if number == own:
                self._replica.write_local(skey, record, write, now_ms=now_ms, sync=sync)
            else:
                links[number].ask_write(skey, record, write, deadline=deadline, sync=sync)

    # --- reading ------------------------------------------------------------------------

    def read(
        self,
        sink: ReadSink,
        tag: int,
        *,
        key: bytes,
        consistency: Consistency | None,
        r: int | None,
        timeout_ms: int,
    ) -> ReadOperation:
        """Begin a read; `sink` is told. Raises a Refused error when it cannot begin."""
        topology = self.topology
        partition = topology.partition(key)
        replicas = topology.owners[partition]
        copies = len(replicas)
        needed = quorum.needed(consistency, r, copies, operation="get")
        self._admit("get", replicas, needed)
        self.counters.reads += 1
        holders = reading.holders_needed(needed, copies)
        read = self._begin_read(sink, tag, key, replicas, needed, holders, timeout_ms)
        self._ask_all(read, replicas, ring.storage_key(partition, key), timeout_ms)
        return read

    def read_here(
        self, key: bytes, consistency: Consistency | None, r: int | None
    ) -> tuple[bool, bytes | None]:
        """A read at `one` that this replica can answer alone and at once: `(True, record)`."""
        if r != _ONE and (r is not None or consistency is not Consistency.ONE):
            return False, None
        topology = self.topology
        partition = topology.partition(key)
        if self._number not in topology.owners[partition] or self.refusing:
            return False, None
        chance = self._options.read_repair_chance
        if chance and len(topology.owners[partition]) > 1 and self._dice.random() < chance:
            return False, None
        try:
            held = self._replica.read(ring.storage_key(partition, key))
        except errors.DamagedRecord:
            return False, None
        self.counters.reads += 1
        return True, held

    def _begin_read(
        self,
        sink: ReadSink,
        tag: int,
        key: bytes,
        replicas: tuple[NodeId, ...],
        needed: int,
        holders: int,
        timeout_ms: int,
    ) -> ReadOperation:
        self.in_flight += 1
        read = ReadOperation(
            sink, tag, key, ReadDecision(replicas, needed, holders), self._repair, self._read_ended
        )
        read.wait_in(self._deadlines.add(self._loop.time() + timeout_ms / 1000, read))
        return read

    def _ask_all(
        self, read: ReadOperation, replicas: tuple[NodeId, ...], skey: bytes, timeout_ms: int
    ) -> None:
        links, own = self._links, self._number
        deadline = self._loop.time() + timeout_ms / 1000
        for number in replicas:
            if number != own:
                links[number].ask_read(skey, read, deadline=deadline)
        # Last, so that a decision that falls at once has all the others asked already.
        if own in replicas:
            try:
                held = self._replica.read(skey)
            except errors.DamagedRecord:
                # Not raised: the others are asked, and so the sink is told once, by the read.
                self.counters.damaged_records += 1
                read.fail(own)
            else:
                read.answer_read(own, held)

    def _read_ended(self, newest: bytes | None) -> None:
        """A read is over: what its client writes next, through this node, comes after what it has seen."""
        self.in_flight -= 1
        if newest is not None:
            version = records.version_of(newest)
            if version > self._versions.last:
                self._versions.note(version, self._clock.wall_ms())

    def _repair(self, read: ReadOperation, behind: tuple[NodeId, ...]) -> None:
        """Send the newest record to replicas that answered with something older."""
        newest = read.newest
        assert newest is not None, "nothing cannot be newer than something"
        now_ms = self._clock.wall_ms()
        partition = self.topology.partition(read.key)
        skey = ring.storage_key(partition, read.key)
        deadline = self._loop.time() + self._options.timeout_ms / 1000
        self.counters.read_repairs += len(behind)
        for number in behind:
            if number == self._number:
                self._replica.write_local(skey, newest, read, now_ms=now_ms, sync=False, repair=True)
            else:
                self._links[number].ask_repair(skey, newest, read, deadline=deadline)

    # --- both ---------------------------------------------------------------------------

    def _admit(self, operation: str, replicas: tuple[NodeId, ...], needed: int) -> None:
        """Refuse now what cannot be done, while that is still definite."""
        self.admit_register()
        links, own = self._links, self._number
        alive = 0
        for number in replicas:
            if number == own or links[number].up:
                alive += 1
        if alive < needed:
            down = " ".join(self.topology.node(n).name for n in replicas if n != own and not links[n].up)
            raise errors.Unavailable(operation=operation, needed=needed, alive=alive, down=down)

    def trusted_now(self) -> int:
        """The wall clock, if the majority of the cluster agrees with it. Raises errors.ClockSkew."""
        now_ms, monotonic_s = self._clock.wall_ms(), self._clock.monotonic()
        self._guard.reading(now_ms, monotonic_s)
        off = self._guard.verdict()
        if off is not None:
            raise errors.ClockSkew(ahead_ms=off, maximum=self._options.drift_ms_max)
        if monotonic_s < self.compare_until:
            if not self._guard.knows_peers:
                raise errors.ClockUnknown
            self.compare_until = 0.0
        return now_ms

    def admit_register(self) -> None:
        """Refuse a linearizable call that this node cannot take now."""
        if self.refusing:
            raise errors.NotReady(reason=self.refusing)
        if self.in_flight >= self._options.in_flight_max:
            raise errors.Overloaded(
                what="requests in flight", maximum=self._options.in_flight_max, retry_after_ms=50
            )

    def ended(self) -> None:
        """An operation is over."""
        self.in_flight -= 1
