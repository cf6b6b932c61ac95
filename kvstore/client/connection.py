"""One connection to one node: requests out, answers matched by id.

Rules kept here:
- frames made in one loop turn leave in one write;
- an answer goes to who asked, or, if that one has given up, to nobody: a cancelled call leaves the
  connection clean, because answers are matched by id and never by order;
- every request names the instant on the *node's* clock after which it is void, so that one that was held up
  on the way does nothing when nobody waits for it any more; the offset of that clock is learned at hello and
  again twice a minute, and is as good as half a round trip;
- a connection that breaks fails everything unanswered as ConnectionLost (indefinite).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from kvstore import errors, limits
from kvstore.wire import codec, messages
from kvstore.wire.session import Session

OnReply = Callable[[Any, Any], None]
"""`on_reply(error, result)`: error is None, a wire error array, or a KVError of our own."""

COMPARE_EVERY_S = 30.0
AGENT = "kvstore-python/0.1.0"


class Connection(asyncio.Protocol):
    """Made by `Connection.open`."""

    def __init__(self, address: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._session = Session(frame_bytes_max=limits.FRAME_BYTES_MAX)
        self._packer = codec.Packer()
        self._pending: dict[int, OnReply] = {}
        self._next_id = 0
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._refusal: errors.KVError | None = None
        self._ahead_s = 0.0
        """The node's wall clock minus our loop's time."""
        self._compared_at = 0.0
        self.address = address
        """`host:port`."""
        self.hello: Mapping[str, Any] = {}
        """What the node said of itself: cluster, node, name, epoch, limits."""
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
        """Connect and say hello. Raises errors.CannotConnect, AuthFailed, WrongCluster, ProtocolMismatch."""
        loop = asyncio.get_running_loop()
        host, _, port = address.rpartition(":")
        connection = cls(address, loop)
        try:
            async with asyncio.timeout(timeout):
                await loop.create_connection(
                    lambda: connection, host.strip("[]"), int(port), local_addr=local_addr
                )
                asked_at = loop.time()
                connection.hello = await connection.call("hello", [_hello(token, cluster)])
                connection._compare(connection.hello.get("wall_ms"), asked_at)
        except TimeoutError:
            connection.close()
            raise errors.CannotConnect(address=address, reason=f"no answer within {timeout:g} s") from None
        except OSError as error:
            connection.close()
            reason = "refused" if isinstance(error, ConnectionRefusedError) else error.strerror or str(error)
            raise errors.CannotConnect(address=address, reason=reason) from None
        except errors.Unresolved as error:
            connection.close()
            raise errors.CannotConnect(address=address, reason=error.message) from None
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def node(self) -> int:
        """The number of the node at the other end."""
        return int(self.hello.get("node", 0))

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def in_flight(self) -> int:
        """Requests not answered yet."""
        return len(self._pending)

    def void_after(self, seconds: float) -> int:
        """The instant `seconds` from now on the node's clock, in milliseconds since 1970."""
        now = self._loop.time()
        if now - self._compared_at > COMPARE_EVERY_S:
            self.compare_clocks()
        return int((now + seconds + self._ahead_s) * 1000)

    def compare_clocks(self) -> None:
        """Learn the node's clock again; nobody waits for it."""
        asked_at = self._compared_at = self._loop.time()

        def replied(error: Any, result: Any) -> None:
            if error is None:
                self._compare(result, asked_at)

        self.send("ping", (), replied)

    def _compare(self, wall_ms: Any, asked_at: float) -> None:
        now = self._loop.time()
        self._compared_at = now
        if type(wall_ms) is int:
            self._ahead_s = wall_ms / 1000 - (asked_at + now) / 2

    def send(self, method: str, params: Sequence[Any], on_reply: OnReply) -> int:
        """Ask; `on_reply` is called once, unless `forget` is called with the returned id."""
        if self._transport is None:
            on_reply(errors.CannotConnect(address=self.address, reason="the connection is closed"), None)
            return 0
        if len(self._pending) >= limits.IN_FLIGHT_PER_CONNECTION_MAX:
            on_reply(
                errors.Overloaded(
                    what="requests in flight on one connection",
                    maximum=limits.IN_FLIGHT_PER_CONNECTION_MAX,
                    retry_after_ms=10,
                ),
                None,
            )
            return 0
        self._next_id = msgid = self._next_id % 0xFFFFFFFF + 1
        self._pending[msgid] = on_reply
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(self._packer.request(msgid, method, params))
        return msgid

    def forget(self, msgid: int) -> None:
        """Nobody waits for this answer any more."""
        self._pending.pop(msgid, None)

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        """Ask and wait. Raises what the node answers, or ConnectionLost. The caller brings the deadline."""
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
            self._pending.pop(msgid, None)

    def close(self) -> None:
        """End it; what is unanswered fails."""
        if self._transport is not None:
            self._flush()
            self._transport.close()
        self._lost("closed by this client")

    # --- the transport calls ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready for hello."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but ancestry

    def data_received(self, data: bytes) -> None:
        """Hand each answer to who asked."""
        try:
            frames = self._session.receive(data)
        except errors.ProtocolError as error:
            self._refusal = error
            self.close()
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

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is unanswered."""
        self._lost(str(exc) if exc else "the node closed it")

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _lost(self, reason: str) -> None:
        self._transport = None
        pending, self._pending = self._pending, {}
        refusal = self._refusal
        error: errors.KVError = (
            refusal
            if isinstance(refusal, errors.NotNow)
            else errors.ConnectionLost(address=self.address, reason=refusal.message if refusal else reason)
        )
        for on_reply in pending.values():
            on_reply(error, None)
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost(self)


def _hello(token: str, cluster: str) -> dict[str, Any]:
    hello: dict[str, Any] = {"protocol": [messages.PROTOCOL, messages.PROTOCOL], "agent": AGENT}
    if token:
        hello["token"] = token
    if cluster:
        hello["cluster"] = cluster
    return hello
