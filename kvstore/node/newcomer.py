"""Serves the client port of a node that has no cluster yet: it says who it is, and nothing else.

Nodes that form a cluster find each other by these greetings; probes and `kv` learn that the node lives
and what it waits for.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Sequence
from typing import Any

from kvstore import errors
from kvstore.core.forming import FORMING, Newcomer, waits_for
from kvstore.node.clocks import clocks
from kvstore.node.options import NodeOptions
from kvstore.node.stream import Stream
from kvstore.node.turn import Turn
from kvstore.ports import Clock
from kvstore.wire import messages

_PROTOCOL = 1


class NewcomerService:
    """The owner of the connections to a node without a cluster."""

    def __init__(
        self, *, me: Newcomer, clock: Clock, loop: asyncio.AbstractEventLoop, options: NodeOptions, log: Any
    ) -> None:
        self.me = me
        """Ourselves as we now stand; the pledge changes once, when it is on the disk."""
        self.waits_for = "its seeds"
        self._clock = clock
        self._turn = Turn(loop)
        self._loop = loop
        self._options = options
        self._log = log
        self.streams: dict[int, Stream] = {}
        self._answers: dict[str, Callable[[Any], Any]] = {
            "hello": self._hello,
            "ping": lambda _params: clocks(self._clock),
            "status": lambda _params: self._status(),
        }

    def see(self, seen: Sequence[Newcomer], expected: int) -> None:
        """Take note of who is there; a change is worth a line."""
        said = waits_for(self.me, seen, expected)
        if said != self.waits_for:
            self._log.info("waiting", waits_for=said)
        self.waits_for = said

    def protocol(self) -> Stream:
        """For `create_server`."""
        return Stream(owner=self, turn=self._turn, loop=self._loop)

    def opened(self, stream: Stream) -> None:
        """Count it in, or show it out when we are full."""
        self.streams[id(stream)] = stream
        if len(self.streams) > self._options.connections_max:
            stream.refuse(
                errors.Overloaded(
                    what="connections", maximum=self._options.connections_max, retry_after_ms=1_000
                )
            )

    def closed(self, stream: Stream, reason: str) -> None:
        """Forget it."""
        del reason
        self.streams.pop(id(stream), None)

    def request(self, stream: Stream, msgid: int, method: str, params: Any) -> None:
        """Answer what a node without a cluster can answer."""
        answer = self._answers.get(method)
        if answer is None:
            raise errors.NotReady(reason=f"it has no cluster yet and waits for {self.waits_for}")
        result = answer(params)
        if method == "hello":
            stream.welcome()
        stream.respond(msgid, result)

    def bug(self, stream: Stream, method: str, error: Exception) -> None:
        """A request met a mistake of ours; the log gets the traceback."""
        self._log.error("bug", method=method, client=stream.peername, exc_info=error)

    def close(self) -> None:
        """Let everybody go."""
        for stream in list(self.streams.values()):
            stream.close()

    def _hello(self, params: Any) -> dict[str, Any]:
        hello = messages.decode_hello(params)
        wanted = self._options.client_token
        if wanted and not hmac.compare_digest((hello.token or "").encode(), wanted.encode()):
            raise errors.AuthFailed
        return {
            "protocol": _PROTOCOL,
            "cluster": "",
            "node": 0,
            "uuid": self.me.info.uuid,
            "name": self.me.info.name,
            "epoch": 0,
            "features": [],
            "wall_ms": self._clock.wall_ms(),
            FORMING: self.me.to_plain(),
        }

    def _status(self) -> dict[str, Any]:
        return {"node": 0, "name": self.me.info.name, "state": FORMING, "waits_for": self.waits_for}
