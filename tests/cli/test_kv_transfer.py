"""`kv export` and `kv import`: what goes out comes in again, and mistakes name their line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import limits
from kvstore_cli import rows, transfer
from kvstore_cli.transfer import Item, Mistake

if TYPE_CHECKING:
    from tests.cli.conftest import FakeCluster, RunKv


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


ITEMS = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=20) | st.text(min_size=1, max_size=10).map(_utf8),
        st.binary(max_size=60) | st.text(max_size=30).map(_utf8),
        st.none() | st.integers(1, 253_402_300_799_999).map(lambda ms: ms / 1000),
    ),
    max_size=8,
)  # fmt: skip


def written(form: str, items: Sequence[tuple[bytes, bytes, float | None]]) -> bytes:
    """A file as `kv export` writes it."""
    held: list[bytes] = []
    sink: Any = (
        rows.Csv(held.append, transfer.COLUMNS, ("key", "value"))
        if form == "csv"
        else rows.JsonLines(held.append)
    )
    for key, value, ends in items:
        sink.add({"key": key, "value": value} | ({} if ends is None else {"expires_at": ends}))
    sink.end()
    return b"".join(held)


def read(form: str, data: bytes, pieces: int = 1) -> list[Item | Mistake]:
    """Everything the reader finds in a file."""
    reader = transfer.reader_for(form)
    lines = (
        data.splitlines(keepends=True) if b"\r" not in data else [p + b"\n" for p in data.split(b"\n")[:-1]]
    )
    step = max(1, len(lines) // pieces)
    found: list[Item | Mistake] = []
    for at in range(0, len(lines), step):
        found += reader.read(lines[at : at + step])
    return [*found, *reader.end()]


@pytest.mark.parametrize("form", transfer.FORMATS)
@given(items=ITEMS, pieces=st.integers(1, 5))
def test_whatever_is_written_is_read_back_byte_for_byte(
    form: str, items: list[tuple[bytes, bytes, float | None]], pieces: int
) -> None:
    found = read(form, written(form, items), pieces)
    assert [(i.key, i.value, i.expires_at) if isinstance(i, Item) else i for i in found] == items


@pytest.mark.parametrize("value", [b"a" * limits.VALUE_BYTES_CEILING, b"\xff" * limits.VALUE_BYTES_CEILING])
@pytest.mark.parametrize("form", transfer.FORMATS)
def test_the_largest_value_is_read_back(form: str, value: bytes) -> None:
    (found,) = read(form, written(form, [(b"k", value, None)]))
    assert isinstance(found, Item)
    assert found.value == value


def test_the_csv_can_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(written("csv", [(b"k", b'a,"b"\nc', 5.5), (b"\xff", b"\x00\xfe", None)]))
    with path.open(newline="") as opened:
        found = list(csv.DictReader(opened))
    assert found[0] == {"key": "k", "value": 'a,"b"\nc', "expires_at": "5.5", "key_b64": "", "value_b64": ""}
    assert (found[1]["key"], found[1]["key_b64"], found[1]["value_b64"]) == ("", "/w==", "AP4=")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("not json", "it is not JSON"),
        ("[1]", "it is not an object"),
        ("{}", "it has neither key nor key_b64"),
        ('{"key": "k"}', "it has neither value nor value_b64"),
        ('{"key": "", "value": "v"}', "a key has 1 to 480 bytes"),
        ('{"key": "%s", "value": "v"}' % ("k" * 481), "a key has 1 to 480 bytes"),
        ('{"key": "k", "value": 7}', "value is not text"),
        ('{"key": "k", "value": {"a": 1}}', "value is not text"),
        ('{"key": "k", "value_b64": "%%"}', "value_b64 is not base64"),
        ('{"key": "k", "value_b64": 7}', "value_b64 is not base64"),
        ('{"key": "k", "value": "v", "value_b64": "dg=="}', "both value and value_b64"),
        ('{"key": "k", "value": "\\ud800"}', "half a character"),
        ('{"key": "k", "value": "v", "expire_at": 5}', "there is no field 'expire_at'"),
        ('{"key": "k", "value": "v", "ttl": 5, "expires_at": 5}', "both expires_at and ttl"),
        ('{"key": "k", "value": "v", "ttl": 0}', "out of range"),
        ('{"key": "k", "value": "v", "ttl": -1}', "out of range"),
        ('{"key": "k", "value": "v", "ttl": true}', "out of range"),
        ('{"key": "k", "value": "v", "ttl": NaN}', "out of range"),
        ('{"key": "k", "value": "v", "ttl": "soon"}', "not a number"),
        ('{"key": "k", "value": "v", "expires_at": 1e15}', "out of range"),
        ('{"key": "k", "value": "v", "ttl": 1%s}' % ("0" * 400), "out of range"),
    ],
)
def test_a_bad_json_line_is_told_with_its_number(line: str, problem: str) -> None:
    good = '{"key": "k", "value": "v"}\n'
    found = read("jsonl", (good + "\n" + line + "\n" + good).encode())
    mistake = found[1]
    assert isinstance(mistake, Mistake)
    assert mistake.line == 3
    assert problem in mistake.problem
    assert [type(each) for each in found] == [Item, Mistake, Item], "the lines after it are read"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a,b\n1,2\n", 1, "the heading must name columns"),
        ("key,value,key\n", 1, "the heading must name columns"),
        ("value\nv\n", 1, "the heading must name columns"),
        ("key,value\nk\n", 2, "it has 1 fields, the heading 2"),
        ('key,value\nk,"a\nb"\nk,v,w\n', 4, "it has 3 fields, the heading 2"),
        ('key,value\nk,v\nk,"open\n', 3, "a quote is opened and never closed"),
        ('key,value\nk,"a"b\n', 2, "it is not CSV"),
        ("key,value\n,v\n", 2, "a key has 1 to 480 bytes"),
    ],
)
def test_a_bad_csv_line_is_told_with_its_number(text: str, line: int, problem: str) -> None:
    mistakes = [each for each in read("csv", text.encode()) if isinstance(each, Mistake)]
    assert mistakes[0].line == line
    assert problem in mistakes[0].problem


def test_bytes_that_are_not_utf8_are_told_and_not_guessed() -> None:
    assert read("jsonl", b'{"key": "\xff", "value": "v"}\n') == [Mistake(1, "it is not UTF-8")]
    assert read("csv", b"key,value\n\xff,v\n") == [Mistake(2, "it is not UTF-8")]


def test_files_of_other_systems_are_read() -> None:
    """A byte order mark, line ends of Windows, another order of columns, the rows of `kv scan -o csv`."""
    assert read("csv", b"\xef\xbb\xbfvalue,key\r\nv,k\r\n") == [Item(2, b"k", b"v")]
    assert read("csv", b"key,value,version,expires_at,key_b64,value_b64\nk,v,12,,,\n") == [
        Item(2, b"k", b"v")
    ]
    assert read("jsonl", b'{"key": "k", "value": "v"}\r\n') == [Item(1, b"k", b"v")]


# --- the commands -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_export_imported_elsewhere_gives_the_same_entries(
    kv: RunKv, cluster: FakeCluster, name: str
) -> None:
    ends = round(time()) + 3_600.25
    cluster.held = {
        b"text": (b"Ada", 1, None), b"bytes": (b"\x00\xff\n", 2, None), b"\xffkey": (b"v", 3, None),
        b"ends": (b"v", 4, ends), b"empty": (b"", 5, None), b"lines": (b'a\r\n"b",c\n', 6, None),
    }  # fmt: skip
    before = {key: (value, end) for key, (value, _, end) in cluster.held.items()}
    done = kv("export", name, "-o", "json")
    assert json.loads(done.out)["keys"] == 6
    cluster.held = {}
    assert json.loads(kv("import", name, "-o", "json").out)["keys"] == 6
    assert {key: (value, end) for key, (value, _, end) in cluster.held.items()} == before


def test_standard_output_and_input_work_as_files(kv: RunKv, cluster: FakeCluster) -> None:
    kv("mset", "a", "1", "b", "2", "x", "3")
    data = kv("export", "--prefix", "a").out
    assert [json.loads(line) for line in data.splitlines()] == [{"key": "a", "value": "1"}]
    sheet = kv("export", "-o", "csv").out
    assert len(sheet.splitlines()) == 4
    cluster.held = {}
    assert kv("import", "--format", "csv", stdin=sheet).text.startswith("imported 3 keys in ")
    assert set(cluster.held) == {b"a", b"b", b"x"}


def test_an_export_that_fails_leaves_no_file(kv: RunKv, cluster: FakeCluster, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("the last good one\n")
    cluster.held = {b"k": (b"v", 1, None)}
    cluster.failure = ConnectionResetError("gone")
    assert kv("export", "a.jsonl").status != 0
    assert (tmp_path / "a.jsonl").read_text() == "the last good one\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_expired_entries_are_left_out_and_counted(kv: RunKv, cluster: FakeCluster) -> None:
    lines = [
        {"key": "gone", "value": "v", "expires_at": time() - 1},
        {"key": "stays", "value": "v", "expires_at": time() + 100},
        {"key": "later", "value": "v", "ttl": 60},
    ]
    done = kv("import", "-o", "json", stdin="".join(json.dumps(line) + "\n" for line in lines).encode())
    assert (json.loads(done.out)["keys"], json.loads(done.out)["expired"]) == (2, 1)
    assert set(cluster.held) == {b"stays", b"later"}
    ends = cluster.held[b"later"][2]
    assert ends is not None
    assert 50 < ends - time() <= 60


def test_a_later_line_wins(kv: RunKv, cluster: FakeCluster) -> None:
    cluster.turns = 50
    lines = [{"key": f"k{n % 7}", "value": str(n)} | ({"ttl": n} if n % 3 else {}) for n in range(1, 200)]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    assert kv("import", "--batch", "5", stdin=data).status == 0
    last = {line["key"]: line["value"] for line in lines}
    assert {key.decode(): value.decode() for key, (value, _, _) in cluster.held.items()} == last


def test_a_bad_line_stops_the_import_and_what_came_before_is_written(kv: RunKv, cluster: FakeCluster) -> None:
    good = b"".join(b'{"key": "k%d", "value": "v"}\n' % n for n in range(50))
    result = kv("import", stdin=good + b"oops\n" + good.replace(b"k", b"j"))
    assert result.status == 2
    assert "error[KV-U03]: standard input:51: it is not JSON" in result.err
    assert len(cluster.held) == 50


def test_keep_going_imports_the_rest_and_says_how_much_failed(
    kv: RunKv, cluster: FakeCluster, tmp_path: Path
) -> None:
    cluster.refused_keys = {b"k3"}
    good = b"".join(b'{"key": "k%d", "value": "v"}\n' % n for n in range(5))
    (tmp_path / "f.jsonl").write_bytes(b"oops\n" * 30 + good)
    result = kv("import", "--keep-going", "f.jsonl", "-o", "json")
    assert result.status == 3
    assert json.loads(result.out)["failed"] == 31
    assert result.err.count("error[") == 20
    assert "further failures are only counted" in result.err
    assert set(cluster.held) == {b"k0", b"k1", b"k2", b"k4"}


def test_a_refused_key_is_named_by_its_line(kv: RunKv, cluster: FakeCluster) -> None:
    cluster.refused_keys = {b"k3"}
    good = b"".join(b'{"key": "k%d", "value": "v"}\n' % n for n in range(5))
    result = kv("import", stdin=good)
    assert result.status == 3
    assert "standard input:4: this entry was not written\n" in result.err
    assert "error[KV-D01]" in result.err


def test_an_import_holds_a_bounded_part_of_the_file(
    kv: RunKv, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvstore_cli import importing

    widest = 0

    class Watched(importing._Import):
        async def _write(self, items: Any) -> None:
            nonlocal widest
            widest = max(widest, len(self._in_flight))
            await super()._write(items)

    monkeypatch.setattr(importing, "_Import", Watched)
    data = b"".join(b'{"key": "k%d", "value": "v"}\n' % n for n in range(20_000))
    assert kv("import", "--batch", "100", stdin=data).status == 0
    assert len(cluster.held) == 20_000
    # Those in the queue, those being written, and the one at the door.
    assert 0 < widest <= 100 * (2 * importing._BATCHES_IN_FLIGHT + 1)


@pytest.mark.e2e
@pytest.mark.xdist_group("real")
def test_many_entries_go_in_and_out_of_a_real_cluster(real_kv: RunKv, real_url: str, tmp_path: Path) -> None:
    lines = [
        json.dumps(
            {"key": f"bulk:{n:05}", "value": f"{n}"} | ({"expires_at": 4e9 + n / 8} if n % 4 == 0 else {})
        )
        for n in range(5_000)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert json.loads(real_kv("import", "in.jsonl", "-o", "json").out)["keys"] == 5_000
    assert real_kv("export", "--prefix", "bulk:", "out.jsonl").status == 0
    assert sorted((tmp_path / "out.jsonl").read_text().splitlines()) == lines
    # Through a real pipe as well, where reading must not block the loop.
    pipe = (
        f"{sys.executable} -m kvstore_cli.main export --prefix bulk:0 --url {real_url}"
        f" | {sys.executable} -m kvstore_cli.main import --url {real_url} -o json"
    )
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["keys"] == 5_000
