"""docs/protocol.md says what the code does: examples byte for byte, errors line by line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvstore import errors
from kvstore.wire import codec
from kvstore.wire.session import Session

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = {
    name: bytes.fromhex(body)
    for name, body in re.findall(r"^```hex (.+?)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
}
OPERATION = bytes(range(16))
VERSION = 382392319774556161


def made() -> dict[str, bytes]:
    """What the code makes of the sentences above the examples."""
    packer = codec.Packer()
    return {
        "request put": packer.request(1, "put", [b"user:1", b"Ada", OPERATION, {"ttl": 60_000}]),
        "response put": packer.response(1, [VERSION, 1, [1, 2], 0, 3, []]),
        "request get": packer.request(2, "get", [b"user:1", {}]),
        "response get": packer.response(2, [b"Ada", VERSION, 1795236693540, 1, [1, 2], [], True]),
        "error": packer.error_response(3, errors.BadKey(length=0, maximum=480)),
    }


def test_all_examples_are_in_the_document() -> None:
    assert sorted(EXAMPLES) == sorted(made())


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_is_what_the_code_sends(name: str) -> None:
    assert EXAMPLES[name].hex(" ") == made()[name].hex(" ")


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_is_a_whole_frame(name: str) -> None:
    session = Session()
    assert session.receive(EXAMPLES[name][:-1]) == []
    assert session.mid_frame
    assert len(session.receive(EXAMPLES[name][-1:])) == 1
    assert not session.mid_frame


def test_the_error_table_is_that_of_the_code() -> None:
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in TEXT.splitlines()
        if line.startswith("| KV-")
    ]
    assert rows == [
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
