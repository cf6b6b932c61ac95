"""Serves the peers: their writes, reads, scans and heartbeats.

Rules kept here:
- hello decides: same cluster, a node our topology knows, the peer token; else the door closes;
- every request carries the sender's epoch; when the owners changed after it, it is refused;
- work whose deadline passed on the way is dropped and counted;
- a node that has forgotten what it told us is not let in, and one that learns so of itself serves nothing.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Any

from kvstore import errors, limits
from kvstore.core.topology import Topology
from kvstore.core.witness import Witness
from kvstore.node.acceptor import Acceptor
from kvstore.node.clocks import clocks, steady_ms
from kvstore.node.metrics import Counters
from kvstore.node.options import NodeOptions
from kvstore.node.proposers import Proposers, Settled
from kvstore.node.replica import Replica
from kvstore.node.scanning import local_page
from kvstore.node.stream import Stream
from kvstore.node.turn import Turn
from kvstore.ports import Clock
from kvstore.storage.store import Store
from kvstore.types import NodeId
from kvstore.wire import messages

_HARMLESS = ("hello", "ping", "topology")
"""What a node in quarantine still answers."""


class PeerService:
    """The owner of the connections that peers open to us."""

    def __init__(  # noqa: PLR0913  everything it uses, handed in by name
        self,
        *,
        topology: Topology,
        greeting: Callable[[], dict[str, Any]],
        witness: Witness,
        replica: Replica,
        store: Store,
        acceptor: Acceptor,
        proposers: Proposers,
        clock: Clock,
        turn: Turn,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        options: NodeOptions,
        log: Any,
    ) -> None:
        self.topology = topology
        self.owners_epoch = 0
        """The epoch at which owners last changed; requests older than that are refused."""
        self.quarantine: errors.Amnesiac | None = None
        """Why nothing is served to peers."""
        self._greeting = greeting
        self._witness = witness
        self._replica = replica
        self._store = store
        self._acceptor = acceptor
        self._proposers = proposers
        self._clock = clock
        self._turn = turn
        self._loop = loop
        self._counters = counters
        self._options = options
        self._log = log
        self.streams: dict[int, Stream] = {}
        self._methods: dict[str, Callable[[Stream, int, Any], None]] = {
            "write": self._write,
            "repair": self._repair,
            "read": self._read,
            "scan": self._scan,
            "register": self._register,
            "peek": self._peek,
            "change": self._change,
            "ping": self._ping,
            "hello": self._hello,
            "topology": self._topology,
        }

    def protocol(self) -> Stream:
        """For `create_server`."""
        return Stream(owner=self, turn=self._turn, loop=self._loop)

    def opened(self, stream: Stream) -> None:
        """Count it."""
        self.streams[id(stream)] = stream

    def closed(self, stream: Stream, reason: str) -> None:
        """Forget it; an unusual end is worth a line."""
        self.streams.pop(id(stream), None)
        if reason:
            self._log.warning("peer_connection_closed", peer=stream.peername, reason=reason)

    def request(self, stream: Stream, msgid: int, method: str, params: Any) -> None:
        """Serve one."""
        serve = self._methods.get(method)
        if serve is None:
            raise errors.UnknownMethod(method=method)
        if self.quarantine is not None and method not in _HARMLESS:
            raise self.quarantine
        serve(stream, msgid, params)

    def _hello(self, stream: Stream, msgid: int, params: Any) -> None:
        hello = messages.decode_peer_hello(params)
        if hello.cluster != self.topology.cluster_id:
            raise errors.WrongCluster(expected=self.topology.cluster_id, got=hello.cluster)
        if not hmac.compare_digest((hello.token or "").encode(), self._options.peer_token.encode()):
            raise errors.AuthFailed
        known = {int(node.number): node for node in self.topology.nodes}.get(hello.node)
        if known is None or known.uuid != hello.uuid:
            raise errors.NotReady(reason=f"node {hello.node} ({hello.uuid}) is not in our topology")
        if not self._witness.believes(known.number, hello.told):
            self._log.error("amnesiac", peer=known.name)
            raise errors.Amnesiac(node=known.name)
        stream.who = hello.node
        stream.welcome()
        stream.respond(msgid, self._greeting())

    def _ping(self, stream: Stream, msgid: int, params: Any) -> None:
        if len(params) > 1:
            self._witness.believes(NodeId(stream.who), messages.told_of(params[1]))
        stream.respond(msgid, clocks(self._clock))

    def _topology(self, stream: Stream, msgid: int, params: Any) -> None:
        del params
        stream.respond(msgid, self.topology.to_plain())

    def _write(self, stream: Stream, msgid: int, params: Any) -> None:
        self._store_batch(stream, msgid, params, repair=False)

    def _repair(self, stream: Stream, msgid: int, params: Any) -> None:
        self._store_batch(stream, msgid, params, repair=True)

    def _store_batch(self, stream: Stream, msgid: int, params: Any, *, repair: bool) -> None:
        epoch, _budget, sync, flat = messages.decode_peer_write(params)
        self._check_epoch(epoch)

        def done(durability: int, statuses: bytes) -> None:
            stream.respond(msgid, [durability, statuses])

        self._replica.write_batch(flat, now_ms=self._clock.wall_ms(), sync=sync, repair=repair, done=done)

    def _read(self, stream: Stream, msgid: int, params: Any) -> None:
        epoch, _budget, skeys = messages.decode_peer_read(params)
        self._check_epoch(epoch)
        if not all(map(self._replica.owns, skeys)):
            # "Not mine" must never be counted as "not there".
            raise errors.StaleEpoch(theirs=epoch, ours=self.topology.epoch)
        stream.respond(msgid, self._replica.read_batch(skeys))

    def _scan(self, stream: Stream, msgid: int, params: Any) -> None:
        scan = messages.decode_peer_scan(params)
        self._check_epoch(scan.epoch)
        page = local_page(
            self._store,
            start=scan.start,
            stop=scan.stop,
            prefix=scan.prefix,
            limit=scan.limit,
            bytes_max=scan.bytes_max,
        )
        stream.respond(msgid, messages.encode_peer_page(page.entries, page.more))

    def _register(self, stream: Stream, msgid: int, params: Any) -> None:
        epoch, asked = messages.decode_votes(params)
        self._check_epoch(epoch)

        def done(votes: list[Any]) -> None:
            stream.respond(msgid, votes)

        self._acceptor.vote(asked, now_ms=self._clock.wall_ms(), done=done)

    def _peek(self, stream: Stream, msgid: int, params: Any) -> None:
        epoch, _budget, skeys = messages.decode_peer_read(params)
        self._check_epoch(epoch)
        self._acceptor.check()
        if not all(map(self._replica.owns, skeys)):
            raise errors.StaleEpoch(theirs=epoch, ours=self.topology.epoch)
        stream.respond(msgid, self._acceptor.peek(skeys))

    def _change(self, stream: Stream, msgid: int, params: Any) -> None:
        epoch, void_ms, key, request = messages.decode_forward(params)
        self._check_epoch(epoch)
        left_ms = void_ms - steady_ms(self._clock)
        if left_ms < 0:
            # It was held up, in a socket or by a cut. Whoever sent it has tried elsewhere, and the register
            # may have forgotten that since.
            self._counters.deadline_drops += 1
            raise errors.TooLate(late_ms=-left_ms)

        def done(settled: Settled | None, error: errors.KVError | None) -> None:
            if settled is not None:
                stream.respond(msgid, messages.encode_changed(settled[0], self.topology.epoch, settled[1]))
            elif error is not None:
                stream.fail(msgid, error)

        self._proposers.submit(
            key, request, self._loop.time() + min(left_ms, limits.TIMEOUT_MS_MAX) / 1000, done
        )

    def adopt(self, topology: Topology) -> None:
        """Answer by this topology from now on."""
        if topology.owners != self.topology.owners:
            self.owners_epoch = topology.epoch
        self.topology = topology

    def bug(self, stream: Stream, method: str, error: Exception) -> None:
        """A request met a mistake of ours; the log gets the traceback."""
        self._log.error("bug", method=method, peer=stream.peername, exc_info=error)

    def _check_epoch(self, epoch: int) -> None:
        if epoch < self.owners_epoch:
            raise errors.StaleEpoch(theirs=epoch, ours=self.topology.epoch)
