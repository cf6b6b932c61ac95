"""What a client asks for in one call and the node does in several steps.

- touch and persist read at quorum, then write the same value as the next revision of the version they
  read; superseded means somebody wrote in between, and they read again.
- scan walks the ring partition by partition, asks as many owners as the level needs, and merges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kvstore import errors
from kvstore.core import admission, counters, window
from kvstore.core import record as records
from kvstore.core.changes import Request
from kvstore.node.client_stream import ClientStream, receipt
from kvstore.node.coordinator import Coordinator
from kvstore.node.linear import Linear
from kvstore.node.options import NodeOptions
from kvstore.node.proposers import Settled
from kvstore.node.scanning import Scanner
from kvstore.node.waiting import Waiting
from kvstore.types import Consistency, Durability, Kind, NodeId
from kvstore.wire import messages


def is_first(options: messages.Options) -> bool:
    """Whether no earlier try can have been applied."""
    return options.attempt is None or options.attempt <= 1


Spawn = Callable[[Coroutine[Any, Any, None]], None]


class Verbs:
    """The steps behind the calls."""

    def __init__(
        self,
        *,
        number: NodeId,
        coordinator: Coordinator,
        scanner: Scanner,
        linear: Linear,
        spawn: Spawn,
        options: NodeOptions,
        bug: Callable[[str, Exception], None],
    ) -> None:
        self.number = number
        self._coordinator = coordinator
        self._scanner = scanner
        self._linear = linear
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
        """The instant a ttl or an absolute expiry means, now.

        Raises errors.ClockSkew: another node may store it, and believes it.
        """
        return admission.expires_from(
            ttl_ms=options.ttl_ms, expires_ms=options.expires_ms, now_ms=self._coordinator.trusted_now()
        )

    def timeout_ms(self, options: messages.Options) -> int:
        """How long a call may take."""
        return options.timeout_ms or self._options.timeout_ms

    def request_of(self, change: messages.Change, tried: messages.Options) -> Request:
        """A client's change as rounds have it; `tried` says which try it is.

        Raises errors.BadRequest, and as `expires` does.
        """
        for value in change.args:
            if isinstance(value, bytes):
                admission.check_value(value, self._options.value_bytes_max)
        options = change.options
        expires_ms = self.expires(options) if options.ttl_ms or options.expires_ms else 0
        first = is_first(tried) and change.name != "resolve"
        return Request(change.operation, first, change.name, change.full_args(int(expires_ms)))

    # --- touch and persist --------------------------------------------------------------

    async def retime(self, request: messages.Retime, expires_ms: int) -> tuple[Any, ...] | None:
        """Give a live key another expiry (0: none). None when there is no such key.

        Raises errors.Unsupported for a counter: copies that merge cannot agree on an end that comes nearer.
        """
        options = request.options
        if options.consistency is Consistency.LINEARIZABLE:
            return await self._retime_linear(request, expires_ms, self.timeout_ms(options))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_ms(options) / 1000
        while True:
            left_ms = int((deadline - loop.time()) * 1000)
            if left_ms <= 0:
                raise errors.DeadlineExceeded(timeout_ms=self.timeout_ms(options))
            read = Waiting()
            # At quorum whatever the write's level: a touch must not bring an older value forward.
            self._coordinator.read(
                read, 0, key=request.key, consistency=Consistency.QUORUM, r=None, timeout_ms=left_ms
            )
            found = (await read.read()).newest
            if not records.is_live(found, self._coordinator.trusted_now()):
                return None
            assert found is not None
            if records.flags_of(found) & records.FLAG_STRONG:
                return await self._retime_strong(request, expires_ms, deadline)
            if records.flags_of(found) & records.FLAG_COUNTER:
                raise errors.Unsupported(what="an expiry of a counter (delete it when its time has come)")
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

    async def _retime_strong(
        self, request: messages.Retime, expires_ms: int, deadline: float
    ) -> tuple[Any, ...] | None:
        """Change the expiry of what has become a register, perhaps while it was touched.

        The plain write may have been run as a change of the version it had read: "no" then stands under its
        id. That does not say that there is no such key, so the question is put once more under another id.
        """
        loop = asyncio.get_running_loop()
        told = None
        for operation in (request.operation, window.second_name(request.operation)):
            if told is None:
                left_ms = max(int((deadline - loop.time()) * 1000), 1)
                named = request._replace(operation=operation)
                told = await self._retime_linear(named, expires_ms, left_ms)
        return told

    # --- registers ----------------------------------------------------------------------

    async def _retime_linear(
        self, request: messages.Retime, expires_ms: int, timeout_ms: int
    ) -> tuple[Any, ...] | None:
        return await self._linear.retime(
            request.key, request.operation, expires_ms, timeout_ms, first=is_first(request.options)
        )

    def put_linear(self, stream: ClientStream, msgid: int, put: messages.Put) -> None:
        """Store a value in a round."""
        options = put.options
        admission.check_value(put.value, self._options.value_bytes_max)
        expires_ms = self.expires(options) if options.ttl_ms or options.expires_ms else 0
        request = Request(put.operation, is_first(options), "put", (put.value, expires_ms))
        self._change(stream, msgid, put.key, request, options, self._linear.receipt)

    def delete_linear(self, stream: ClientStream, msgid: int, delete: messages.Retime) -> None:
        """Delete in a round."""
        request = Request(delete.operation, is_first(delete.options), "delete", ())
        self._change(stream, msgid, delete.key, request, delete.options, self._linear.receipt)

    def get_linear(self, stream: ClientStream, msgid: int, get: messages.Get) -> None:
        """Read what is certain now."""
        options = get.options
        self.start(stream, msgid, self._linear.read(get.key, self.timeout_ms(options), head=options.head))

    def change(self, stream: ClientStream, msgid: int, change: messages.Change) -> None:
        """Change a register by name."""
        options = change.options
        request = self.request_of(change, options)
        self._change(stream, msgid, change.key, request, options, self._linear.changed)

    def _change(
        self,
        stream: ClientStream,
        msgid: int,
        key: bytes,
        request: Request,
        options: messages.Options,
        shape: Callable[[Settled], tuple[Any, ...]],
    ) -> None:
        def done(settled: Settled | None, error: errors.KVError | None) -> None:
            if settled is not None:
                stream.respond(msgid, shape(settled))
            elif error is not None:
                stream.fail(msgid, error)

        self._linear.start(key, request, self.timeout_ms(options), done)

    # --- counters -----------------------------------------------------------------------

    def counter_add(self, stream: ClientStream, msgid: int, add: messages.CounterAdd) -> None:
        """One adder's totals, as a write that is merged."""
        admission.check_key(add.key)
        options = add.options
        if options.consistency is Consistency.LINEARIZABLE:
            raise errors.Unsupported(what="counter_add at linearizable (use incr)")
        self._coordinator.write(
            stream,
            msgid,
            key=add.key,
            kind=Kind.COUNTER,
            payload=counters.encode(add.generation, {add.part: (add.plus, add.minus)}),
            expires_ms=0,
            operation=add.operation,
            consistency=options.consistency,
            w=options.w,
            timeout_ms=self.timeout_ms(options),
            sync=options.durability is Durability.ALWAYS,
        )

    def counter(self, stream: ClientStream, msgid: int, get: messages.Get) -> None:
        """What a counter says, and after which version a part must begin."""
        admission.check_key(get.key)
        self.start(stream, msgid, self._counter(get))

    async def _counter(self, get: messages.Get) -> list[Any]:
        options, read = get.options, Waiting()
        level = options.consistency
        if level is Consistency.LINEARIZABLE:
            raise errors.Unsupported(what="counter at linearizable (use incr, and get)")
        self._coordinator.read(
            read, 0, key=get.key, consistency=level, r=options.r, timeout_ms=self.timeout_ms(options)
        )
        found = (await read.read()).newest
        if found is None:
            return messages.encode_counter_state(messages.CounterState(0, 0, False))
        if records.flags_of(found) & records.FLAG_STRONG:
            raise errors.NeedsRegister
        if not records.flags_of(found) & records.FLAG_COUNTER:
            if records.is_live(found, self._coordinator.trusted_now()):
                raise errors.NotACounter
            state = messages.CounterState(records.version_of(found), 0, False)
            return messages.encode_counter_state(state)
        payload = records.payload_of(found)
        state = messages.CounterState(counters.generation_of(payload), counters.total_of(payload), True)
        return messages.encode_counter_state(state)

    # --- scan ---------------------------------------------------------------------------

    async def scan(self, request: messages.Scan) -> list[Any]:
        """One page of live entries in ring order, and the cursor to go on from."""
        return await self._scanner.page(self._coordinator.topology, request, self.timeout_ms(request.options))
