"""The nodes as a client sees them: which one to ask for a key, and an open connection to it.

- Routing is token-aware: the first live owner of the key, then the other owners, then anybody.
- Connections are opened when first needed and shared by all calls.
- A node that failed is left alone for a pause that doubles with each failure (circuit breaker),
  unless nobody else is left.
- The topology comes with the first connection and again whenever an answer names a newer epoch or a
  node is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

from kvstore import errors
from kvstore.client.connection import Connection
from kvstore.core.topology import Topology
from kvstore.ports import Dice

DEFAULT_PORT = 7401
_PAUSE_S, _PAUSE_S_MAX = 0.1, 5.0


def addresses_of(url: str | Sequence[str]) -> list[str]:
    """`kv://h1:7401,h2:7402` (or several such) as `host:port` each. Raises errors.BadOption."""
    found: list[str] = []
    for each in [url] if isinstance(url, str) else url:
        scheme, marker, rest = each.partition("://")
        if not marker or scheme != "kv" or "/" in rest.rstrip("/"):
            raise errors.BadOption(option="url", given=repr(each), allowed="kv://host:port[,host:port...]")
        for part in rest.rstrip("/").split(","):
            host, port = _host_and_port(part)
            if not host:
                raise errors.BadOption(
                    option="url", given=repr(each), allowed="kv://host:port[,host:port...]"
                )
            found.append(
                f"[{host}]:{port or DEFAULT_PORT}" if ":" in host else f"{host}:{port or DEFAULT_PORT}"
            )
    return list(dict.fromkeys(found))


def _host_and_port(part: str) -> tuple[str | None, int | None]:
    try:
        split = urlsplit(f"//{part}")
        return (None, None) if split.username is not None else (split.hostname, split.port)
    except ValueError:
        return None, None


class Nodes:
    """Connections by address, and the order in which to try them."""

    def __init__(
        self,
        seeds: Sequence[str],
        *,
        token: str,
        dice: Dice,
        local_addr: tuple[str, int] | None,
        connect_timeout: float,
        pinned: bool = False,
    ) -> None:
        self._seeds = list(seeds)
        self._token = token
        self._dice = dice
        self._local_addr = local_addr
        self._connect_timeout = connect_timeout
        self._pinned = pinned
        self._cluster = ""
        self._open: dict[str, Connection] = {}
        self._opening: dict[str, asyncio.Future[Connection]] = {}
        self._failures: dict[str, tuple[int, float]] = {}
        self._refreshing = False
        self.topology: Topology | None = None
        self.closed = False

    def candidates(self, key: bytes | None) -> list[str]:
        """All addresses, best first."""
        topology = self.topology
        if topology is None or self._pinned:
            order = list(self._seeds)
        else:
            rest = [f"{node.host}:{node.client_port}" for node in topology.nodes]
            # Calls without a key are spread; those with one go to its owners in preference order.
            start = self._dice.randrange(0, len(rest))
            order = rest[start:] + rest[:start]
            if key is not None:
                owners = [topology.node(number) for number in topology.preference(key)]
                order = [f"{node.host}:{node.client_port}" for node in owners] + order
        now = asyncio.get_running_loop().time()
        order = list(dict.fromkeys(order))
        return sorted(order, key=lambda address: self._failures.get(address, (0, 0.0))[1] > now)

    async def connection(self, address: str) -> Connection:
        """An open connection; calls that need one at the same time share the attempt."""
        connection = self._open.get(address)
        if connection is not None and connection.is_open:
            return connection
        if self.closed:
            raise errors.CannotConnect(address=address, reason="this client is closed")
        opening = self._opening.get(address)
        if opening is not None:
            return await asyncio.shield(opening)
        opening = self._opening[address] = asyncio.get_running_loop().create_future()
        try:
            connection = await Connection.open(
                address,
                token=self._token,
                cluster=self._cluster,
                local_addr=self._local_addr,
                timeout=self._connect_timeout,
            )
        except BaseException as error:
            known = isinstance(error, errors.KVError)
            if known:
                self.failed(address)
            # Who waits with us must not be cancelled with us; they try again.
            opening.set_exception(
                error if known else errors.CannotConnect(address=address, reason="the attempt was given up")
            )
            opening.exception()  # seen: there may be nobody else who waits for it
            raise
        else:
            opening.set_result(connection)
        finally:
            del self._opening[address]
        self._cluster = str(connection.hello.get("cluster", ""))
        connection.on_lost = self._lost
        self._open[address] = connection
        self.worked(address)
        return connection

    def worked(self, address: str) -> None:
        """It answered: forget its failures."""
        self._failures.pop(address, None)

    def failed(self, address: str) -> None:
        """It did not: leave it alone for a while."""
        count = self._failures.get(address, (0, 0.0))[0] + 1
        pause = min(_PAUSE_S * 2.0 ** (count - 1), _PAUSE_S_MAX) * (0.5 + self._dice.random() / 2)
        self._failures[address] = (count, asyncio.get_running_loop().time() + pause)

    def _lost(self, connection: Connection) -> None:
        if self._open.get(connection.address) is connection:
            del self._open[connection.address]
            if not self.closed:
                self.failed(connection.address)

    def saw_epoch(self, epoch: int, connection: Connection) -> None:
        """An answer told the coordinator's epoch; a newer one than ours means the topology changed."""
        if self.topology is not None and epoch > self.topology.epoch and not self._refreshing:
            self._refreshing = True

            def replied(error: object, result: object) -> None:
                self._refreshing = False
                if error is None:
                    self.adopt(result)

            connection.send("topology", [], replied)

    def adopt(self, plain: object) -> None:
        """Take a topology over if it is newer; one that we cannot read is left alone."""
        try:
            newer = Topology.from_plain(plain)
        except errors.Malformed:
            return
        if self.topology is None or newer.epoch > self.topology.epoch:
            self.topology = newer

    def close(self) -> None:
        """Drop all connections."""
        self.closed = True
        for connection in list(self._open.values()):
            connection.close()
        self._open.clear()
