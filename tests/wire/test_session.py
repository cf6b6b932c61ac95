"""Whatever bytes come, in whatever pieces: whole frames or one typed error, and bounded memory."""

from __future__ import annotations

import struct
import tracemalloc
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import errors, limits
from kvstore.wire.codec import Packer
from kvstore.wire.session import Frame, Session

BEFORE = limits.FRAME_BYTES_BEFORE_HELLO
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.binary(max_size=40)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
ids = st.integers(0, 0xFFFFFFFF)
frames_ = st.one_of(
    st.tuples(st.just(0), ids, st.text(max_size=10), st.lists(plain, max_size=4).map(tuple)),
    st.tuples(st.just(1), ids, st.none() | st.lists(plain, max_size=3).map(tuple), plain),
    st.tuples(st.just(2), st.text(max_size=10), st.lists(plain, max_size=3).map(tuple)),
)


def greeted() -> Session:
    session = Session()
    session.raise_limits()
    return session


def feed(session: Session, pieces: list[bytes]) -> list[Frame] | type[errors.KVError]:
    """All frames of all pieces, or the kind of the error."""
    got: list[Frame] = []
    try:
        for piece in pieces:
            got += session.receive(piece)
    except errors.ProtocolError as error:
        return type(error)
    return got


def cut(data: bytes, where: list[int]) -> list[bytes]:
    edges = [0, *sorted(at % (len(data) + 1) for at in where), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(frames_, max_size=6), st.lists(st.integers(0), max_size=8))
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(
    frames: list[Frame], where: list[int]
) -> None:
    packer = Packer()
    data = b""
    for frame in frames:
        match frame:
            case (0, msgid, method, params):
                data += packer.request(msgid, method, params)
            case (1, msgid, None, result):
                data += packer.response(msgid, result)
            case (2, method, params):
                data += packer.notification(method, params)
            case _:
                data += msgpack.packb(frame)
    session = greeted()
    assert feed(session, cut(data, where)) == frames
    assert session.mid_frame is False


def test_one_byte_at_a_time_is_enough() -> None:
    session = Session()
    data = Packer().request(7, "hello", [{"protocol": [1, 1]}])
    for byte in data[:-1]:
        assert session.receive(bytes([byte])) == []
        assert session.mid_frame
    assert session.receive(data[-1:]) == [(0, 7, "hello", ({"protocol": (1, 1)},))]
    assert not session.mid_frame


def test_many_small_frames_may_come_in_one_piece_larger_than_a_frame_may_be() -> None:
    one = Packer().request(1, "ping", [b"x" * 1_000])
    assert len(Session().receive(one * 100)) == 100
    assert len(one * 100) > BEFORE


def header(first: bytes, count: int) -> bytes:
    """The header of something with a 32-bit length."""
    return first + struct.pack(">I", count)


START = b"\x94\x00\x01\xa3get"
HOSTILE: dict[str, bytes] = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "tls": bytes.fromhex("16030100f8010000f40303"),
    "the byte that is never used": b"\xc1",
    "nil": b"\xc0",
    "a map": msgpack.packb({"method": "get"}),
    "an empty array": b"\x90",
    "three of a request": msgpack.packb([0, 1, "get"]),
    "five of a request": msgpack.packb([0, 1, "get", [], 5]),
    "unknown kind": msgpack.packb([3, 1, "get", []]),
    "true is no kind": msgpack.packb([True, 1, None, []]),
    "false is no kind": msgpack.packb([False, 1, "get", []]),
    "1.0 is no kind": msgpack.packb([1.0, 1, None, []]),
    "kind 2.0": msgpack.packb([2.0, "x", []]),
    "negative id": msgpack.packb([0, -1, "get", []]),
    "id of 33 bits": msgpack.packb([0, 1 << 32, "get", []]),
    "id of 64 bits": msgpack.packb([0, (1 << 64) - 1, "get", []]),
    "id is true": msgpack.packb([0, True, "get", []]),
    "id is text": msgpack.packb([0, "1", "get", []]),
    "method is bytes": msgpack.packb([0, 1, b"get", []]),
    "params is a map": msgpack.packb([0, 1, "get", {}]),
    "params is nil": msgpack.packb([0, 1, "get", None]),
    "error is text": msgpack.packb([1, 1, "error", None]),
    "notification with map": msgpack.packb([2, "x", {}]),
    "array bomb": START + header(b"\xdd", 0xFFFFFFFF),
    "map bomb": START + b"\x91" + header(b"\xdf", 0xFFFFFFFF),
    "17 items before hello": START + b"\xdc\x00\x11",
    "extension": START + b"\x91" + b"\xd4\x05a",
    "empty extension": START + b"\x91" + b"\xc7\x00\x05",
    "timestamp": START + b"\x91" + b"\xd6\xff\x00\x00\x00\x01",
    "method is not utf-8": b"\x94\x00\x01\xa3\xff\xfe\xfd\x90",
    "text is not utf-8": START + b"\x91\xa1\xff",
    "surrogate": START + b"\x91\xa3\xed\xa0\x80",
    "key of a map is a map": START + b"\x91\x81\x80\x01",
    "nested without end": START + b"\x91" * 2_000,
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_bytes_are_refused_whole_or_byte_by_byte(name: str) -> None:
    data = HOSTILE[name]
    whole = feed(Session(), [data])
    assert whole in (errors.Malformed, errors.FrameTooLarge)
    assert feed(Session(), [bytes([byte]) for byte in data]) is whole


LIES = {
    "bytes": START + b"\x91" + header(b"\xc6", 0xFFFFFFFF),
    "text": b"\x94\x00\x01" + header(b"\xdb", 0xFFFFFFFF),
    "extension": START + b"\x91" + header(b"\xc9", 1 << 20) + b"\x05",
    "one byte too many": START + b"\x91" + header(b"\xc6", BEFORE + 1),
}


@pytest.mark.parametrize("name", sorted(LIES))
@pytest.mark.parametrize("piece", [1 << 20, 100])
def test_a_declared_length_is_not_waited_for_beyond_a_frame(name: str, piece: int) -> None:
    """The unpacker believes it until the bytes are there; the session does not."""
    data = LIES[name]
    assert feed(Session(), [data]) == []
    data += bytes(BEFORE)
    assert (
        feed(Session(), [data[at : at + piece] for at in range(0, len(data), piece)]) is errors.FrameTooLarge
    )


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_after_an_error_the_session_stays_broken(name: str) -> None:
    session = Session()
    with pytest.raises(errors.ProtocolError) as first:
        session.receive(HOSTILE[name])
    with pytest.raises(errors.ProtocolError) as second:
        session.receive(Packer().request(1, "ping", []))
    assert second.value is first.value


@pytest.mark.parametrize("size", [BEFORE - 1, BEFORE, BEFORE + 1])
@pytest.mark.parametrize("piece", [1 << 20, 1_000, 7])
def test_the_size_of_a_frame_is_judged_alike_however_it_is_cut(size: int, piece: int) -> None:
    overhead = len(Packer().request(1, "x", [b"a" * 300, b"b" * 8_000]))
    data = Packer().request(1, "x", [b"a" * (size - overhead + 300), b"b" * 8_000])
    assert len(data) == size
    got = feed(Session(), [data[at : at + piece] for at in range(0, size, piece)])
    assert got is errors.FrameTooLarge if size > BEFORE else isinstance(got, list)


def test_a_frame_that_is_too_large_is_refused_before_it_is_all_there() -> None:
    session = greeted()
    start = b"\x94\x00\x01\xa3put\x94" + (header(b"\xc6", 5 << 20) + bytes(5 << 20)) * 2
    assert session.receive(start) == []
    with pytest.raises(errors.FrameTooLarge):
        session.receive(header(b"\xc6", 5 << 20) + bytes(2 << 20))


def peak(session: Session, data: bytes) -> int:
    """Bytes allocated at most while `data` is taken."""
    tracemalloc.start()
    try:
        feed(session, [data])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "level",
    [
        b"\x9f",
        b"\xdc\x00\x10",
        b"\xdd\x00\x00\x00\x10",
        b"\x8f\xc0",
        b"\xdc\x40\x00",
        b"\xdd\x00\x00\x40\x00",
    ],
    ids=bytes.hex,
)
def test_nested_headers_buy_a_stranger_little_memory(level: bytes) -> None:
    """The unpacker makes room at the header: 3 KB of array headers once held 80 MB."""
    assert peak(Session(), START + level * (8_000 // len(level))) < 1 << 20


def test_after_hello_the_items_of_an_array_can_be_limited_as_well() -> None:
    session = Session()
    session.raise_limits(array_items_max=limits.BATCH_KEYS_MAX)
    session.receive(Packer().request(1, "get_many", [[b"k"] * limits.BATCH_KEYS_MAX]))
    assert peak(session, START + b"\xdc\x03\xe8" * 900) < limits.FRAME_BYTES_MAX
    narrow = Session()
    narrow.raise_limits(array_items_max=10)
    with pytest.raises(errors.Malformed):
        narrow.receive(Packer().request(1, "get_many", [[b"k"] * 11]))


def test_what_came_behind_hello_is_kept_when_the_limits_rise() -> None:
    packer = Packer()
    big = packer.request(2, "put", [b"k", b"v" * 100_000])
    session = Session()
    assert [frame[1] for frame in session.receive(packer.request(1, "hello", [{}]) + big[:2_000])] == [1]
    session.raise_limits()
    assert session.receive(big[2_000:-1]) == []
    assert session.mid_frame
    assert session.receive(big[-1:]) == [(0, 2, "put", (b"k", b"v" * 100_000))]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_random_bytes_raise_protocol_errors_and_nothing_else(pieces: list[bytes]) -> None:
    for session in (Session(), greeted()):
        feed(session, pieces)


@given(frames_, st.integers(0), st.binary(min_size=1, max_size=3))
def test_a_frame_with_some_bytes_changed_raises_protocol_errors_and_nothing_else(
    frame: Frame, where: int, patch: bytes
) -> None:
    data = bytearray(msgpack.packb(frame))
    at = where % len(data)
    data[at : at + len(patch)] = patch
    for pieces in ([bytes(data)], [bytes([byte]) for byte in data]):
        feed(greeted(), pieces)


@given(st.recursive(st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=30))
def test_any_shape_is_a_frame_or_malformed(shape: Any) -> None:
    assert feed(greeted(), [msgpack.packb(shape)]) is errors.Malformed
