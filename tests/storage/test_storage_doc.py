"""docs/storage.md describes these bytes: its tables and its example are parsed and compared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kvstore.core import record as records
from kvstore.storage import lmdb_engine, segment, tail
from kvstore.storage.engine import Mark
from kvstore.types import Kind, Version

DOCUMENT = (Path(__file__).parents[2] / "docs" / "storage.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def example() -> dict[str, Any]:
    loaded = json.loads(block("json"))
    assert isinstance(loaded, dict)
    return loaded


def example_bytes() -> bytes:
    lines = [line.partition("  ") for line in block("hex").splitlines()]
    assert [int(offset, 16) for offset, _, _ in lines] == list(range(0, 16 * len(lines), 16))
    return bytes.fromhex(" ".join(digits for _, _, digits in lines))


def table(name: str) -> list[tuple[int, int, str]]:
    part = DOCUMENT.split(f"<!-- table: {name} -->\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (.*) \|$", part, flags=re.MULTILINE)
    return [(int(offset), int(size), field) for offset, size, field in rows]


def encoded(given: dict[str, Any]) -> bytes:
    """What the code writes for the values of the example."""
    secret = bytes.fromhex(given["secret"])
    header = segment.SegmentHeader(
        given["segment"],
        given["first_sequence"],
        segment.cluster_fingerprint(given["cluster_id"]),
        given["node"],
        segment.make_salt(secret, given["segment"], given["first_sequence"], given["chain"]),
        given["chain"],
    )
    entries = {
        entry["partition"].to_bytes(2, "big") + entry["key"].encode(): records.encode(
            Version(entry["version"]), entry["expires_ms"], Kind(entry["kind"]), entry["payload"].encode()
        )
        for entry in given["entries"]
    }
    payload = segment.encode_batch(given["ceiling"], given["keys"], given["tombstones"], entries)
    record, _ = segment.encode_record(
        payload, sequence=given["first_sequence"], synced=given["synced"], salt_crc=header.salt_crc
    )
    return header.encode() + record


def test_the_code_writes_the_bytes_of_the_example() -> None:
    assert encoded(example()).hex(" ") == example_bytes().hex(" ")


def test_the_code_reads_the_bytes_of_the_example() -> None:
    data, given = example_bytes() + bytes(100), example()
    header = segment.decode_header(data, "example")
    found, end = tail.read(data, header, is_last=True)
    assert isinstance(found, tail.Found)
    batch = segment.decode_batch(found.payload)
    assert (batch.ceiling, batch.keys, batch.tombstones) == (
        given["ceiling"],
        given["keys"],
        given["tombstones"],
    )
    assert [skey[2:].decode() for skey, _ in batch.entries] == [entry["key"] for entry in given["entries"]]
    assert [records.version_of(r) for _, r in batch.entries] == [
        entry["version"] for entry in given["entries"]
    ]
    assert [records.payload_of(r).decode() for _, r in batch.entries] == [
        e["payload"] for e in given["entries"]
    ]
    assert isinstance(end, tail.End)
    assert (end.verdict, end.offset) == (tail.Verdict.CLEAN, len(example_bytes()))


def test_the_offsets_named_below_the_example_are_right() -> None:
    data = example_bytes()
    first = segment.SEGMENT_HEADER_BYTES + segment.FRAME_BYTES + segment.BATCH_BYTES
    key_len, record_len = data[first + 1], data[first + 5]
    second = first + segment.ENTRY_BYTES + key_len + record_len
    sentence = DOCUMENT.split("`00..3f` is the segment header")[1].split("\n\n")[0]
    assert f"`60..{first - 1:02x}`" in sentence
    assert re.search(rf"begins at\s+`{first:02x}`", sentence)
    assert f"the second at `{second:02x}`" in sentence
    assert "three bytes `a5`" in sentence
    assert data.endswith(b"\xa5\xa5\xa5")
    assert not data.endswith(b"\xa5" * 4)


@pytest.mark.parametrize(
    ("name", "layout", "size"),
    [
        ("segment header", segment._SEGMENT.format, segment.SEGMENT_HEADER_BYTES),
        ("record", segment._FRAME.format, segment.FRAME_BYTES),
        ("batch", segment._BATCH.format, segment.BATCH_BYTES),
        ("entry", segment._ENTRY.format, segment.ENTRY_BYTES),
        ("stored record", records._HEADER.format, records.HEADER_BYTES),
        ("mark", lmdb_engine._MARK.format, len(lmdb_engine._encode_mark(Mark()))),
    ],
)
def test_the_byte_tables_are_those_of_the_code(name: str, layout: str, size: int) -> None:
    rows = table(name)
    widths = {"Q": 8, "I": 4, "H": 2, "B": 1}
    fields: list[int] = []
    for count, letter in re.findall(r"(\d*)([QIHBsx])", layout):
        fields += [int(count)] if letter in "sx" else [widths[letter]] * int(count or 1)
    assert [width for _, width, _ in rows] == fields
    assert [offset for offset, _, _ in rows] == [sum(fields[:at]) for at in range(len(fields))]
    assert sum(fields) == size


def test_a_change_of_one_byte_would_be_noticed() -> None:
    """The comparison's negative control."""
    for field in ("ceiling", "keys", "first_sequence", "synced", "node", "chain"):
        assert encoded(example() | {field: example()[field] + 1}) != example_bytes()
    assert encoded(example() | {"secret": "ff"}) != example_bytes()
