"""The nodes as a client sees them: which one to ask for a key, and an open connection to it.

- Routing is token-aware: the first live owner of the key, then the other owners, then anybody, at last the
  addresses that the client was given.
- Connections are opened when first needed and shared by all calls.
- A node that failed is left alone for a pause that doubles with each failure (circuit breaker), unless
  nobody else is left. When the pause is over one call finds out; the others still keep away.
- The topology comes with the first connection and again whenever an answer names a newer epoch or a
  node is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from kvstore import errors
from kvstore.client.connection import Connection
from kvstore.core.topology import NodeInfo, Topology
from kvstore.ports import Dice
from kvstore.types import NodeId

_PAUSE_S, _PAUSE_S_MAX = 0.1, 5.0


def address_of(node: NodeInfo) -> str:
    """Where clients reach a node: `host:port`."""
    host = f"[{node.host}]" if ":" in node.host else node.host
    return f"{host}:{node.client_port}"


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
        self._all: list[str] = []
        self._orders: dict[tuple[NodeId, ...], list[str]] = {}
        """By preference list: made once a topology, for it is asked at every call."""
        self.topology: Topology | None = None
        self.epoch = 0
        """The topology's, as far as we have it."""
        self.closed = False

    def candidates(self, key: bytes | None) -> list[str]:
        """All addresses, best first."""
        topology = self.topology
        if topology is None or self._pinned:
            order = self._seeds
        elif key is None:
            # Calls without a key are spread.
            start = self._dice.randrange(0, len(self._all))
            order = self._unique(self._all[start:] + self._all[:start])
        else:
            preference = topology.preference(key)
            order = self._orders.get(preference) or self._order(topology, preference)
        if not self._failures:
            return order
        now = asyncio.get_running_loop().time()
        return sorted(order, key=lambda address: self._failures.get(address, (0, 0.0))[1] > now)

    def _order(self, topology: Topology, preference: tuple[NodeId, ...]) -> list[str]:
        owners = [address_of(topology.node(number)) for number in preference]
        order = self._orders[preference] = self._unique(owners + self._all)
        return order

    def _unique(self, addresses: list[str]) -> list[str]:
        return list(dict.fromkeys(addresses + self._seeds))

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
            connection = await self._connect(address)
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
        return connection

    async def _connect(self, address: str) -> Connection:
        connection = await Connection.open(
            address,
            token=self._token,
            cluster=self._cluster,
            local_addr=self._local_addr,
            timeout=self._connect_timeout,
        )
        if self.closed:
            connection.close()
            raise errors.CannotConnect(address=address, reason="this client is closed")
        self._cluster = connection.hello["cluster"]
        connection.on_lost = self._lost
        self._open[address] = connection
        self.worked(address)
        self.saw_epoch(connection.hello["epoch"])
        return connection

    def asking(self, address: str) -> None:
        """A call is on its way there; behind a node that failed, the others do not follow at once."""
        if address in self._failures:
            count, _ = self._failures[address]
            self._failures[address] = (count, self._until(count))

    def worked(self, address: str) -> None:
        """It answered: forget its failures."""
        if self._failures:
            self._failures.pop(address, None)

    def failed(self, address: str) -> None:
        """It did not: leave it alone for a while."""
        count = self._failures.get(address, (0, 0.0))[0] + 1
        self._failures[address] = (count, self._until(count))

    def _until(self, count: int) -> float:
        pause = min(_PAUSE_S * 2.0 ** min(count - 1, 30), _PAUSE_S_MAX) * (0.5 + self._dice.random() / 2)
        return asyncio.get_running_loop().time() + pause

    def _lost(self, connection: Connection) -> None:
        if self._open.get(connection.address) is connection:
            del self._open[connection.address]
            if not self.closed:
                self.failed(connection.address)
                self._refresh()

    def saw_epoch(self, epoch: int) -> None:
        """An answer told the coordinator's epoch; a newer one than ours means the topology changed."""
        if self.topology is not None and epoch > self.epoch:
            self._refresh()

    def _refresh(self) -> None:
        connection = next((each for each in self._open.values() if each.is_open), None)
        if connection is None or self._refreshing:
            return
        self._refreshing = True

        def replied(error: object, result: object) -> None:
            self._refreshing = False
            if error is None:
                with suppress(errors.Malformed):  # one that we cannot read is left alone
                    self.adopt(Topology.from_plain(result))

        connection.send("topology", (), replied)

    def adopt(self, newer: Topology) -> None:
        """Take a topology over if it is newer."""
        if newer.epoch > self.epoch and newer.nodes:
            self.topology = newer
            self.epoch = newer.epoch
            self._all = [address_of(node) for node in newer.nodes]
            self._orders = {}

    def close(self) -> None:
        """Drop all connections."""
        self.closed = True
        for connection in list(self._open.values()):
            connection.close()
        self._open.clear()
