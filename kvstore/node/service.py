"""Serves the clients: every method of docs/protocol.md, from decoded request to encoded answer.

Single reads and writes are answered by callbacks (`ClientStream` is their sink); what takes several
steps (touch, scan) is linear code in `kvstore.node.verbs`, what is many operations in `kvstore.node.batches`.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Any

from kvstore import errors
from kvstore.core import admission, hashing
from kvstore.node.batches import Batches
from kvstore.node.client_stream import HEAD, ClientStream, entry
from kvstore.node.clocks import clocks, steady_ms
from kvstore.node.coordinator import Coordinator
from kvstore.node.metrics import Counters
from kvstore.node.options import NodeOptions
from kvstore.node.stream import Stream
from kvstore.node.turn import Turn
from kvstore.node.verbs import Verbs
from kvstore.ports import Clock
from kvstore.types import Consistency, Durability, Kind
from kvstore.wire import messages

_ALWAYS = Durability.ALWAYS
_LINEARIZABLE = Consistency.LINEARIZABLE


_DEADLINE_AT = {
    "put": 4,
    "get": 2,
    "delete": 3,
    "touch": 3,
    "persist": 3,
    "get_many": 2,
    "put_many": 3,
    "delete_many": 3,
    "scan": 2,
    "change": 5,
    "change_many": 2,
    "counter_get": 2,
    "counter_add": 7,
}
"""Where in its params a request may name the instant, on this node's steady clock, after which it is void."""


class Service:
    """The owner of the connections that clients open to us."""

    def __init__(  # noqa: PLR0913  everything it uses, handed in by name
        self,
        *,
        coordinator: Coordinator,
        verbs: Verbs,
        batches: Batches,
        greeting: Callable[[], dict[str, Any]],
        status: Callable[[], dict[str, Any]],
        clock: Clock,
        turn: Turn,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        options: NodeOptions,
        log: Any,
    ) -> None:
        self._coordinator = coordinator
        self._verbs = verbs
        self._greeting = greeting
        self._status = status
        self._clock = clock
        self._turn = turn
        self._loop = loop
        self._counters = counters
        self._options = options
        self._log = log
        self.streams: dict[int, ClientStream] = {}
        self._methods: dict[str, Callable[[ClientStream, int, Any], None]] = {
            "put": self._put,
            "get": self._get,
            "delete": self._delete,
            "touch": self._touch,
            "persist": self._persist,
            "get_many": lambda s, msgid, params: batches.get_many(s, msgid, messages.decode_get_many(params)),
            "put_many": lambda s, msgid, params: batches.put_many(s, msgid, messages.decode_put_many(params)),
            "delete_many": lambda s, msgid, params: batches.delete_many(
                s, msgid, messages.decode_delete_many(params)
            ),
            "scan": self._scan,
            "counter_get": lambda s, msgid, params: verbs.counter(s, msgid, messages.decode_get(params)),
            "counter_add": lambda s, msgid, params: verbs.counter_add(
                s, msgid, messages.decode_counter_add(params)
            ),
            "change": lambda s, msgid, params: verbs.change(s, msgid, messages.decode_change(params)),
            "change_many": lambda s, msgid, params: batches.change_many(
                s, msgid, messages.decode_change_many(params)
            ),
            "locate": self._locate,
            "ping": self._ping,
            "topology": self._topology,
            "status": self._describe,
            "hello": self._hello,
        }

    # --- connections --------------------------------------------------------------------

    def protocol(self) -> ClientStream:
        """For `create_server`."""
        return ClientStream(
            owner=self,
            turn=self._turn,
            loop=self._loop,
            counters=self._counters,
            coordinator=self._coordinator,
        )

    def opened(self, stream: Stream) -> None:
        """Count it in, or show it out when we are full."""
        assert isinstance(stream, ClientStream)
        self.streams[id(stream)] = stream
        if len(self.streams) > self._options.connections_max:
            self._counters.connections_refused += 1
            stream.refuse(
                errors.Overloaded(
                    what="connections", maximum=self._options.connections_max, retry_after_ms=1_000
                )
            )

    def closed(self, stream: Stream, reason: str) -> None:
        """Forget it; a broken protocol is worth a line."""
        self.streams.pop(id(stream), None)
        if reason:
            self._counters.protocol_errors += 1
            self._log.warning("client_connection_closed", client=stream.peername, reason=reason)

    def request(self, stream: Stream, msgid: int, method: str, params: Any) -> None:
        """Serve one."""
        assert isinstance(stream, ClientStream)
        serve = self._methods.get(method)
        if serve is None:
            raise errors.UnknownMethod(method=method)
        self._counters.requests += 1
        at = _DEADLINE_AT.get(method)
        if at is not None and len(params) > at:
            # It waited in a socket, or with us while we stood still, until nobody waits for it. Its client
            # has tried elsewhere; doing it now would bring back what has since been overwritten or deleted.
            void_after = params[at]
            if type(void_after) is int and (late_ms := steady_ms(self._clock) - void_after) > 0:
                self._counters.deadline_drops += 1
                raise errors.TooLate(late_ms=late_ms)
        serve(stream, msgid, params)

    def bug(self, stream: Stream, method: str, error: Exception) -> None:
        """A request met a mistake of ours; the log gets the traceback."""
        self._log.error("bug", method=method, client=stream.peername, exc_info=error)

    # --- single reads and writes: callbacks only ----------------------------------------

    def _put(self, stream: ClientStream, msgid: int, params: Any) -> None:
        put = messages.decode_put(params)
        admission.check_key(put.key)
        admission.check_value(put.value, self._options.value_bytes_max)
        options = put.options
        if options.consistency is _LINEARIZABLE:
            self._verbs.put_linear(stream, msgid, put)
            return
        self._coordinator.write(
            stream,
            msgid,
            key=put.key,
            kind=Kind.VALUE,
            payload=put.value,
            expires_ms=self._verbs.expires(options) if options.ttl_ms or options.expires_ms else 0,
            operation=put.operation,
            consistency=options.consistency,
            w=options.w,
            timeout_ms=options.timeout_ms or self._options.timeout_ms,
            sync=options.durability is _ALWAYS,
        )

    def _delete(self, stream: ClientStream, msgid: int, params: Any) -> None:
        delete = messages.decode_delete(params)
        admission.check_key(delete.key)
        options = delete.options
        if options.consistency is _LINEARIZABLE:
            self._verbs.delete_linear(stream, msgid, delete)
            return
        self._coordinator.write(
            stream,
            msgid,
            key=delete.key,
            kind=Kind.TOMBSTONE,
            payload=b"",
            expires_ms=0,
            operation=delete.operation,
            consistency=options.consistency,
            w=options.w,
            timeout_ms=options.timeout_ms or self._options.timeout_ms,
            sync=options.durability is _ALWAYS,
        )

    def _get(self, stream: ClientStream, msgid: int, params: Any) -> None:
        get = messages.decode_get(params)
        admission.check_key(get.key)
        options = get.options
        if options.consistency is _LINEARIZABLE:
            self._verbs.get_linear(stream, msgid, get)
            return
        here, record = self._coordinator.read_here(get.key, options.consistency, options.r)
        if here:
            number = self._verbs.number
            now = self._coordinator.trusted_now
            stream.respond(msgid, entry(record, now, stream.epoch, (number,), (), head=options.head))
            return
        self._coordinator.read(
            stream,
            msgid * 2 + (HEAD if options.head else 0),
            key=get.key,
            consistency=options.consistency,
            r=options.r,
            timeout_ms=options.timeout_ms or self._options.timeout_ms,
        )

    # --- several steps ------------------------------------------------------------------

    def _touch(self, stream: ClientStream, msgid: int, params: Any) -> None:
        touch = messages.decode_touch(params)
        admission.check_key(touch.key)
        expires_ms = self._verbs.expires(touch.options)
        self._verbs.start(stream, msgid, self._verbs.retime(touch, expires_ms))

    def _persist(self, stream: ClientStream, msgid: int, params: Any) -> None:
        persist = messages.decode_persist(params)
        admission.check_key(persist.key)
        self._verbs.start(stream, msgid, self._verbs.retime(persist, 0))

    def _scan(self, stream: ClientStream, msgid: int, params: Any) -> None:
        self._verbs.start(stream, msgid, self._verbs.scan(messages.decode_scan(params)))

    # --- about the node -----------------------------------------------------------------

    def _hello(self, stream: ClientStream, msgid: int, params: Any) -> None:
        hello = messages.decode_hello(params)
        topology = self._coordinator.topology
        if hello.cluster and hello.cluster != topology.cluster_id:
            raise errors.WrongCluster(expected=topology.cluster_id, got=hello.cluster)
        wanted = self._options.client_token
        if wanted and not hmac.compare_digest((hello.token or "").encode(), wanted.encode()):
            raise errors.AuthFailed
        stream.who = hello.agent
        stream.welcome()
        stream.respond(msgid, self._greeting())

    def _ping(self, stream: ClientStream, msgid: int, params: Any) -> None:
        del params
        stream.respond(msgid, clocks(self._clock))

    def _topology(self, stream: ClientStream, msgid: int, params: Any) -> None:
        del params
        stream.respond(msgid, self._coordinator.topology.to_plain())

    def _describe(self, stream: ClientStream, msgid: int, params: Any) -> None:
        del params
        stream.respond(msgid, self._status())

    def _locate(self, stream: ClientStream, msgid: int, params: Any) -> None:
        key = messages.decode_locate(params)
        admission.check_key(key)
        topology = self._coordinator.topology
        partition = topology.partition(key)
        stream.respond(
            msgid,
            {
                "slot": hashing.slot_of(key),
                "partition": partition,
                "owners": list(topology.owners_of(partition)),
            },
        )
