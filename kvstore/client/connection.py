"""One connection to one node: requests out, answers matched by id.

Rules kept here:
- frames made in one loop turn leave in one write; a turn that makes very many writes early;
- an answer goes to who asked, or, if that one has given up, to nobody: a cancelled call leaves the
  connection clean, because answers are matched by id and never by order;
- every request names the instant on the *node's* steady clock after which it is void, so that one that was
  held up on the way does nothing when nobody waits for it any more, wherever wall clocks are set meanwhile;
  the offset of that clock is learned at hello and again twice a minute, to half a round trip;
- nothing queues without bound: a call waits for room (in flight, and in the transport's buffer); the
  low-level `send` refuses instead;
- a connection that breaks fails what left it as ConnectionLost (indefinite) and what never did as
  CannotConnect (definite).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from kvstore import errors, limits
from kvstore.client.room import Room
from kvstore.core.node_clock import NodeClock
from kvstore.wire import codec, messages, results
from kvstore.wire.session import Session

OnReply = Callable[[Any, Any], None]
"""`on_reply(error, result)`: error is None, a wire error array, or a KVError of our own."""

AGENT = "kvstore-python/0.1.0"
_ID_MAX = 0xFFFFFFFF
_ROOM_AGAIN = limits.CLIENT_IN_FLIGHT_MAX // 2
"""Who waits for room is woken at half, not at each answer: else all would be woken for one place."""


class Connection(asyncio.Protocol):
    """Made by `Connection.open`."""

    def __init__(self, address: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._session = Session(frame_bytes_max=limits.FRAME_BYTES_MAX)
        self._packer = codec.Packer()
        self._pending: dict[int, OnReply] = {}
        self._next_id = 0
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._refusal: errors.KVError | None = None
        self._clock = NodeClock()
        self._paused = False
        self._room = Room()
        self.address = address
        """`host:port`."""
        self.hello: Mapping[str, Any] = {}
        """What the node said of itself: cluster, node, name, epoch, limits."""
        self.node = 0
        """The number of the node at the other end."""
        self.received = 0
        """How often bytes came in: a connection on which nothing does is a dead one."""
        self.silent_since: float | None = None
        """Since when, by the loop, something is asked and nothing at all came in, whoever waits for it."""
        self.on_lost: Callable[[Connection], None] | None = None

    @classmethod
    async def open(
        cls,
        address: str,
        *,
        token: str = "",
        cluster: str = "",
        local_addr: tuple[str, int] | None = None,
        timeout: float = limits.HELLO_TIMEOUT_MS / 1000,
    ) -> Connection:
        """Connect and say hello. `timeout` in seconds.

        Raises errors.CannotConnect, AuthFailed, WrongCluster, ProtocolMismatch, Overloaded.
        """
        loop = asyncio.get_running_loop()
        host, _, port = address.rpartition(":")
        connection = cls(address, loop)
        hello = messages.encode_hello(messages.Hello(AGENT, cluster, token))
        try:
            async with asyncio.timeout(timeout):
                await loop.create_connection(
                    lambda: connection, host.strip("[]"), int(port), local_addr=local_addr
                )
                asked_at = loop.time()
                connection.hello = results.decode_greeting(await connection.call("hello", hello))
        except TimeoutError:
            connection.abort()
            raise errors.CannotConnect(address=address, reason=f"no answer within {timeout:g} s") from None
        except OSError as error:
            connection.abort()
            reason = "refused" if isinstance(error, ConnectionRefusedError) else error.strerror or str(error)
            raise errors.CannotConnect(address=address, reason=reason) from None
        except (errors.Unresolved, errors.Malformed) as error:
            connection.abort()
            raise errors.CannotConnect(address=address, reason=error.message) from None
        except BaseException:
            connection.abort()
            raise
        connection.node = connection.hello["node"]
        connection._clock.learn(connection.hello.get("steady_ms"), asked_at=asked_at, now=loop.time())
        return connection

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def void_after(self, seconds: float) -> int:
        """The instant `seconds` from now on the node's steady clock, in milliseconds."""
        now = self._loop.time()
        if self._clock.is_due(now):
            self.compare_clocks()
        return self._clock.instant_ms(now + seconds)

    def compare_clocks(self) -> None:
        """Learn the node's clock again; nobody waits for it."""
        loop, clock = self._loop, self._clock
        asked_at = loop.time()
        clock.comparing(asked_at)

        def replied(error: Any, result: Any) -> None:
            told = results.clocks_of(result) if error is None else None
            if told is not None:
                clock.learn(told[1], asked_at=asked_at, now=loop.time())

        self.send("ping", (), replied)

    def send(self, method: str, params: Sequence[Any], on_reply: OnReply) -> int:
        """Ask; `on_reply` is called once, unless `forget` is called with the returned id.

        What cannot be sent is refused at once, before this returns, with a definite error.
        """
        transport, pending = self._transport, self._pending
        if transport is None or transport.is_closing():
            on_reply(errors.CannotConnect(address=self.address, reason="the connection is closed"), None)
            return 0
        if len(pending) >= limits.IN_FLIGHT_PER_CONNECTION_MAX or (
            self._paused and transport.get_write_buffer_size() > limits.OUTPUT_BYTES_MAX
        ):
            on_reply(too_many(), None)
            return 0
        msgid = self._next_id % _ID_MAX + 1
        frame = self._packer.request(msgid, method, params)
        if len(frame) > limits.FRAME_BYTES_MAX:
            # The node would close the connection on everybody.
            on_reply(errors.FrameTooLarge(maximum=limits.FRAME_BYTES_MAX), None)
            return 0
        self._next_id = msgid
        pending[msgid] = on_reply
        if self.silent_since is None:
            self.silent_since = self._loop.time()
        if len(pending) >= limits.CLIENT_IN_FLIGHT_MAX:
            self._room.close()
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame)
        self._out_bytes += len(frame)
        if self._out_bytes > limits.OUTPUT_BYTES_PAUSE:
            self._flush()
        return msgid

    def forget(self, msgid: int) -> None:
        """Nobody waits for this answer any more."""
        if self._pending.pop(msgid, None) is not None and self._room.is_full:
            self._look_for_room()

    async def room(self) -> None:
        """Wait until a call may be sent."""
        await self._room.wait()

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        """Ask and wait. Raises what the node answers, or ConnectionLost. The caller brings the deadline."""
        if self._room.is_full:
            await self._room.wait()
        future: asyncio.Future[Any] = self._loop.create_future()

        def replied(error: Any, result: Any) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error if isinstance(error, errors.KVError) else errors.from_wire(error))

        msgid = self.send(method, params, replied)
        try:
            return await future
        finally:
            self.forget(msgid)

    def close(self) -> None:
        """Send what is waiting, then end it; what is unanswered fails."""
        if self._transport is not None:
            self._flush()
            self._transport.close()
        self._lost("closed by this client")

    def abort(self, reason: str = "closed by this client") -> None:
        """End it at once, whatever still waits to be sent."""
        if self._transport is not None:
            self._transport.abort()
        self._lost(reason)

    def give_up(self, reason: str) -> None:
        """The node does not answer: end it, without waiting for a node that does not read either."""
        if self._transport is not None:
            (self._transport.abort if self._paused else self._transport.close)()
        self._lost(reason)

    # --- the transport calls ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready for hello."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but ancestry
        self._transport.set_write_buffer_limits(high=limits.OUTPUT_BYTES_PAUSE)

    def data_received(self, data: bytes) -> None:
        """Hand each answer to who asked."""
        self.received += 1
        try:
            frames = self._session.receive(data)
        except errors.ProtocolError as error:
            self._refusal = self._refusal or error
            self.abort()
            return
        for frame in frames:
            if frame[0] != 1:
                continue
            on_reply = self._pending.pop(frame[1], None)
            if on_reply is not None:
                on_reply(frame[2], frame[3])
            elif frame[1] == 0 and frame[2] is not None:
                # Id 0 answers no request: the node says why it is closing the connection.
                self._refusal = errors.from_wire(frame[2])
        self.silent_since = self._loop.time() if self._pending else None
        if self._room.is_full:
            self._look_for_room()

    def pause_writing(self) -> None:
        """The node does not read as fast as we write: calls wait."""
        self._paused = True
        self._room.close()

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        self._look_for_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is unanswered."""
        self._lost(str(exc) if exc else "the node closed it")

    def _flush(self) -> None:
        out, transport = self._out, self._transport
        if not out or transport is None or transport.is_closing():
            return  # a closing transport would drop it: `_lost` then says that it never left
        self._out, self._out_bytes = [], 0
        transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _look_for_room(self) -> None:
        if not self._paused and len(self._pending) <= _ROOM_AGAIN:
            self._room.open()

    def _lost(self, reason: str) -> None:
        self._transport = None
        pending, self._pending = self._pending, {}
        out, self._out = self._out, []
        self._paused = False
        self._look_for_room()
        refusal = self._refusal
        error: errors.KVError = (
            refusal
            if isinstance(refusal, errors.NotNow)
            else errors.ConnectionLost(address=self.address, reason=refusal.message if refusal else reason)
        )
        unsent = {(self._next_id - 1 - back) % _ID_MAX + 1 for back in range(len(out))}
        never = errors.CannotConnect(address=self.address, reason=reason)
        for msgid, on_reply in pending.items():
            on_reply(never if msgid in unsent else error, None)
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost(self)


def too_many() -> errors.Overloaded:
    """What a caller gets for whom there is no room."""
    return errors.Overloaded(
        what="requests in flight on one connection",
        maximum=limits.IN_FLIGHT_PER_CONNECTION_MAX,
        retry_after_ms=10,
    )
