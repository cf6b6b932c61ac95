"""Nodes that speak the real wire over real sockets and do what a test tells them to.

Each keeps a dict and answers like a node that is alone and never slow. A test puts *acts* in front of a
method: the next calls get them instead, one each. An act is a KVError (the answer), `HANG` (no answer),
`DROP` (the connection breaks), `Raw` bytes (sent as they are), `Later` (the good answer after a while), or a
function of the params that returns the result or another act.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from kvstore import errors
from kvstore.client.client import Client
from kvstore.core.topology import NodeInfo, Topology
from kvstore.types import NodeId
from kvstore.wire import codec
from kvstore.wire.session import Session

CLUSTER = "c1" * 16
HANG, DROP = object(), object()
Connect = Callable[..., Awaitable[Client]]
"""Makes clients of a cluster; they are closed at the end of the test."""
Act = Any


@dataclass(frozen=True)
class Raw:
    """Bytes in the place of an answer."""

    data: bytes


@dataclass(frozen=True)
class Later:
    """The answer of a good node, but not at once."""

    seconds: float


@dataclass
class Shared:
    """What the nodes of one cluster share."""

    values: dict[bytes, tuple[bytes, int, int]] = field(default_factory=dict)
    """(value, version, expires_ms) by key."""
    version: int = 1 << 40
    operations: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    """(method, key, operation) of each write that was done."""


class ScriptedNode:
    """One node."""

    def __init__(self, number: int, shared: Shared) -> None:
        self.number = number
        self.shared = shared
        self.topology: Topology | None = None
        self.greeting: dict[str, Any] = {}
        """Fields of the answer to hello that differ."""
        self.acts: defaultdict[str, deque[Act]] = defaultdict(deque)
        self.always: dict[str, Act] = {}
        """Acts that do not wear off."""
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.reads: list[int] = []
        """How many frames each arrival of bytes brought."""
        self.links: list[_Link] = []
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def asked(self, *methods: str) -> int:
        """How often it was called, connections and topology aside."""
        return sum(method in methods or (not methods and method not in _ABOUT) for method, _ in self.calls)

    async def start(self) -> None:
        """Listen, at the same port as before."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Link(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Go at once: connections break, nobody listens."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for link in list(self.links):
            link.transport.abort()
        await asyncio.sleep(0)

    def serve(self, method: str, params: tuple[Any, ...]) -> Any:
        """What a good node answers."""
        handler: Callable[..., Any] | None = getattr(self, f"_{method}", None)
        if handler is None:
            raise errors.UnknownMethod(method=method)
        return handler(*params)

    @property
    def epoch(self) -> int:
        """Of its topology."""
        return self.topology.epoch if self.topology is not None else 1

    def _hello(self, *_: Any) -> Any:
        plain = {"protocol": 1, "cluster": CLUSTER, "node": self.number, "epoch": self.epoch, "steady_ms": 0}
        return plain | self.greeting

    def _topology(self, *_: Any) -> Any:
        assert self.topology is not None
        return self.topology.to_plain()

    def _ping(self, *_: Any) -> list[int]:
        return [0, 0]

    def _status(self, *_: Any) -> Any:
        return {"node": self.number, "state": "ready"}

    def _put(self, key: bytes, value: bytes, operation: bytes, options: Any = None, *_: Any) -> Any:
        shared = self.shared
        shared.version += 1
        existed = key in shared.values
        shared.values[key] = (value, shared.version, (options or {}).get("exp", 0))
        shared.operations.append(("put", key, operation))
        return [shared.version, self.epoch, [self.number], 2 * existed, 3, []]

    def _delete(self, key: bytes, operation: bytes, *_: Any) -> Any:
        self.shared.version += 1
        existed = self.shared.values.pop(key, None) is not None
        self.shared.operations.append(("delete", key, operation))
        return [self.shared.version, self.epoch, [self.number], 2 * existed, 3, []]

    def _touch(self, key: bytes, operation: bytes, options: Any = None, *_: Any) -> Any:
        found = self.shared.values.get(key)
        if found is None:
            return None
        return self._put(key, found[0], operation, options)

    _persist = _touch

    def _get(self, key: bytes, options: Any = None, *_: Any) -> Any:
        found = self.shared.values.get(key)
        if found is None:
            return [None, 0, 0, self.epoch, [self.number], [], False]
        value, version, expires_ms = found
        head = (options or {}).get("head", False)
        return [None if head else value, version, expires_ms, self.epoch, [self.number], [], True]

    def _get_many(self, keys: Sequence[bytes], options: Any = None, *_: Any) -> Any:
        return [self._get(key, options) for key in keys]

    def _put_many(self, items: Any, operation: bytes, options: Any = None, *_: Any) -> Any:
        return [self._put(key, value, operation, options) for key, value in items]

    def _delete_many(self, keys: Sequence[bytes], operation: bytes, *_: Any) -> Any:
        return [self._delete(key, operation) for key in keys]

    def _scan(self, cursor: bytes | None, options: Any = None, *_: Any) -> Any:
        plain = options or {}
        after = b"" if cursor is None else cursor[2:]
        prefix, limit = plain.get("prefix", b""), plain.get("limit", 1_000)
        keys = [key for key in sorted(self.shared.values) if key > after and key.startswith(prefix)]
        page = keys[:limit]
        rows = []
        for key in page:
            value, version, expires_ms = self.shared.values[key]
            rows.append([key, None if plain.get("keys_only") else value, version, expires_ms])
        return [rows, b"\0\0" + page[-1] if len(keys) > len(page) else None, self.epoch, [self.number]]


_ABOUT = {"hello", "topology", "ping"}


class _Link(asyncio.Protocol):
    """One accepted connection."""

    def __init__(self, node: ScriptedNode) -> None:
        self._node = node
        self._session = Session()
        self._session.raise_limits()
        self._packer = codec.Packer()
        self.transport = cast("asyncio.Transport", None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._node.links.append(self)
        self._node.accepted += 1

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._node.links.remove(self)

    def data_received(self, data: bytes) -> None:
        frames = self._session.receive(data)
        self._node.reads.append(len(frames))
        for _, msgid, method, params in frames:
            self._node.calls.append((method, params))
            self._perform(msgid, method, params)

    def _perform(self, msgid: int, method: str, params: tuple[Any, ...]) -> None:
        node = self._node
        if node.acts[method]:
            act = node.acts[method].popleft()
        elif method in node.always:
            act = node.always[method]
        else:
            act = lambda *given: node.serve(method, given)  # noqa: E731
        if callable(act):
            try:
                act = act(*params)
            except errors.KVError as error:
                act = error
        if act is DROP:
            self.transport.abort()
        elif isinstance(act, errors.KVError):
            self.transport.write(self._packer.error_response(msgid, act))
        elif isinstance(act, Raw):
            self.transport.write(act.data)
        elif isinstance(act, Later):
            answer = self._packer.response(msgid, node.serve(method, params))
            asyncio.get_running_loop().call_later(act.seconds, self.transport.write, answer)
        elif act is not HANG:
            self.transport.write(self._packer.response(msgid, act))


class ScriptedCluster:
    """Nodes 1..n with a topology."""

    def __init__(self, nodes: list[ScriptedNode]) -> None:
        self.nodes = {node.number: node for node in nodes}
        self.shared = nodes[0].shared
        members = [
            NodeInfo(NodeId(n.number), f"{n.number:032x}", f"n{n.number}", "127.0.0.1", n.port, n.port)
            for n in nodes
        ]
        self.topology = Topology.create(CLUSTER, members, partitions=16, replicas=min(3, len(nodes)))
        for node in nodes:
            node.topology = self.topology

    @property
    def url(self) -> str:
        """All of them."""
        return "kv://" + ",".join(node.address for node in self.nodes.values())

    def owners(self, key: bytes) -> list[ScriptedNode]:
        """The nodes of a key, in preference order."""
        return [self.nodes[number] for number in self.topology.preference(key)]

    def key_of(self, number: int, nth: int = 0) -> bytes:
        """Some key whose first owner is that node."""
        keys = (b"key-%d" % i for i in range(100_000))
        return [
            key for key in (next(keys) for _ in range(500)) if self.topology.preference(key)[0] == number
        ][nth]

    def always(self, method: str, act: Act) -> None:
        """The same act at every node."""
        for node in self.nodes.values():
            node.always[method] = act

    def asked(self, *methods: str) -> list[int]:
        """How often each was called."""
        return [node.asked(*methods) for node in self.nodes.values()]


@asynccontextmanager
async def scripted(count: int = 3) -> AsyncIterator[ScriptedCluster]:
    """A cluster of scripted nodes."""
    shared = Shared()
    nodes = [ScriptedNode(number, shared) for number in range(1, count + 1)]
    for node in nodes:
        await node.start()
    try:
        yield ScriptedCluster(nodes)
    finally:
        for node in nodes:
            await node.kill()


async def in_use(cluster: ScriptedCluster, connect: Connect, key: str) -> tuple[Client, ScriptedNode]:
    """A client that has stored something under `key`, and the key's first owner, to which it is connected."""
    kv = await connect()
    await kv.put(key, b"v")
    return kv, cluster.owners(key.encode())[0]
