"""etcd as a target of the generator: unary gRPC calls, with the HTTP/2 frames written by hand.

A general gRPC client in Python costs ten times what our own channel costs, and on a small machine
that time is taken from the server; the JSON gateway makes etcd itself do more work. These frames
are what any gRPC client sends (RFC 9113, and RFC 7541 with literal header fields only), so etcd
does its usual work and the generator costs the same for every store.

Responses are not decoded further than to see that a message came: headers may be compressed with a
state that we do not keep. A stream that ends without a message is an error. Requests up to 64 KiB
only, because the server's flow-control window is not tracked.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator, Sequence
from typing import Any, cast

from kvstore import errors
from kvstore_cli.bench_load import OnReply

_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_ACK = END_STREAM = 0x1
_END_HEADERS = 0x4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WINDOW_BYTES = 1 << 30
_HEAD = struct.Struct(">HBBBI")
"""Length (16 + 8 bits), type, flags, stream."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 255, kind, flags, stream) + payload


def _literal(name_index: int, value: bytes) -> bytes:
    """A header field, its name in HPACK's static table, not indexed."""
    head = bytes([name_index]) if name_index < 15 else bytes([0x0F, name_index - 15])
    return head + bytes([len(value)]) + value


def _headers(path: bytes) -> bytes:
    """The constant header block of a gRPC request."""
    post, scheme_http = b"\x83", b"\x86"
    trailers = b"\x00\x02te\x08trailers"
    fields = _literal(4, path) + _literal(1, b"localhost") + _literal(31, b"application/grpc") + trailers
    return post + scheme_http + fields


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(tag: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(tag << 3 | 2) + varint(len(data)) + data


_PUT = _headers(b"/etcdserverpb.KV/Put")
_RANGE = _headers(b"/etcdserverpb.KV/Range")
_TXN = _headers(b"/etcdserverpb.KV/Txn")
_SERIALIZABLE = b"\x38\x01"
"""RangeRequest.serializable: answer from this member's own state."""


def encode_cas(key: bytes, revision: int, value: bytes) -> bytes:
    """A transaction: put if the key's revision is this one (0: not there), else read it."""
    target_mod = b"\x10\x02"
    compare = target_mod + field(3, key) + b"\x30" + varint(revision)
    put, get = field(2, field(1, key) + field(2, value)), field(1, field(1, key))
    return field(1, compare) + field(2, put) + field(3, get)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and byte fields of a protobuf message, one level."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        head = number()
        if head & 7 == 0:
            yield head >> 3, number()
        else:
            size = number()
            yield head >> 3, data[at : at + size]
            at += size


def decode_cas(body: bytes, params: Sequence[Any]) -> tuple[bool, tuple[int, int]]:
    """Whether it was put, and the (revision, number) the key has now."""
    fields = list(_fields(body[5:]))
    header = next(value for tag, value in fields if tag == 1)
    if any(tag == 2 and value for tag, value in fields):
        return True, (next(value for tag, value in _fields(header) if tag == 3), int(params[2]))
    for tag, response in fields:
        if tag == 3:
            for _, ranged in _fields(response):
                for inner, kv in _fields(ranged):
                    if inner == 2:
                        found = dict(_fields(kv))
                        return False, (found[3], int(found[5]))
    return False, (0, 0)


class EtcdChannel(asyncio.Protocol):
    """One connection, any number of streams."""

    def __init__(self, *, serializable: bool) -> None:
        self._range_flags = _SERIALIZABLE if serializable else b""
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._stream = -1
        self._waiting: dict[int, OnReply] = {}
        self._answers: dict[int, bytes] = {}
        self._unacknowledged = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the connection with wide windows, so that we never slow the server down."""
        self._transport = cast("asyncio.Transport", transport)
        settings = struct.pack(">HI", 4, _WINDOW_BYTES)
        self._transport.write(
            _PREFACE
            + frame(_SETTINGS, 0, 0, settings)
            + frame(_WINDOW, 0, 0, struct.pack(">I", _WINDOW_BYTES))
        )

    def send(self, method: str, params: Sequence[Any], on_reply: OnReply) -> None:
        """Translate one of our calls."""
        match method:
            case "get":
                headers, message = _RANGE, field(1, params[0]) + self._range_flags
            case "put":
                headers, message = _PUT, field(1, params[0]) + field(2, params[1])
            case "put_many":
                puts = (field(2, field(1, key) + field(2, value)) for key, value in params[0])
                headers, message = _TXN, b"".join(field(2, put) for put in puts)
            case "cas":
                headers, message = _TXN, encode_cas(*params)
            case _:
                raise errors.UnknownMethod(method=method)
        assert self._transport is not None
        self._stream = stream = self._stream + 2
        self._waiting[stream] = on_reply
        body = b"\x00" + len(message).to_bytes(4, "big") + message
        self._transport.write(
            frame(_HEADERS, _END_HEADERS, stream, headers) + frame(_DATA, END_STREAM, stream, body)
        )

    def data_received(self, data: bytes) -> None:
        """Take the whole frames out."""
        data = self._buffer + data if self._buffer else data
        at, end = 0, len(data)
        while end - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            stop = at + 9 + (high << 8 | low)
            if stop > end:
                break
            self._frame(kind, flags, stream, data[at + 9 : stop])
            at = stop
        self._buffer = data[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        assert self._transport is not None
        if kind == _DATA:
            self._answers[stream] = self._answers.get(stream, b"") + payload
            self._unacknowledged += len(payload)
            if self._unacknowledged > _WINDOW_BYTES // 2:
                self._transport.write(frame(_WINDOW, 0, 0, struct.pack(">I", self._unacknowledged)))
                self._unacknowledged = 0
        if kind in {_DATA, _HEADERS} and flags & END_STREAM:
            on_reply = self._waiting.pop(stream)
            body = self._answers.pop(stream, b"")
            if body:
                on_reply(None, body)
            else:
                on_reply(errors.Unresolved(message="etcd refused the call"), None)
        elif kind == _RST:
            self._answers.pop(stream, None)
            self._waiting.pop(stream)(errors.Unresolved(message="etcd reset the stream"), None)
        elif kind in {_SETTINGS, _PING} and not flags & _ACK:
            self._transport.write(frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind == _GOAWAY:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits."""
        lost = errors.ConnectionLost(address="etcd", reason=str(exc or "closed"))
        for stream in list(self._waiting):
            self._waiting.pop(stream)(lost, None)

    def close(self) -> None:
        """Let go of it."""
        if self._transport is not None:
            self._transport.close()


async def _open(address: str, *, serializable: bool) -> EtcdChannel:
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_connection(lambda: EtcdChannel(serializable=serializable), host, int(port))
    return channel


async def connect(address: str, _token: str) -> EtcdChannel:
    """Reads are linearizable, etcd's default."""
    return await _open(address, serializable=False)


async def connect_serializable(address: str, _token: str) -> EtcdChannel:
    """Reads are answered by the member asked."""
    return await _open(address, serializable=True)
