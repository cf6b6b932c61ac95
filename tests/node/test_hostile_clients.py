"""Whatever one connection sends, it gets one clear error, and nobody else notices."""

from __future__ import annotations

import asyncio
import struct

import msgpack
import pytest
from raw_nodes import HELLO, OPERATION, Nodes

from kvstore import limits

pytestmark = pytest.mark.slow

NESTED = msgpack.packb([0, 1, "get", []])[:-1] + b"\x91" * 5_000 + b"\x90"
FILLER = b"x" * (limits.FRAME_BYTES_BEFORE_HELLO + 1)
HOSTILE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "random": bytes(range(255, 0, -1)) * 4,
    "not an array": msgpack.packb({"method": "get"}),
    "wrong arity": msgpack.packb([0, 1, "get"]),
    "unknown kind": msgpack.packb([7, 1, "get", []]),
    "negative id": msgpack.packb([0, -1, "get", []]),
    "huge id": msgpack.packb([0, 1 << 63, "get", []]),
    "method is bytes": msgpack.packb([0, 1, b"get", []]),
    "params is a map": msgpack.packb([0, 1, "get", {}]),
    "a response": msgpack.packb([1, 1, None, None]),
    "array bomb": b"\x94\x00\x01\xa3get\xdd" + struct.pack(">I", 0xFFFFFFFF),
    "map bomb": b"\x94\x00\x01\xa3get\x91\xdf" + struct.pack(">I", 0xFFFFFFFF),
    "bytes bomb": b"\x94\x00\x01\xa3get\x91\xc6" + struct.pack(">I", 0xFFFFFFFF) + FILLER,
    "text bomb": b"\x94\x00\x01\xdb" + struct.pack(">I", 0xFFFFFFFF) + FILLER,
    "extension": msgpack.packb([0, 1, "get", [msgpack.ExtType(4, b"x")]]),
    "bad utf-8": b"\x94\x00\x01\xa3\xff\xfe\xfd\x90",
    "nested": NESTED,
    "too long before hello": msgpack.packb([0, 1, "hello", [b"x" * (limits.FRAME_BYTES_BEFORE_HELLO + 1)]]),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
async def test_broken_bytes_close_that_connection_and_disturb_nobody(one: Nodes, name: str) -> None:
    good = await one.connect(1)
    bad = await one.connect(1, hello=False)
    bad.transport.write(HOSTILE[name])
    await asyncio.wait_for(bad.closed, 5)
    assert [frame[2][0] for frame in bad.unasked] in (["malformed"], ["frame_too_large"])
    assert await good.call("put", b"k", b"v", OPERATION, {})
    assert one.status(1)["state"] == "ready"
    assert one.status(1)["counters"]["protocol_errors"] >= 1


async def test_nothing_is_served_before_hello(one: Nodes) -> None:
    raw = await one.connect(1, hello=False)
    assert (await raw.error("get", b"k"))[0] == "hello_required"
    await asyncio.wait_for(raw.closed, 5)


@pytest.mark.parametrize(
    ("hello", "name"),
    [
        ({"protocol": [1, 1], "cluster": "somebody else's"}, "wrong_cluster"),
        ({"protocol": [7, 9]}, "protocol_mismatch"),
        ({"protocol": "new"}, "protocol_mismatch"),
        ({}, "protocol_mismatch"),
    ],
)
async def test_a_hello_that_does_not_fit_is_told_why_and_closed(
    one: Nodes, hello: dict[str, object], name: str
) -> None:
    raw = await one.connect(1, hello=False)
    assert (await raw.error("hello", hello))[0] == name
    await asyncio.wait_for(raw.closed, 5)


async def test_half_a_frame_is_not_waited_for_without_end(
    one: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HELLO_TIMEOUT_MS", 50)
    silent = await one.connect(1, hello=False)
    slow = await one.connect(1)
    slow.transport.write(msgpack.packb([0, 9, "get", [b"key"]])[:-2])
    await asyncio.wait_for(silent.closed, 5)
    await asyncio.wait_for(slow.closed, 5)


async def test_a_frame_may_come_byte_by_byte(one: Nodes) -> None:
    raw = await one.connect(1)
    for byte in msgpack.packb([0, 77, "put", [b"k", b"v", OPERATION, {}]]):
        raw.transport.write(bytes([byte]))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while not raw.unasked:
            await asyncio.sleep(0.005)
    assert raw.unasked[0][:3] == (1, 77, None)


@pytest.mark.parametrize("cut", [0, 1, 700])
async def test_a_request_may_follow_hello_in_one_packet(one: Nodes, cut: int) -> None:
    raw = await one.connect(1, hello=False)
    put = msgpack.packb([0, 78, "put", [b"k", b"v" * 2_000, OPERATION, {}]])
    raw.transport.write(msgpack.packb([0, 77, "hello", [HELLO]]) + put[: len(put) - cut])
    await asyncio.sleep(0.02)
    raw.transport.write(put[len(put) - cut :])
    async with asyncio.timeout(5):
        while len(raw.unasked) < 2:
            await asyncio.sleep(0.005)
    assert [frame[:3] for frame in raw.unasked] == [(1, 77, None), (1, 78, None)]


async def test_a_client_that_does_not_read_is_cut_off(one: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OUTPUT_BYTES_MAX", 4 << 20)
    good, greedy = await one.connect(1), await one.connect(1)
    await good.call("put", b"big", b"x" * 900_000, OPERATION, {})
    greedy.transport.pause_reading()
    for _ in range(200):
        greedy.ask("get", b"big")
        await asyncio.sleep(0.002)
        if not one.local.nodes or len(one.local.nodes[1]._service.streams) == 1:  # type: ignore[index]
            break
    await good.call("put", b"k", b"v", OPERATION, {})
    buffered = max(
        stream._transport.get_write_buffer_size()  # type: ignore[union-attr]
        for stream in one.local.nodes[1]._service.streams.values()  # type: ignore[index]
    )
    assert buffered <= 5 << 20, "what waits for a client that does not read is bounded"


async def test_connections_above_the_limit_are_told_so(one: Nodes) -> None:
    node = one.local.nodes[1]  # type: ignore[index]
    object.__setattr__(node.options, "connections_max", 2)
    await one.connect(1)
    await one.connect(1)
    third = await one.connect(1, hello=False)
    await asyncio.wait_for(third.closed, 5)
    assert [frame[2][0] for frame in third.unasked] == ["overloaded"]
