"""What a client asks for in one call and the node does in several steps.

- touch and persist read at quorum, then write the same value as the next revision of the version they
  read; superseded means somebody wrote in between, and they read again.
- get_many, put_many and delete_many are as many single operations as they have keys, answered
  together; each key has its own outcome.
- scan walks the ring partition by partition, asks as many owners as the level needs, and merges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kvstore import errors
from kvstore.core import admission
from kvstore.core import record as records
from kvstore.node.client_stream import ClientStream, receipt
from kvstore.node.coordinator import Coordinator
from kvstore.node.options import NodeOptions
from kvstore.node.scanning import Scanner
from kvstore.node.waiting import Gather, Waiting
from kvstore.ports import Clock
from kvstore.types import Consistency, Durability, Kind, NodeId, OperationId
from kvstore.wire import messages

Spawn = Callable[[Coroutine[Any, Any, None]], None]


class Verbs:
    """The steps behind the calls."""

    def __init__(
        self,
        *,
        number: NodeId,
        coordinator: Coordinator,
        scanner: Scanner,
        clock: Clock,
        spawn: Spawn,
        options: NodeOptions,
        bug: Callable[[str, Exception], None],
    ) -> None:
        self.number = number
        self._coordinator = coordinator
        self._scanner = scanner
        self._clock = clock
        self._spawn = spawn
        self._options = options
        self._bug = bug

    def start(self, stream: ClientStream, msgid: int, steps: Coroutine[Any, Any, Any]) -> None:
        """Run `steps` and answer with what they return or raise."""
        self._spawn(self._answer(stream, msgid, steps))

    async def _answer(self, stream: ClientStream, msgid: int, steps: Coroutine[Any, Any, Any]) -> None:
        try:
            result = await steps
        except errors.KVError as error:
            stream.fail(msgid, error)
        except Exception as error:  # noqa: BLE001  our mistake: the log has it, the node stays up
            self._bug(str(steps), error)
            stream.fail(msgid, errors.Unresolved(message="the node made a mistake; its log has the details"))
        else:
            stream.respond(msgid, result)

    def expires(self, options: messages.Options) -> int:
        """The instant a ttl or an absolute expiry means, now."""
        return admission.expires_from(
            ttl_ms=options.ttl_ms, expires_ms=options.expires_ms, now_ms=self._clock.wall_ms()
        )

    def _timeout_ms(self, options: messages.Options) -> int:
        return options.timeout_ms or self._options.timeout_ms

    # --- touch and persist --------------------------------------------------------------

    async def retime(self, request: messages.Retime, expires_ms: int) -> tuple[Any, ...] | None:
        """Give a live key another expiry (0: none). None when there is no such key."""
        options = request.options
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_ms(options) / 1000
        while True:
            left_ms = int((deadline - loop.time()) * 1000)
            if left_ms <= 0:
                raise errors.DeadlineExceeded(timeout_ms=self._timeout_ms(options))
            read = Waiting()
            # At quorum whatever the write's level: a touch must not bring an older value forward.
            self._coordinator.read(
                read, 0, key=request.key, consistency=Consistency.QUORUM, r=None, timeout_ms=left_ms
            )
            found = (await read.read()).newest
            if not records.is_live(found, self._coordinator.trusted_now()):
                return None
            assert found is not None
            write = Waiting()
            self._coordinator.write(
                write,
                0,
                key=request.key,
                kind=Kind(records.kind_of(found)),
                payload=records.payload_of(found),
                expires_ms=expires_ms,
                operation=request.operation,
                consistency=options.consistency,
                w=options.w,
                timeout_ms=left_ms,
                sync=options.durability is Durability.ALWAYS,
                touches=found,
            )
            written = await write.write()
            if not written.decision.superseded:
                return receipt(written, self._coordinator.topology.epoch)

    # --- batches ------------------------------------------------------------------------

    def get_many(self, stream: ClientStream, msgid: int, request: messages.GetMany) -> None:
        """One read for each key."""
        options = request.options
        gather = Gather(stream, msgid, len(request.keys), self._coordinator.trusted_now, head=options.head)
        for at, key in enumerate(request.keys):
            try:
                admission.check_key(key)
                self._coordinator.read(
                    gather,
                    at,
                    key=key,
                    consistency=options.consistency,
                    r=options.r,
                    timeout_ms=self._timeout_ms(options),
                )
            except errors.KVError as error:
                gather.read_failed(at, error)

    def put_many(self, stream: ClientStream, msgid: int, request: messages.PutMany) -> None:
        """One write for each pair."""
        options = request.options
        expires_ms = self.expires(options) if options.ttl_ms or options.expires_ms else 0
        gather = Gather(stream, msgid, len(request.items), self._coordinator.trusted_now, head=False)
        for at, (key, value) in enumerate(request.items):
            self._write_one(gather, at, key, Kind.VALUE, value, expires_ms, request.operation, options)

    def delete_many(self, stream: ClientStream, msgid: int, request: messages.DeleteMany) -> None:
        """One tombstone for each key."""
        gather = Gather(stream, msgid, len(request.keys), self._coordinator.trusted_now, head=False)
        for at, key in enumerate(request.keys):
            self._write_one(gather, at, key, Kind.TOMBSTONE, b"", 0, request.operation, request.options)

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
                timeout_ms=self._timeout_ms(options),
                sync=options.durability is Durability.ALWAYS,
            )
        except errors.KVError as error:
            gather.write_failed(at, error)

    # --- scan ---------------------------------------------------------------------------

    async def scan(self, request: messages.Scan) -> list[Any]:
        """One page of live entries in ring order, and the cursor to go on from."""
        return await self._scanner.page(
            self._coordinator.topology, request, self._timeout_ms(request.options)
        )
