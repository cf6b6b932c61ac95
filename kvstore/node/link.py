"""Our line to one peer: what we ask of it, and whether it can be asked at all.

    DOWN --connect, hello ok--> UP --lost, silent, or shut--> DOWN (again after a jittered pause)

Rules kept here:
- what the operations of one loop turn ask of this peer leaves as one message, within limits;
- a peer that is down, or has too much unanswered or unsent, fails the asker at once; nothing
  queues without bound;
- a link that breaks fails everything unanswered on it: a write may then have happened;
- a peer that says it is of another cluster, or another node than we dialled, is not used;
- heartbeats travel on the same link and never wait for the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from kvstore import errors, limits
from kvstore.core.node_clock import NodeClock
from kvstore.core.topology import NodeInfo
from kvstore.node.turn import Turn
from kvstore.types import NodeId
from kvstore.wire import codec, messages
from kvstore.wire.session import Session

OnReply = Callable[[Any, Any], None]


class WriteAsker(Protocol):
    """An operation that wants a record stored."""

    def answer(self, node: NodeId, applied: int, durability: int) -> None:
        """The peer's answer."""
        ...

    def fail(self, node: NodeId) -> None:
        """No answer will come; it may have happened."""
        ...


class ReadAsker(Protocol):
    """An operation that wants a record."""

    def answer_read(self, node: NodeId, record: bytes | None) -> None:
        """The peer's record."""
        ...

    def fail(self, node: NodeId) -> None:
        """No answer will come."""
        ...


class VoteAsker(Protocol):
    """A proposer's phase that wants votes."""

    def voted(self, node: NodeId, vote: tuple[int, int, bytes | None]) -> None:
        """The peer's acceptor answered."""
        ...

    def fail(self, node: NodeId) -> None:
        """No answer will come; it may have happened."""
        ...


class PeekAsker(Protocol):
    """A read that hopes to do without a round."""

    def peeked(self, node: NodeId, promised: int, record: bytes | None) -> None:
        """The peer's acceptor showed its state."""
        ...

    def fail(self, node: NodeId) -> None:
        """No answer will come."""
        ...


class _Questions:
    """Anything else that is asked in batches: arguments flat in one array, and who asked."""

    __slots__ = ("askers", "deadline", "decode", "flat", "method", "tell")

    def __init__(
        self,
        method: str,
        decode: Callable[[Any, int], Sequence[Any] | None],
        tell: Callable[[Any, NodeId, Any], None],
    ) -> None:
        self.method = method
        self.decode = decode
        self.tell = tell
        self._clear()

    def _clear(self) -> None:
        self.flat: list[Any] = []
        self.askers: list[Any] = []
        self.deadline = 0.0

    def take(self) -> tuple[list[Any], list[Any], float]:
        """What was collected; from here on there is nothing."""
        taken = self.flat, self.askers, self.deadline
        self._clear()
        return taken


def _tell_vote(asker: VoteAsker, node: NodeId, vote: tuple[int, int, bytes | None]) -> None:
    asker.voted(node, vote)


def _tell_peek(asker: PeekAsker, node: NodeId, seen: tuple[int, bytes | None]) -> None:
    asker.peeked(node, *seen)


class _Batch:
    """Records that wait for the end of the turn, and who asked."""

    __slots__ = ("askers", "deadline", "flat", "method", "size", "sync")

    def __init__(self, method: str) -> None:
        self.method = method
        self._clear()

    def _clear(self) -> None:
        self.flat: list[bytes] = []
        self.askers: list[WriteAsker] = []
        self.size = 0
        self.sync = False
        self.deadline = 0.0

    def take(self) -> tuple[list[bytes], list[WriteAsker], bool, float]:
        """What was collected; from here on the batch is empty."""
        taken = self.flat, self.askers, self.sync, self.deadline
        self._clear()
        return taken


class Link:
    """Requests to one peer over one connection. `connect` is called again after each loss."""

    __slots__ = (
        "_loop", "_marked", "_next_id", "_packer", "_peeks", "_pending", "_read_deadline", "_readers",
        "_reads", "_repairs", "_session", "_turn", "_votes", "_writes", "clock", "epoch", "info",
        "last_heard", "lost", "number", "peer_epoch", "reason", "transport", "up",
    )  # fmt: skip

    def __init__(self, *, info: NodeInfo, turn: Turn, loop: asyncio.AbstractEventLoop) -> None:
        self._turn = turn
        self._loop = loop
        self._packer = codec.Packer()
        self._session = Session()
        self._pending: dict[int, OnReply] = {}
        self._next_id = 0
        self._marked = False
        self._writes = _Batch("write")
        self._repairs = _Batch("repair")
        self._reads: list[bytes] = []
        self._readers: list[ReadAsker] = []
        self._read_deadline = 0.0
        self._votes = _Questions("register", messages.decode_voted, _tell_vote)
        self._peeks = _Questions("peek", messages.decode_shown, _tell_peek)
        self.transport: asyncio.Transport | None = None
        self.clock = NodeClock()
        """The peer's steady clock."""
        self.info = info
        self.number = info.number
        self.epoch = 0
        """Our epoch, sent with each request."""
        self.peer_epoch = 0
        """The peer's, as it said in hello."""
        self.up = False
        self.lost: asyncio.Event = asyncio.Event()
        self.last_heard = 0.0
        self.reason = "not connected yet"
        """Why it is down."""

    # --- asking -------------------------------------------------------------------------

    def ask_write(
        self, skey: bytes, record: bytes, asker: WriteAsker, *, deadline: float, sync: bool
    ) -> None:
        """Have the peer store a record; it leaves with this turn's batch."""
        self._stage(self._writes, skey, record, asker, deadline, sync)

    def ask_repair(self, skey: bytes, record: bytes, asker: WriteAsker, *, deadline: float) -> None:
        """Have the peer take a record that others already hold; a full disk does not refuse it."""
        self._stage(self._repairs, skey, record, asker, deadline, False)

    def _stage(
        self, batch: _Batch, skey: bytes, record: bytes, asker: WriteAsker, deadline: float, sync: bool
    ) -> None:
        if not self.up:
            asker.fail(self.number)
            return
        flat = batch.flat
        flat.append(skey)
        flat.append(record)
        batch.askers.append(asker)
        batch.size += len(record)
        batch.sync |= sync
        batch.deadline = max(batch.deadline, deadline)
        if batch.size > limits.PEER_BATCH_BYTES_MAX or len(flat) >= 2 * limits.PEER_BATCH_RECORDS_MAX:
            self._send_batch(batch)
        elif not self._marked:
            self._marked = True
            self._turn.mark(self._flush)

    def ask_read(self, skey: bytes, asker: ReadAsker, *, deadline: float) -> None:
        """Have the peer tell its record; it leaves with this turn's batch."""
        if not self.up:
            asker.fail(self.number)
            return
        self._reads.append(skey)
        self._readers.append(asker)
        self._read_deadline = max(self._read_deadline, deadline)
        if len(self._reads) >= limits.PEER_BATCH_RECORDS_MAX:
            self._send_reads()
        elif not self._marked:
            self._marked = True
            self._turn.mark(self._flush)

    def ask_vote(self, kind: int, skey: bytes, what: Any, asker: VoteAsker, *, deadline: float) -> None:
        """Have the peer's acceptor vote: `what` is a ballot or a record; it leaves with this turn's batch."""
        self._stage_question(self._votes, (kind, skey, what), asker, deadline)

    def ask_peek(self, skey: bytes, asker: PeekAsker, *, deadline: float) -> None:
        """Have the peer's acceptor show its state; it leaves with this turn's batch."""
        self._stage_question(self._peeks, (skey,), asker, deadline)

    def _stage_question(
        self, questions: _Questions, arguments: tuple[Any, ...], asker: VoteAsker | PeekAsker, deadline: float
    ) -> None:
        if not self.up:
            asker.fail(self.number)
            return
        questions.flat += arguments
        questions.askers.append(asker)
        questions.deadline = max(questions.deadline, deadline)
        if len(questions.askers) >= limits.PEER_BATCH_VOTES_MAX:
            self._send_questions(questions)
        elif not self._marked:
            self._marked = True
            self._turn.mark(self._flush)

    def call(self, method: str, params: list[Any], on_reply: OnReply) -> None:
        """Any other request. `on_reply(error, result)`; a lost link is an error."""
        if self.transport is None or len(self._pending) >= limits.PEER_IN_FLIGHT_MAX:
            on_reply(errors.NotReady(reason=f"peer {self.info.name} is not connected"), None)
            return
        self._next_id = (self._next_id + 1) & 0xFFFFFFFF
        self._pending[self._next_id] = on_reply
        self.transport.write(self._packer.request(self._next_id, method, params))

    def _flush(self) -> None:
        self._marked = False
        for batch in (self._writes, self._repairs):
            if batch.flat:
                self._send_batch(batch)
        if self._reads:
            self._send_reads()
        for questions in (self._votes, self._peeks):
            if questions.askers:
                self._send_questions(questions)

    def _send_batch(self, batch: _Batch) -> None:
        flat, askers, sync, deadline = batch.take()
        number = self.number

        def replied(error: Any, result: Any) -> None:
            answer = None if error is not None else messages.decode_peer_stored(result, len(askers))
            if answer is None:
                for asker in askers:
                    asker.fail(number)
                return
            durability, statuses = answer
            for asker, applied in zip(askers, statuses, strict=True):
                asker.answer(number, applied, durability)

        self._ask(batch.method, [self.epoch, self._budget_ms(deadline), sync, flat], replied)

    def _send_reads(self) -> None:
        readers, skeys = self._readers, self._reads
        budget = self._budget_ms(self._read_deadline)
        self._readers, self._reads, self._read_deadline = [], [], 0.0
        number = self.number

        def replied(error: Any, result: Any) -> None:
            found = None if error is not None else messages.decode_peer_records(result, len(readers))
            if found is None:
                for reader in readers:
                    reader.fail(number)
                return
            for reader, record in zip(readers, found, strict=True):
                reader.answer_read(number, record)

        self._ask("read", [self.epoch, budget, skeys], replied)

    def _send_questions(self, questions: _Questions) -> None:
        flat, askers, deadline = questions.take()
        number = self.number

        def replied(error: Any, result: Any) -> None:
            answers = None if error is not None else questions.decode(result, len(askers))
            if answers is None:
                for asker in askers:
                    asker.fail(number)
                return
            for asker, answer in zip(askers, answers, strict=True):
                questions.tell(asker, number, answer)

        self._ask(questions.method, [self.epoch, self._budget_ms(deadline), flat], replied)

    def _ask(self, method: str, params: list[Any], replied: OnReply) -> None:
        transport = self.transport
        if (
            transport is None
            or not self.up
            or len(self._pending) >= limits.PEER_IN_FLIGHT_MAX
            or transport.get_write_buffer_size() > limits.PEER_OUTPUT_BYTES_MAX
        ):
            replied(errors.NotReady(reason=self.reason or "the peer does not keep up"), None)
            return
        self.call(method, params, replied)

    def _budget_ms(self, deadline: float) -> int:
        return max(1, int((deadline - self._loop.time()) * 1000))

    # --- the connection -----------------------------------------------------------------

    def protocol(self) -> asyncio.Protocol:
        """For `create_connection`."""
        return _LinkProtocol(self)

    def shut(self, reason: str) -> None:
        """Drop the connection; everything unanswered fails."""
        if self.transport is not None:
            self.transport.abort()
        self.gone(reason)

    def made(self, transport: asyncio.Transport) -> None:
        """A connection stands; hello comes next."""
        self.transport = transport
        self._session = Session()
        self._session.raise_limits()
        self.lost.clear()
        self.last_heard = self._loop.time()

    def received(self, data: bytes) -> None:
        """Hand answers to who asked."""
        self.last_heard = self._loop.time()
        try:
            frames = self._session.receive(data)
        except errors.ProtocolError as error:
            self.shut(f"{error.name}: {error.message}")
            return
        for frame in frames:
            if frame[0] == 1:
                on_reply = self._pending.pop(frame[1], None)
                if on_reply is not None:
                    on_reply(frame[2], frame[3])

    def gone(self, reason: str) -> None:
        """Fail all that is unanswered, staged batches too, and let the keeper dial again."""
        self.transport = None
        self.up = False
        self.reason = reason
        self.lost.set()
        pending, self._pending = self._pending, {}
        error = errors.ConnectionLost(address=self.info.name, reason=reason)
        for on_reply in pending.values():
            on_reply(error, None)


class _LinkProtocol(asyncio.Protocol):
    """One connection of a link; a late callback of an old one must not touch the new one."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but ancestry
        self._link.made(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._link.transport is self._transport:
            self._link.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._link.transport is self._transport:
            self._link.gone(str(exc) if exc else "the peer closed the connection")
