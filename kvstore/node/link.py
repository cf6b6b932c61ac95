"""Our line to one peer: what we ask of it, and whether it can be asked at all.

    DOWN --connect, hello ok--> UP --lost, silent, or shut--> DOWN (again after a jittered pause)

Rules kept here:
- what the operations of one loop turn ask of this peer leaves as one message, within limits of count and
  bytes;
- a peer answers as much of a message as fits in a frame; the rest is asked again, before the same deadline;
- a peer that is down, or has too much unanswered or unsent, fails the asker at once; nothing
  queues without bound;
- a link that breaks fails everything unanswered on it: a write may then have happened;
- a peer that says it is of another cluster, or another node than we dialled, is not used;
- heartbeats travel on the same link and never wait for the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from kvstore import errors, limits
from kvstore.core.node_clock import NodeClock
from kvstore.core.topology import NodeInfo
from kvstore.node.asking import (
    Asker,
    Batch,
    PeekAsker,
    Questions,
    ReadAsker,
    VoteAsker,
    WriteAsker,
    tell_peek,
    tell_read,
    tell_vote,
)
from kvstore.node.turn import Turn
from kvstore.wire import codec, messages
from kvstore.wire.register_messages import ACCEPT
from kvstore.wire.session import Session

OnReply = Callable[[Any, Any], None]


class Link:
    """Requests to one peer over one connection. `connect` is called again after each loss."""

    __slots__ = (
        "_loop", "_marked", "_next_id", "_packer", "_peeks", "_pending", "_reads", "_repairs", "_session",
        "_turn", "_votes", "_writes", "clock", "epoch", "info", "last_heard", "lost", "number",
        "peer_epoch", "reason", "transport", "up",
    )  # fmt: skip

    def __init__(self, *, info: NodeInfo, turn: Turn, loop: asyncio.AbstractEventLoop) -> None:
        self._turn = turn
        self._loop = loop
        self._packer = codec.Packer()
        self._session = Session()
        self._pending: dict[int, OnReply] = {}
        self._next_id = 0
        self._marked = False
        self._writes = Batch("write")
        self._repairs = Batch("repair")
        self._reads = Questions("read", messages.decode_peer_records, tell_read)
        self._votes = Questions("register", messages.decode_voted, tell_vote)
        self._peeks = Questions("peek", messages.decode_shown, tell_peek)
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
        self, batch: Batch, skey: bytes, record: bytes, asker: WriteAsker, deadline: float, sync: bool
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
        reads = self._reads
        reads.flat.append(skey)
        reads.askers.append(asker)
        reads.deadline = max(reads.deadline, deadline)
        if len(reads.askers) >= limits.PEER_BATCH_RECORDS_MAX:
            self._send_questions(reads)
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
        self, questions: Questions, arguments: Sequence[Any], asker: Asker, deadline: float
    ) -> None:
        if not self.up:
            asker.fail(self.number)
            return
        questions.flat += arguments
        questions.askers.append(asker)
        questions.deadline = max(questions.deadline, deadline)
        last = arguments[-1]
        if type(last) is bytes:
            questions.size += len(last)
        if (
            questions.size > limits.PEER_BATCH_BYTES_MAX
            or len(questions.askers) >= limits.PEER_BATCH_VOTES_MAX
        ):
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
        for questions in (self._reads, self._votes, self._peeks):
            if questions.askers:
                self._send_questions(questions)

    def _send_batch(self, batch: Batch) -> None:
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

    def _send_questions(self, questions: Questions) -> None:
        flat, askers, deadline = questions.take()
        number = self.number

        def replied(error: Any, result: Any) -> None:
            answers = None if error is not None else questions.decode(result, len(askers))
            if answers is None:
                for asker in askers:
                    asker.fail(number)
                return
            for asker, answer in zip(askers, answers, strict=False):
                questions.tell(asker, number, answer)
            if len(answers) < len(askers):
                self._ask_again(questions, flat, askers, len(answers), deadline)

        self._ask(questions.method, [self.epoch, self._budget_ms(deadline), flat], replied)

    def _ask_again(
        self, questions: Questions, flat: list[Any], askers: list[Any], answered: int, deadline: float
    ) -> None:
        """What the peer's answer had no room for, unless nobody waits for it any more."""
        width = len(flat) // len(askers)
        late = self._loop.time() >= deadline
        for at in range(answered, len(askers)):
            asker, arguments = askers[at], flat[at * width : (at + 1) * width]
            if late:
                asker.fail(self.number)
            elif arguments[0] == ACCEPT or not asker.is_over():
                # A record that a majority has accepted goes to the others, too.
                self._stage_question(questions, arguments, asker, deadline)

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
