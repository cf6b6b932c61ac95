"""Redis as a target of the generator: RESP by hand, as cheap as our own channel.

So the generator costs the same on both sides. `connect_wait1` adds `WAIT 1 0` to every write, in
the same segment, and answers when both replies are in.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

from kvstore import errors
from kvstore_cli.bench_load import OnReply


def _command(*parts: bytes) -> bytes:
    """A command as RESP writes it."""
    body = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"*%d\r\n%s" % (len(parts), body)


def _cut(data: bytes, at: int) -> tuple[Any, int] | None:
    """One reply and where it ends, or None when it is not all there. Flat replies only."""
    end = data.find(b"\r\n", at)
    if end < 0:
        return None
    mark, rest = data[at : at + 1], data[at + 1 : end]
    if mark == b"$":
        size = int(rest)
        if size < 0:
            return (None,), end + 2
        stop = end + 2 + size
        return ((data[end + 2 : stop],), stop + 2) if len(data) >= stop + 2 else None
    if mark == b"-":
        return (errors.Unresolved(message=rest.decode()),), end + 2
    return (rest,), end + 2


class RedisChannel(asyncio.Protocol):
    """One connection; replies come in the order of the requests."""

    def __init__(self, *, wait_replicas: int) -> None:
        self._wait = _command(b"WAIT", b"%d" % wait_replicas, b"0") if wait_replicas else b""
        self._wait_replicas = wait_replicas
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiting: deque[tuple[OnReply, int]] = deque()
        """Callback and how many replies belong to it."""
        self._got: list[Any] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by isinstance

    def send(self, method: str, params: Sequence[Any], on_reply: OnReply) -> None:
        """Translate one of our calls."""
        assert self._transport is not None
        match method:
            case "get":
                data, replies = _command(b"GET", params[0]), 1
            case "put":
                data, replies = _command(b"SET", params[0], params[1]) + self._wait, 1 + bool(self._wait)
            case "put_many":
                flat = [part for pair in params[0] for part in pair]
                data, replies = _command(b"MSET", *flat), 1
            case _:
                raise errors.UnknownMethod(method=method)
        self._waiting.append((on_reply, replies))
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Hand each whole answer to its caller."""
        data = self._buffer + data if self._buffer else data
        at = 0
        while (found := _cut(data, at)) is not None:
            (reply,), at = found
            self._got.append(reply)
            on_reply, replies = self._waiting[0]
            if len(self._got) == replies:
                self._waiting.popleft()
                got, self._got = self._got, []
                self._settle(on_reply, got)
        self._buffer = data[at:]

    def _settle(self, on_reply: OnReply, got: list[Any]) -> None:
        if isinstance(got[0], errors.KVError):
            on_reply(got[0], None)
        elif len(got) == 2 and int(got[1]) < self._wait_replicas:
            on_reply(errors.QuorumTimeout(operation="put", needed=2, acked=1, missing="replica"), None)
        else:
            on_reply(None, [] if got[0] == b"OK" else got[0])

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits."""
        lost = errors.ConnectionLost(address="redis", reason=str(exc or "closed"))
        while self._waiting:
            self._waiting.popleft()[0](lost, None)

    def close(self) -> None:
        """Let go of it."""
        if self._transport is not None:
            self._transport.close()


async def _open(address: str, *, wait_replicas: int) -> RedisChannel:
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_connection(
        lambda: RedisChannel(wait_replicas=wait_replicas), host, int(port)
    )
    return channel


async def connect(address: str, _token: str) -> RedisChannel:
    """Plain Redis."""
    return await _open(address, wait_replicas=0)


async def connect_wait1(address: str, _token: str) -> RedisChannel:
    """Redis whose every write waits for one replica."""
    return await _open(address, wait_replicas=1)
