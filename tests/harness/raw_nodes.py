"""Real nodes in this process, and a bare connection that can also say wrong things."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from kvstore.server import LocalNodes, local_nodes
from kvstore.types import NodeId
from kvstore.wire import codec
from kvstore.wire.session import Session

OPERATION = bytes(range(16))
HELLO = {"protocol": [1, 1], "agent": "tests"}


class Raw(asyncio.Protocol):
    """A connection without a client library: frames by hand, or any bytes."""

    def __init__(self) -> None:
        self._session = Session()
        self._session.raise_limits()
        self._packer = codec.Packer()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[Any, Any]]] = {}
        self.transport = cast("asyncio.Transport", None)
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unasked: list[tuple[Any, ...]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for frame in self._session.receive(data):
            future = self._waiting.pop(frame[1], None)
            if future is None:
                self.unasked.append(frame)
            else:
                future.set_result((frame[2], frame[3]))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self.closed.done():
            self.closed.set_result(None)

    def ask(self, method: str, *params: Any) -> asyncio.Future[tuple[Any, Any]]:
        """Send a request; the future is `(error, result)`."""
        msgid = next(self._ids)
        future = asyncio.get_running_loop().create_future()
        self._waiting[msgid] = future
        self.transport.write(self._packer.request(msgid, method, params))
        return future

    async def call(self, method: str, *params: Any) -> Any:
        """The result; an error is an assertion failure."""
        error, result = await asyncio.wait_for(self.ask(method, *params), 10)
        assert error is None, error
        return result

    async def error(self, method: str, *params: Any) -> tuple[str, dict[str, Any]]:
        """The error's name and fields; success is an assertion failure."""
        error, result = await asyncio.wait_for(self.ask(method, *params), 10)
        assert error is not None, result
        return error[0], error[2]


class Nodes:
    """A running cluster and connections to it."""

    def __init__(self, local: LocalNodes) -> None:
        self.local = local
        self._open: list[Raw] = []

    async def connect(self, number: int, *, hello: bool = True) -> Raw:
        """A connection to node `number`."""
        info = self.local.topology.node(number)
        loop = asyncio.get_running_loop()
        _, raw = await loop.create_connection(Raw, info.host, info.client_port)
        self._open.append(raw)
        if hello:
            await raw.call("hello", HELLO)
        return raw

    async def until_linked(self, number: int, peers: int) -> None:
        """Wait until node `number` has that many peers up."""
        async with asyncio.timeout(10):
            while sum(p["up"] for p in self.status(number)["peers"].values()) != peers:
                await asyncio.sleep(0.01)

    def status(self, number: int) -> dict[str, Any]:
        """What the node says of itself."""
        return self.local.nodes[NodeId(number)].status()

    def close(self) -> None:
        """Drop the connections."""
        for raw in self._open:
            raw.transport.abort()


@asynccontextmanager
async def running(directory: Path, count: int) -> AsyncIterator[Nodes]:
    """A cluster of `count` nodes, fully linked."""
    async with local_nodes(directory, count=count, cluster_id="c1" * 16, log_level="critical") as local:
        nodes = Nodes(local)
        try:
            yield nodes
        finally:
            nodes.close()
