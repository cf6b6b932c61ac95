"""docs/protocol.md says what the code does: examples byte for byte, errors line by line, limits, methods."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvstore import errors, limits
from kvstore.core import record
from kvstore.node.peer_service import PeerService
from kvstore.node.service import Service
from kvstore.types import Consistency, OperationId
from kvstore.wire import codec, messages, results
from kvstore.wire.options import _FIELDS
from kvstore.wire.session import Session

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def blocks(language: str) -> dict[str, str]:
    """The code blocks of a language, by name."""
    found = re.findall(rf"^```{language} (.+?)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert len(dict(found)) == len(found) > 0
    return dict(found)


HEX = {name: bytes.fromhex(body) for name, body in blocks("hex").items()}
PLAIN = {name: ast.literal_eval(body) for name, body in blocks("python").items()}
OPERATION = OperationId(bytes(range(16)))
VERSION = 382392319774556161
SKEY = b"\x00\x2auser:1"
RECORD = record.encode(VERSION, 1795236693540, 1, b"Ada", operation=OPERATION)  # type: ignore[arg-type]
NOT_READY = errors.NotReady(reason="it is stopping")
OPTIONS = messages.Options


def frozen(value: Any) -> Any:
    """Arrays as tuples, as a session gives them."""
    if isinstance(value, list):
        return tuple(map(frozen, value))
    return {key: frozen(each) for key, each in value.items()} if isinstance(value, dict) else value


def encoded() -> dict[str, bytes]:
    """What the code makes of the sentences above the examples."""
    packer = codec.Packer()
    found = results.Found(b"Ada", VERSION, 1795236693540, 1, (1, 2), (), True)

    def receipt(*, existed: bool) -> Any:
        return results.encode_receipt(
            version=VERSION, epoch=1, acked=(1, 2), superseded=False, existed=existed, durability=3
        )

    put = messages.encode_put(
        b"user:1", b"Ada", OPERATION, messages.encode_options(OPTIONS(ttl_ms=60_000, timeout_ms=1_950))
    )
    scan = messages.encode_options(OPTIONS(prefix=b"user:", limit=2))
    page = results.Rows([results.Row(b"user:1", b"Ada", VERSION, 0)], SKEY + b"\0", 1, (1, 2))
    one = messages.encode_options(OPTIONS(consistency=Consistency.ONE))
    many = [receipt(existed=True), results.encode_failure(NOT_READY)]
    return {
        "hello request": packer.request(
            1, "hello", messages.encode_hello(messages.Hello("example/1", "", ""))
        ),
        "put request": packer.request(2, "put", [*put, 86402000]),
        "put response": packer.response(2, receipt(existed=False)),
        "get request": packer.request(3, "get", messages.encode_get(b"user:1", one)),
        "get response": packer.response(3, results.encode_found(found)),
        "get response absent": packer.response(
            3, results.encode_found(results.Found(None, 0, 0, 1, (1, 2), (), False))
        ),
        "put_many request": packer.request(
            4, "put_many", messages.encode_put_many([(b"a", b"1"), (b"b", b"")], OPERATION, {})
        ),
        "put_many response": packer.response(4, many),
        "scan request": packer.request(5, "scan", messages.encode_scan(None, scan)),
        "scan response": packer.response(5, results.encode_rows(page)),
        "error response": packer.error_response(6, errors.BadKey(length=0, maximum=480)),
        "farewell": packer.error_response(0, errors.FrameTooLarge(maximum=16_384)),
        "peer write request": packer.request(7, "write", [1, 1_900, False, [SKEY, RECORD]]),
        "peer write response": packer.response(7, [3, b"\0"]),
        "peer read request": packer.request(8, "read", [1, 1_900, [SKEY]]),
        "peer read response": packer.response(8, [RECORD]),
    }


DECODED: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "hello request": (messages.decode_hello, messages.Hello("example/1", "", "")),
    "hello response": (lambda result: results.decode_greeting(result)["node"], 2),
    "put request": (
        messages.decode_put,
        messages.Put(b"user:1", b"Ada", OPERATION, OPTIONS(ttl_ms=60_000, timeout_ms=1_950)),
    ),
    "put response": (results.decode_receipt, results.Written(VERSION, 1, (1, 2), 0, 3, ())),
    "get request": (messages.decode_get, messages.Get(b"user:1", OPTIONS(consistency=Consistency.ONE))),
    "get response": (lambda result: results.decode_found(result).payload, b"Ada"),
    "get response absent": (lambda result: results.decode_found(result).exists, False),
    "put_many request": (
        messages.decode_put_many,
        messages.PutMany(((b"a", b"1"), (b"b", b"")), OPERATION, OPTIONS()),
    ),
    "put_many response": (
        lambda result: [type(one) for one in results.decode_many(result, 2, results.decode_receipt)],
        [results.Written, errors.NotReady],
    ),
    "scan request": (messages.decode_scan, messages.Scan(None, OPTIONS(prefix=b"user:", limit=2))),
    "scan response": (lambda result: results.decode_rows(result).cursor, SKEY + b"\0"),
    "error response": (lambda error: type(errors.from_wire(error)), errors.BadKey),
    "farewell": (lambda error: type(errors.from_wire(error)), errors.FrameTooLarge),
    "peer write request": (messages.decode_peer_write, (1, 1_900, False, (SKEY, RECORD))),
    "peer write response": (lambda result: messages.decode_peer_stored(result, 1), (3, b"\0")),
    "peer read request": (messages.decode_peer_read, (1, 1_900, (SKEY,))),
    "peer read response": (lambda result: messages.decode_peer_records(result, 1), (RECORD,)),
}


def test_every_example_is_checked_in_all_ways() -> None:
    assert HEX.keys() == PLAIN.keys() == DECODED.keys() == encoded().keys() | {"hello response"}


@pytest.mark.parametrize("name", sorted(HEX))
def test_the_literal_and_the_bytes_of_an_example_are_the_same(name: str) -> None:
    session = Session()
    session.raise_limits()
    assert session.receive(HEX[name][:-1]) == []
    assert session.mid_frame
    assert session.receive(HEX[name][-1:]) == [frozen(PLAIN[name])]
    assert not session.mid_frame


@pytest.mark.parametrize("name", sorted(encoded()))
def test_an_example_is_what_the_code_sends(name: str) -> None:
    assert HEX[name].hex(" ") == encoded()[name].hex(" ")


@pytest.mark.parametrize("name", sorted(DECODED))
def test_an_example_is_what_the_code_understands(name: str) -> None:
    frame = frozen(PLAIN[name])
    decode, meaning = DECODED[name]
    assert decode(frame[2] if "error" in name or name == "farewell" else frame[3]) == meaning


def rows(start: str) -> list[tuple[str, ...]]:
    """The rows of the tables whose lines begin so."""
    lines = [line for line in TEXT.splitlines() if line.startswith(start)]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def test_the_error_table_is_that_of_the_code() -> None:
    assert rows("| KV-") == [
        (
            kind.code,
            f"`{kind.name}`",
            "definite" if kind.definite else "indefinite",
            "yes" if kind.retryable else "no",
            str(kind.http),
            str(kind.exit_status),
        )
        for kind in errors.ALL
    ]


@pytest.mark.patches
@pytest.mark.parametrize("service", [Service, PeerService])
def test_every_method_of_a_node_has_a_line(service: type) -> None:
    served = inspect.getsource(service.__init__).split("self._methods")[1].split("}")[0]  # type: ignore[misc]
    methods = set(re.findall(r'"(\w+)":', served))
    title = "Client methods" if service is Service else "Peer methods"
    chapter = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
    described = set(re.findall(r"^\| `(\w+)` \|", chapter, flags=re.MULTILINE))
    assert methods - {"hello"} <= described
    assert described - {"hello"} <= methods | set(_FIELDS)


def test_every_option_has_a_line() -> None:
    table = TEXT.split("| option | value | meaning |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= _FIELDS.keys()


@pytest.mark.parametrize(
    "sentence",
    [
        f"at most {limits.FRAME_BYTES_BEFORE_HELLO} bytes before hello and {limits.FRAME_BYTES_MAX} after",
        f"an array {limits.ARRAY_ITEMS_BEFORE_HELLO} elements before hello",
        f"and {limits.ARRAY_ITEMS_MAX} after it, a map",
        f"a map {limits.MAP_ITEMS_MAX}",
        f"a text {limits.STRING_BYTES_MAX} bytes",
        f"within {limits.HELLO_TIMEOUT_MS} ms",
        f"{limits.IN_FLIGHT_PER_CONNECTION_MAX} requests unanswered",
        f"{limits.OUTPUT_BYTES_MAX} unsent bytes and has taken none for {limits.OUTPUT_STALL_MS} ms",
        f"at {limits.OUTPUT_BYTES_CEILING} unsent bytes",
        f"that takes it above {limits.ANSWER_BYTES_MAX} bytes",
        f"stay within {limits.ANSWER_BYTES_MAX} bytes",
        f"closed above {limits.PEER_BATCH_BYTES_MAX} bytes",
    ],
)
def test_the_limits_are_those_of_the_code(sentence: str) -> None:
    assert sentence in " ".join(TEXT.split())
