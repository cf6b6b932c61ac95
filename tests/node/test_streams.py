"""How long a connection is waited for: hello, and the second half of one frame, not of any frame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from kvstore import limits
from kvstore.node.stream import Stream
from kvstore.node.turn import Turn
from kvstore.sim.loop import run
from kvstore.wire import codec

PATIENCE_S = limits.HELLO_TIMEOUT_MS / 1000


class Greeter:
    """An owner that takes hello, and answers nothing else."""

    def __init__(self) -> None:
        self.asked = 0

    def opened(self, stream: Stream) -> None:
        pass

    def closed(self, stream: Stream, reason: str) -> None:
        pass

    def request(self, stream: Stream, msgid: int, method: str, params: Any) -> None:
        del msgid, params
        self.asked += 1
        if method == "hello":
            stream.welcome()

    def bug(self, stream: Stream, method: str, error: Exception) -> None:
        raise AssertionError(method, stream) from error


class Wire:
    """A transport that keeps nothing."""

    def __init__(self) -> None:
        self.closed = False

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


Play = Callable[[Stream, Greeter], Coroutine[Any, Any, None]]


def overdue(stream: Stream, now: float) -> bool:
    """Whether the owner's look at this instant ends it."""
    stream.sweep(now)
    return cast("Wire", stream._transport).closed


def played(play: Play) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        owner = Greeter()
        stream = Stream(owner=owner, turn=Turn(loop), loop=loop)
        stream.connection_made(cast("asyncio.BaseTransport", Wire()))
        await play(stream, owner)

    run(main())


def ping(msgid: int) -> bytes:
    return codec.Packer().request(msgid, "ping", ())


HELLO = codec.Packer().request(1, "hello", ())


@pytest.mark.parametrize("half", [1, 4, 7])
def test_a_busy_connection_whose_reads_end_within_frames_is_not_overdue(half: int) -> None:
    async def play(stream: Stream, owner: Greeter) -> None:
        loop = asyncio.get_running_loop()
        stream.data_received(HELLO + ping(2)[:half])
        for msgid in range(2, 30):
            await asyncio.sleep(PATIENCE_S / 4)
            stream.data_received(ping(msgid)[half:] + ping(msgid + 1)[:half])
            assert not overdue(stream, loop.time())
        assert owner.asked == 29
        await asyncio.sleep(PATIENCE_S + 1)
        assert overdue(stream, loop.time()), "and then its other half never comes"

    played(play)


def test_a_frame_that_drips_in_is_overdue() -> None:
    async def play(stream: Stream, owner: Greeter) -> None:
        stream.data_received(HELLO)
        assert not overdue(stream, asyncio.get_running_loop().time() + 2 * PATIENCE_S)
        for byte in ping(2)[:6]:
            stream.data_received(bytes((byte,)))
            await asyncio.sleep(PATIENCE_S / 5)
        assert owner.asked == 1
        assert overdue(stream, asyncio.get_running_loop().time())

    played(play)


def test_frames_before_hello_do_not_put_it_off() -> None:
    async def play(stream: Stream, owner: Greeter) -> None:
        notice = bytes((0x93, 2, 0xA1)) + b"x" + bytes((0x90,))
        for _ in range(6):
            stream.data_received(notice + notice[:2])
            await asyncio.sleep(PATIENCE_S / 5)
            stream.data_received(notice[2:])
        assert owner.asked == 0
        assert overdue(stream, asyncio.get_running_loop().time())

    played(play)
