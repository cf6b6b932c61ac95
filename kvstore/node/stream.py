"""One accepted connection: frames in, frames out, and the limits on both.

Rules kept here:
- a connection that breaks the protocol gets one error frame, is closed with a logged reason,
  and touches nobody else;
- nothing may be waited for without end: hello within HELLO_TIMEOUT_MS, the second half of a
  frame likewise (`sweep`, called by the owner once a second);
- who does not read is not served: above OUTPUT_BYTES_PAUSE no further request of it is, and above
  OUTPUT_BYTES_MAX one that takes nothing at all is cut off. Size alone says nothing: many answers may
  be ready at once for one that reads well;
- frames made in one loop turn leave in one write.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, cast

from kvstore import errors, limits
from kvstore.node.turn import Turn
from kvstore.wire import codec
from kvstore.wire.session import Frame, Session

_TOO_MANY = errors.Overloaded(
    what="requests in flight on one connection",
    maximum=limits.IN_FLIGHT_PER_CONNECTION_MAX,
    retry_after_ms=10,
)


class Owner(Protocol):
    """Who accepted the connection."""

    def opened(self, stream: Stream) -> None:
        """Count it in, or refuse it."""
        ...

    def closed(self, stream: Stream, reason: str) -> None:
        """It is gone; `reason` is for the log, empty for an orderly end."""
        ...

    def request(self, stream: Stream, msgid: int, method: str, params: Any) -> None:
        """Serve one request. A raised KVError becomes the answer."""
        ...

    def bug(self, stream: Stream, method: str, error: Exception) -> None:
        """Serving raised what it never should."""
        ...


class Stream(asyncio.Protocol):
    """The server's end of one connection."""

    __slots__ = (
        "_held", "_loop", "_out", "_out_bytes", "_owner", "_packer", "_paused", "_reason", "_session",
        "_taken", "_taken_at", "_transport", "_turn", "_waiting_since", "_written", "greeted", "in_flight",
        "peername", "who",
    )  # fmt: skip

    def __init__(self, *, owner: Owner, turn: Turn, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._turn = turn
        self._loop = loop
        self._session = Session()
        self._packer = codec.Packer()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._written = 0
        self._taken = -1
        """Of what was written so many bytes had left when we last looked, at `_taken_at`."""
        self._taken_at = 0.0
        self._paused = False
        self._held: list[Frame] = []
        """Requests that wait until it reads."""
        self._reason = ""
        self._waiting_since: float | None = None
        self.greeted = False
        self.in_flight = 0
        self.peername = "?"
        self.who: Any = None
        """What hello told, for the owner."""

    # --- the transport calls ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: hello is awaited from now on."""
        transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but ancestry
        self._transport = transport
        transport.set_write_buffer_limits(high=limits.OUTPUT_BYTES_PAUSE)
        peer = transport.get_extra_info("peername")
        self.peername = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer)
        self._waiting_since = self._loop.time()
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        """Serve every whole frame in order."""
        try:
            frames = self._session.receive(data)
        except errors.ProtocolError as error:
            self.refuse(error)
            return
        if self._paused:
            self._held += frames
        else:
            self._serve_all(frames)
        if self.greeted and not self._session.mid_frame:
            self._waiting_since = None
        elif self._waiting_since is None or (self.greeted and frames):
            # A frame came to its end: what is waited for now is another one, however reads are cut.
            self._waiting_since = self._loop.time()

    def _serve_all(self, frames: list[Frame]) -> None:
        for at, frame in enumerate(frames):
            if self._transport is None or self._transport.is_closing():
                return
            if frame[0] == 0:
                self._serve(frame[1], frame[2], frame[3])
            elif frame[0] == 1:
                self.refuse(errors.Malformed(reason="a response where only requests are expected"))
                return
            if self._out_bytes > limits.OUTPUT_BYTES_PAUSE:
                self._flush()
                if self._paused:
                    self._held = frames[at + 1 :]
                    return

    def _serve(self, msgid: int, method: str, params: Any) -> None:
        self.in_flight += 1
        try:
            if self.in_flight > limits.IN_FLIGHT_PER_CONNECTION_MAX:
                self.fail(msgid, _TOO_MANY)
            elif self.greeted or method == "hello":
                self._owner.request(self, msgid, method, params)
            else:
                self.fail(msgid, errors.HelloRequired(method=method))
        except errors.KVError as error:
            self.fail(msgid, error)
        except Exception as error:  # noqa: BLE001  our mistake: it is logged, and nobody else is disturbed
            self._owner.bug(self, method, error)
            self.fail(msgid, errors.Unresolved(message="the node made a mistake; its log has the details"))

    def pause_writing(self) -> None:
        """It does not read: stop taking requests from it."""
        self._paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        self._paused = False
        held, self._held = self._held, []
        self._serve_all(held)
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            if self._waiting_since is not None and self.greeted:
                self._waiting_since = self._loop.time()  # the rest of a frame could not come
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner once."""
        self._transport = None
        self._out.clear()
        self._held.clear()
        self._owner.closed(self, self._reason or (str(exc) if exc else ""))

    # --- the owner calls ----------------------------------------------------------------

    def welcome(self) -> None:
        """Hello was good: from now on full-size frames are taken."""
        self.greeted = True
        self._waiting_since = None
        self._session.raise_limits()

    def respond(self, msgid: int, result: Any) -> None:
        """Answer one request."""
        self.in_flight -= 1
        self._send(self._packer.response(msgid, result))

    def fail(self, msgid: int, error: errors.KVError) -> None:
        """Answer one request with an error; a protocol error ends the connection."""
        self.in_flight -= 1
        self._send(self._packer.error_response(msgid, error))
        if isinstance(error, errors.ProtocolError):
            self._end(error)

    def refuse(self, error: errors.KVError) -> None:
        """Say why, then close. Request id 0: we do not know which one it was."""
        self._send(self._packer.error_response(0, error))
        self._end(error)

    def close(self, reason: str = "") -> None:
        """Send what is waiting, then close."""
        self._reason = self._reason or reason
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def sweep(self, now: float) -> None:
        """End it when hello, the rest of a frame, or its reading has been awaited for too long."""
        since = self._waiting_since
        if self._paused:
            if self._transport is not None and not self._transport.is_closing():
                self._cut_off_if_stuck(self._transport)
        elif since is not None and now - since > limits.HELLO_TIMEOUT_MS / 1000:
            self.close("no hello, or half a message, for too long")

    def _end(self, error: errors.KVError) -> None:
        self.close(f"{error.name}: {error.message}")

    def _send(self, frame: bytes) -> None:
        if self._transport is None:
            return
        if not self._out:
            self._turn.mark(self._flush)
        self._out.append(frame)
        self._out_bytes += len(frame)

    def _flush(self) -> None:
        if not self._out:
            return
        transport, out = self._transport, self._out
        self._written += self._out_bytes
        self._out = []
        self._out_bytes = 0
        if transport is None or transport.is_closing():
            return
        transport.write(out[0] if len(out) == 1 else b"".join(out))
        if transport.get_write_buffer_size() > limits.OUTPUT_BYTES_MAX:
            self._cut_off_if_stuck(transport)

    def _cut_off_if_stuck(self, transport: asyncio.Transport) -> None:
        unsent = transport.get_write_buffer_size()
        taken, now = self._written - unsent, self._loop.time()
        if taken > self._taken:
            self._taken, self._taken_at = taken, now
        stuck = unsent > limits.OUTPUT_BYTES_MAX and now - self._taken_at > limits.OUTPUT_STALL_MS / 1000
        if stuck or unsent > limits.OUTPUT_BYTES_CEILING:
            self._reason = "does not read its answers"
            transport.abort()
