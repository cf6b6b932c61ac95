"""Calls with many keys: as many single operations as they have keys, answered together.

Each key has its own outcome; one that failed has its error in its place. An answer ends where it is full:
what is left out says so, and the client asks for it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kvstore import errors, limits
from kvstore.core import admission
from kvstore.core.changes import Request
from kvstore.node.client_stream import ClientStream
from kvstore.node.coordinator import Coordinator
from kvstore.node.linear import Linear
from kvstore.node.options import NodeOptions
from kvstore.node.verbs import Verbs, is_first
from kvstore.node.waiting import NO_ROOM, Gather
from kvstore.types import Consistency, Durability, Kind, OperationId
from kvstore.wire import messages, results


class _Reads:
    """Many linearizable reads; those for which the answer has no room are given up."""

    __slots__ = ("_head", "_linear", "_outcomes", "_room", "_tasks", "_timeout_ms")

    def __init__(self, linear: Linear, count: int, timeout_ms: int, *, head: bool) -> None:
        self._linear = linear
        self._timeout_ms = timeout_ms
        self._head = head
        self._outcomes: list[Any] = [NO_ROOM] * count
        self._room = limits.ANSWER_BYTES_MAX
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, keys: Sequence[bytes]) -> list[Any]:
        """The answer; a key that failed has its error in its place."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = [tasks.create_task(self._one(at, key)) for at, key in enumerate(keys)]
        self._tasks = []  # they know us: a cycle for the collector
        return self._outcomes

    async def _one(self, at: int, key: bytes) -> None:
        outcome: Any
        try:
            outcome = await self._linear.read(key, self._timeout_ms, head=self._head)
        except errors.KVError as error:
            outcome = results.encode_failure(error)
        else:
            if self._room < 0:
                return
            self._room -= len(outcome[0] or b"")
        self._outcomes[at] = outcome
        if self._room < 0:
            for task in self._tasks:
                task.cancel()


class Batches:
    """The calls with many keys."""

    def __init__(
        self, *, coordinator: Coordinator, linear: Linear, verbs: Verbs, options: NodeOptions
    ) -> None:
        self._coordinator = coordinator
        self._linear = linear
        self._verbs = verbs
        self._options = options

    def get_many(self, stream: ClientStream, msgid: int, request: messages.GetMany) -> None:
        """One read for each key."""
        options = request.options
        if options.consistency is Consistency.LINEARIZABLE:
            timeout_ms = self._verbs.timeout_ms(options)
            reads = _Reads(self._linear, len(request.keys), timeout_ms, head=options.head)
            self._verbs.start(stream, msgid, reads.run(request.keys))
            return
        gather = Gather(stream, msgid, len(request.keys), self._coordinator.trusted_now, head=options.head)
        for at, key in enumerate(request.keys):
            if gather.is_answered:
                return
            try:
                admission.check_key(key)
                read = self._coordinator.read(
                    gather,
                    at,
                    key=key,
                    consistency=options.consistency,
                    r=options.r,
                    timeout_ms=self._verbs.timeout_ms(options),
                )
                gather.reading(read)
            except errors.KVError as error:
                gather.read_failed(at, error)

    def put_many(self, stream: ClientStream, msgid: int, request: messages.PutMany) -> None:
        """One write for each pair."""
        options = request.options
        expires_ms = self._verbs.expires(options) if options.ttl_ms or options.expires_ms else 0
        gather = Gather(stream, msgid, len(request.items), self._coordinator.trusted_now, head=False)
        for at, (key, value) in enumerate(request.items):
            self._write_one(gather, at, key, Kind.VALUE, value, expires_ms, request.operation, options)

    def delete_many(self, stream: ClientStream, msgid: int, request: messages.DeleteMany) -> None:
        """One tombstone for each key."""
        options = request.options
        gather = Gather(stream, msgid, len(request.keys), self._coordinator.trusted_now, head=False)
        for at, key in enumerate(request.keys):
            self._write_one(gather, at, key, Kind.TOMBSTONE, b"", 0, request.operation, options)

    def change_many(self, stream: ClientStream, msgid: int, request: messages.ChangeMany) -> None:
        """One change for each register."""
        options = request.options
        timeout_ms = self._verbs.timeout_ms(options)
        gather = Gather(stream, msgid, len(request.changes), self._coordinator.trusted_now, head=False)
        for at, change in enumerate(request.changes):
            try:
                asked = self._verbs.request_of(change, options)
                done = gather.settling(at, self._linear.changed)
                self._linear.start(change.key, asked, timeout_ms, done)
            except errors.KVError as error:
                gather.write_failed(at, error)

    def _write_one(
        self,
        gather: Gather,
        at: int,
        key: bytes,
        kind: Kind,
        value: bytes,
        expires_ms: int,
        operation: OperationId,
        options: messages.Options,
    ) -> None:
        try:
            admission.check_key(key)
            admission.check_value(value, self._options.value_bytes_max)
            if options.consistency is Consistency.LINEARIZABLE:
                what = ("put", (value, expires_ms)) if kind is Kind.VALUE else ("delete", ())
                done = gather.settling(at, self._linear.receipt)
                change = Request(operation, is_first(options), *what)
                self._linear.start(key, change, self._verbs.timeout_ms(options), done)
                return
            self._coordinator.write(
                gather,
                at,
                key=key,
                kind=kind,
                payload=value,
                expires_ms=expires_ms,
                operation=operation,
                consistency=options.consistency,
                w=options.w,
                timeout_ms=self._verbs.timeout_ms(options),
                sync=options.durability is Durability.ALWAYS,
            )
        except errors.KVError as error:
            gather.write_failed(at, error)
