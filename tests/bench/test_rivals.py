"""The channels to other stores: one that miscounts answers would make a comparison a lie."""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import errors
from kvstore_cli.bench_load import OnReply
from rivals.etcd import END_STREAM, EtcdChannel, field, frame, varint
from rivals.redis import RedisChannel

Channel = TypeVar("Channel", RedisChannel, EtcdChannel)


class Wire(asyncio.Transport):
    """Keeps what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def close(self) -> None:
        self.closed = True


def feed(receive: Callable[[bytes], None], data: bytes, cuts: list[int]) -> None:
    """Deliver bytes cut anywhere."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, stop in itertools.pairwise(edges):
        receive(data[start:stop])


def opened(channel: Channel) -> tuple[Channel, Wire]:
    wire = Wire()
    channel.connection_made(wire)
    return channel, wire


cuts = st.lists(st.integers(0, 500), max_size=8)


@given(cuts)
def test_redis_replies_reach_their_callers_however_the_bytes_are_cut(where: list[int]) -> None:
    channel, wire = opened(RedisChannel(wait_replicas=0))
    got: list[tuple[Any, Any]] = []
    for _ in range(4):
        channel.send("get", [b"k", {}], lambda error, result: got.append((error, result)))
    feed(channel.data_received, b"$5\r\nva\r\nl\r\n$-1\r\n$0\r\n\r\n-ERR no\r\n", where)
    assert [result for _, result in got[:3]] == [b"va\r\nl", None, b""]
    assert isinstance(got[3][0], errors.Unresolved)
    assert wire.sent.startswith(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")


@given(cuts, st.integers(0, 2))
def test_a_redis_write_counts_only_when_a_replica_has_it(where: list[int], replicas: int) -> None:
    channel, wire = opened(RedisChannel(wait_replicas=1))
    got: list[Any] = []
    channel.send("put", [b"k", b"v", bytes(16), {}], lambda error, _result: got.append(error))
    feed(channel.data_received, b"+OK\r\n:%d\r\n" % replicas, where)
    assert wire.sent.endswith(b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n")
    assert [error is None for error in got] == [replicas >= 1]


def answer(stream: int, message: bytes) -> bytes:
    """A gRPC response as etcd sends it: headers, data, trailers."""
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    return (
        frame(1, 4, stream, b"\x88") + frame(0, 0, stream, body) + frame(1, 4 | END_STREAM, stream, b"\xbf")
    )


@given(cuts)
def test_etcd_streams_end_in_any_order_however_the_bytes_are_cut(where: list[int]) -> None:
    channel, _ = opened(EtcdChannel(serializable=False))
    got: list[tuple[int, bytes]] = []

    def keep(number: int) -> OnReply:
        return lambda _error, body: got.append((number, body[5:]))

    for number in range(3):
        channel.send("get", [b"k%d" % number, {}], keep(number))
    feed(channel.data_received, answer(5, b"third") + answer(1, b"first") + answer(3, b"second"), where)
    assert got == [(2, b"third"), (0, b"first"), (1, b"second")]


def test_an_etcd_stream_without_a_message_is_an_error() -> None:
    channel, _ = opened(EtcdChannel(serializable=False))
    got: list[Any] = []
    for _ in range(2):
        channel.send("get", [b"k", {}], lambda error, _body: got.append(error))
    channel.data_received(frame(1, 4 | END_STREAM, 1, b"\x88") + frame(3, 0, 3, bytes(4)))
    assert [type(error) for error in got] == [errors.Unresolved, errors.Unresolved]


def test_etcd_settings_and_pings_are_acknowledged_and_acknowledgements_are_not() -> None:
    channel, wire = opened(EtcdChannel(serializable=False))
    wire.sent = b""
    channel.data_received(
        frame(4, 0, 0, b"") + frame(6, 0, 0, b"12345678") + frame(4, 1, 0, b"") + frame(6, 1, 0, bytes(8))
    )
    assert wire.sent == frame(4, 1, 0, b"") + frame(6, 1, 0, b"12345678")


def test_etcd_reads_say_whether_they_may_be_stale() -> None:
    for serializable, tail in ((True, b"\x38\x01"), (False, b"\x0a\x01k")):
        channel, wire = opened(EtcdChannel(serializable=serializable))
        channel.send("get", [b"k", {}], lambda _error, _body: None)
        assert wire.sent.endswith(tail)


@pytest.mark.parametrize("channel", [RedisChannel(wait_replicas=0), EtcdChannel(serializable=False)])
def test_a_lost_connection_fails_all_that_wait(channel: RedisChannel | EtcdChannel) -> None:
    channel.connection_made(Wire())
    got: list[Any] = []
    for _ in range(3):
        channel.send("get", [b"k", {}], lambda error, _result: got.append(error.name))
    channel.connection_lost(None)
    assert got == ["connection_lost"] * 3


@given(st.integers(0, 2**40))
def test_varints_are_protobufs(number: int) -> None:
    data = varint(number)
    assert sum((byte & 127) << (7 * place) for place, byte in enumerate(data)) == number
    assert all(byte & 128 for byte in data[:-1])
    assert not data[-1] & 128


def test_frames_and_fields_have_their_published_layout() -> None:
    assert frame(0, 1, 7, b"x" * 300)[:9] == struct.pack(">I", 300)[1:] + b"\x00\x01" + struct.pack(">I", 7)
    assert field(1, b"key") == b"\x0a\x03key"
