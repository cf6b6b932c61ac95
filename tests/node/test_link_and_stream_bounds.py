"""What leaves for a peer or a client is bounded in bytes, and only who takes nothing of it is cut off."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest

from kvstore import limits
from kvstore.core.topology import NodeInfo
from kvstore.node.link import Link
from kvstore.node.stream import Stream
from kvstore.node.turn import Turn
from kvstore.types import NodeId
from kvstore.wire import codec
from kvstore.wire.register_messages import ACCEPT, GRANTED, PREPARE

PEER = NodeId(2)
RECORD = b"r" * (1 << 20)


class Pipe(asyncio.Transport):
    """A transport that keeps what is written, and takes it when told."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.unsent = 0
        self.takes = True
        self.aborted = False
        self.reading = True
        self.protocol: Stream | None = None

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))
        self.unsent += 0 if self.takes else len(data)
        if self.unsent > limits.OUTPUT_BYTES_PAUSE and self.protocol is not None:
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del high, low

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted = True

    def frames(self) -> list[Any]:
        """What was written since the last time."""
        unpacker = msgpack.Unpacker()
        for data in self.written:
            unpacker.feed(data)
        self.written.clear()
        return list(unpacker)


class Asker:
    """Somebody who votes, reads or peeks."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.over = False

    def voted(self, node: NodeId, vote: Any) -> None:
        del node
        self.heard.append(vote)

    def answer_read(self, node: NodeId, record: bytes | None) -> None:
        del node
        self.heard.append(record)

    def fail(self, node: NodeId) -> None:
        self.heard.append(f"no answer of {node}")

    def is_over(self) -> bool:
        return self.over


async def linked() -> tuple[Link, Pipe]:
    loop = asyncio.get_running_loop()
    info = NodeInfo(number=PEER, name="n2", uuid="u2", host="h", client_port=1, peer_port=2)
    link, pipe = Link(info=info, turn=Turn(loop), loop=loop), Pipe()
    link.made(pipe)
    link.up = True
    return link, pipe


def answer(link: Link, frame: Any, result: list[Any]) -> None:
    link.received(codec.Packer().response(frame[1], result))


async def test_records_to_accept_leave_in_frames_that_fit() -> None:
    link, pipe = await linked()
    for number in range(14):
        link.ask_vote(ACCEPT, b"p0%d" % number, RECORD, Asker(), deadline=link._loop.time() + 1)
    await asyncio.sleep(0)
    sizes = [len(data) for data in pipe.written]
    assert max(sizes) < limits.PEER_BATCH_BYTES_MAX + len(RECORD) + 1_000
    assert sum(len(frame[3][2]) for frame in pipe.frames()) == 3 * 14, "each is asked once"


async def test_what_an_answer_had_no_room_for_is_asked_again() -> None:
    link, pipe = await linked()
    askers = [Asker() for _ in range(5)]
    for number, asker in enumerate(askers):
        link.ask_read(b"p0%d" % number, asker, deadline=link._loop.time() + 1)
    await asyncio.sleep(0)
    (frame,) = pipe.frames()
    askers[3].over = True
    answer(link, frame, [None, None])
    await asyncio.sleep(0)
    (frame,) = pipe.frames()
    assert frame[3][2] == [b"p02", b"p04"], "nobody waits for the other one"
    answer(link, frame, [None])
    await asyncio.sleep(0)
    (frame,) = pipe.frames()
    answer(link, frame, [])
    assert [asker.heard for asker in askers] == [[None], [None], [None], [], ["no answer of 2"]]


async def test_votes_are_asked_again_while_there_is_time_and_accepts_whoever_waits() -> None:
    link, pipe = await linked()
    askers = [Asker() for _ in range(4)]
    for asker, (kind, what) in zip(
        askers, [(PREPARE, 1), (PREPARE, 2), (ACCEPT, b"r"), (PREPARE, 3)], strict=True
    ):
        link.ask_vote(kind, b"p0k", what, asker, deadline=link._loop.time() + 0.05)
    await asyncio.sleep(0)
    (frame,) = pipe.frames()
    askers[1].over = askers[2].over = True
    answer(link, frame, [GRANTED, 0, None])
    await asyncio.sleep(0)
    (frame,) = pipe.frames()
    assert frame[3][2] == [ACCEPT, b"p0k", b"r", PREPARE, b"p0k", 3]
    await asyncio.sleep(0.06)
    answer(link, frame, [GRANTED, 0, None])
    assert not pipe.written
    assert [asker.heard for asker in askers] == [[(0, 0, None)], [], [(0, 0, None)], ["no answer of 2"]]


class Owner:
    """Answers each request with a record."""

    def __init__(self) -> None:
        self.served = 0

    def opened(self, stream: Stream) -> None:
        stream.welcome()

    def closed(self, stream: Stream, reason: str) -> None:
        del stream, reason

    def request(self, stream: Stream, msgid: int, method: str, params: Any) -> None:
        del method, params
        self.served += 1
        stream.respond(msgid, RECORD)

    def bug(self, stream: Stream, method: str, error: Exception) -> None:
        del stream, method
        raise error


async def streaming() -> tuple[Stream, Pipe, Owner]:
    loop = asyncio.get_running_loop()
    owner, pipe = Owner(), Pipe()
    stream = pipe.protocol = Stream(owner=owner, turn=Turn(loop), loop=loop)
    stream.connection_made(pipe)
    return stream, pipe, owner


def requests(count: int) -> bytes:
    packer = codec.Packer()
    return b"".join(packer.request(number + 1, "get", []) for number in range(count))


async def test_requests_of_one_packet_wait_until_their_answers_are_read() -> None:
    stream, pipe, owner = await streaming()
    pipe.takes = False
    stream.data_received(requests(10))
    await asyncio.sleep(0)
    assert owner.served == 1
    assert not pipe.reading
    stream.data_received(requests(1))
    assert owner.served == 1, "one that was on its way waits, too"
    pipe.takes, pipe.unsent = True, 0
    stream.resume_writing()
    await asyncio.sleep(0)
    assert owner.served == 11
    assert pipe.reading


async def test_who_reads_is_not_cut_off_for_much_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OUTPUT_STALL_MS", 20)
    stream, pipe, _ = await streaming()
    pipe.takes = False
    stream.in_flight = 60
    for msgid in range(40):
        stream.respond(msgid, RECORD)
    await asyncio.sleep(0.03)
    assert pipe.unsent > limits.OUTPUT_BYTES_MAX
    pipe.unsent -= len(RECORD)
    stream.sweep(0.0)
    assert not pipe.aborted, "it takes them"
    await asyncio.sleep(0.03)
    stream.sweep(0.0)
    assert pipe.aborted, "it takes them no more"


async def test_nobody_has_more_than_the_ceiling_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OUTPUT_BYTES_CEILING", 40 << 20)
    stream, pipe, _ = await streaming()
    pipe.takes = False
    for msgid in range(41):
        stream.respond(msgid, RECORD)
    await asyncio.sleep(0)
    assert pipe.aborted
