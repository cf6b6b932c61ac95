"""The forms of output: what people see, and what programs can rely on."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from kvstore_cli.main import cli
from kvstore_cli.settings import FORMATS, NAMES

if TYPE_CHECKING:
    from tests.cli.conftest import FakeCluster, RunKv


def every_command(
    group: click.Group = cli, path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], click.Command]]:
    """All commands with their paths, those of groups inside too."""
    ctx = click.Context(group)
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += every_command(command, (*path, name))
        else:
            found.append(((*path, name), command))
    return found


def _path_of(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else ""


@pytest.mark.parametrize(
    ("path", "command"),
    every_command(),
    ids=_path_of,
)
def test_every_command_takes_the_global_flags(path: tuple[str, ...], command: click.Command) -> None:
    del path
    names = {str(param.name) for param in command.params}
    assert set(NAMES) <= names


def test_a_global_flag_may_stand_before_or_behind_the_command(kv: RunKv, cluster: FakeCluster) -> None:
    for arguments in (
        ("--url", "kv://h:1", "--timeout", "2s", "get", "k"),
        ("get", "k", "--url", "kv://h:1", "--timeout", "2s"),
        ("get", "k", "--url", "h:1", "--timeout", "2s"),
        ("--url", "kv://other:1", "--timeout", "9s", "get", "--url", "kv://h:1", "--timeout", "2s", "k"),
    ):
        kv(*arguments)
        assert (cluster.settings.address, cluster.settings.deadline_ms) == ("kv://h:1", 2_000)


def test_a_flag_beats_its_variable(kv: RunKv, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KV_URL", "kv://from-env:1")
    monkeypatch.setenv("KV_CONSISTENCY", "one")
    kv("get", "k")
    assert (cluster.settings.address, cluster.levels[-1]) == ("kv://from-env:1", "one")
    kv("get", "k", "--url", "kv://flag:1", "-c", "all")
    assert (cluster.settings.address, cluster.levels[-1]) == ("kv://flag:1", "all")
    kv("--url", "kv://before:1", "get", "k")
    assert cluster.settings.address == "kv://before:1"


def test_the_cluster_in_kv_data_is_found_without_a_flag(
    kv: RunKv, cluster: FakeCluster, tmp_path: Path
) -> None:
    kv("get", "k")
    assert cluster.settings.address == "kv://127.0.0.1:7401"
    nodes = [{"host": "127.0.0.1", "client_port": port} for port in (9001, 9002)]
    (tmp_path / "kv-data").mkdir()
    (tmp_path / "kv-data" / "cluster.json").write_text(json.dumps({"nodes": nodes}))
    kv("get", "k")
    assert cluster.settings.address == "kv://127.0.0.1:9001,127.0.0.1:9002"
    (tmp_path / "kv-data" / "cluster.json").write_text("{half")
    kv("get", "k")
    assert cluster.settings.address == "kv://127.0.0.1:7401"


# --- forms ------------------------------------------------------------------------------


def test_json_has_everything_and_bytes_in_base64(kv: RunKv) -> None:
    kv("set", "k", "v", "--ttl", "1h")
    row = json.loads(kv("get", "k", "-o", "json").out)
    assert set(row) == {"key", "value", "version", "expires_at", "answered", "repaired", "epoch"}
    assert (row["key"], row["value"], row["answered"]) == ("k", "v", [1, 2])
    kv("set", "k", stdin=b"\xff")
    row = json.loads(kv("get", "k", "-o", "json").out)
    assert row["value_b64"] == "/w=="
    assert "value" not in row


def test_a_scan_has_the_same_rows_in_every_form(kv: RunKv) -> None:
    kv("mset", "a", "1", "b", "two words", "c", 'quote " comma , end')
    kv("set", "d", stdin=b"\xff\n")
    array = json.loads(kv("scan", "-o", "json").out)
    lines = [json.loads(line) for line in kv("scan", "-o", "jsonl").out.splitlines()]
    table = list(csv.DictReader(io.StringIO(kv("scan", "-o", "csv").text)))
    assert array == lines
    assert sorted(row["key"] for row in array) == ["a", "b", "c", "d"]
    for row, flat in zip(array, table, strict=True):
        assert flat["key"] == row["key"]
        assert flat["value"] == row.get("value", "")
        assert flat["value_b64"] == row.get("value_b64", "")
    assert sorted(kv("scan", "-o", "plain").text.splitlines())[3] == "d\t\\xff\\n"
    assert b"d\t\xff\n\n" in kv("scan", "-o", "raw").out
    assert json.loads(kv("scan", "none", "-o", "json").out) == []


def test_json_rows_of_any_number_are_one_document(kv: RunKv, cluster: FakeCluster) -> None:
    cluster.held = {f"k{n:06}".encode(): (b"v" * 50, n, None) for n in range(3_000)}
    assert len(json.loads(kv("scan", "-o", "json").out)) == 3_000
    assert len(kv("scan", "-o", "csv").out.splitlines()) == 3_001
    assert len(kv("scan", "-o", "table").out.splitlines()) == 3_001


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "k", "v"), ("get", "k"), ("mget", "k"), ("scan",), ("locate", "k"), ("exists", "k"),
        ("ttl", "k"), ("status",), ("version",), ("options",), ("explain",),
        ("explain", "KV-Q02"), ("config", "show"),
        ("mset", "a", "1"), ("del", "k"), ("expire", "k", "1s"), ("persist", "k"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_has_every_form(kv: RunKv, arguments: tuple[str, ...], form: str) -> None:
    kv("set", "k", "v")
    result = kv(*arguments, "-o", form)
    assert (result.status, result.err) in ((0, ""), (0, "1 key\n"))
    assert result.out
    if form == "json":
        json.loads(result.out)
    if form == "jsonl":
        rows: list[Any] = [json.loads(line) for line in result.out.splitlines()]
        assert rows
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(result.text), strict=True))
        assert rows
        assert None not in rows[0]


def test_auto_is_a_table_on_a_terminal_and_plain_in_a_pipe(kv: RunKv) -> None:
    kv("set", "key", "v")
    assert kv("mget", "key").text == "key\tv\n"
    shown = kv("mget", "key", "--color", "never", tty=True).text.splitlines()
    assert [line.split() for line in shown] == [["key", "value"], ["key", "v"]]


def test_a_terminal_never_gets_control_characters_out_of_a_value(kv: RunKv) -> None:
    """A value can hold an escape sequence that renames the window, or worse."""
    kv("set", "k", stdin=b"\x1b]0;owned\x07\xff")
    kv("set", "b", stdin="\u202etxet".encode())
    for arguments in (("get", "k"), ("mget", "k", "b"), ("scan",), ("get", "b")):
        out = kv(*arguments, "--color", "never", tty=True).out
        assert b"\x1b" not in out
        assert b"\x07" not in out
        assert "\u202e".encode() not in out
        assert b"\\x1b]0;owned" in out or b"\\u202etxet" in out
    assert kv("get", "k", "-o", "raw", tty=True).out == b"\x1b]0;owned\x07\xff"


def test_text_of_several_lines_stays_readable_on_a_terminal(kv: RunKv) -> None:
    kv("set", "k", "one\ntwo\tä")
    assert kv("get", "k", tty=True).text == "one\ntwo\tä\n"


def test_people_get_words_where_shells_get_little(kv: RunKv) -> None:
    assert kv("set", "k", "v", "--ttl", "3h", tty=True).text == "OK, synced on 2 nodes\n"
    assert kv("ttl", "k", tty=True).text.startswith("02:59:5")
    assert kv("del", "k", tty=True).text == "deleted 1 of 1\n"
    missing = kv("get", "k", tty=True)
    assert (missing.status, missing.out, missing.err) == (1, b"", "no such key: k\n")


def test_a_write_that_lost_to_a_newer_one_says_so(kv: RunKv, cluster: FakeCluster) -> None:
    cluster.superseded = True
    result = kv("set", "k", "v")
    assert result.status == 0
    assert "a newer write was already there" in result.err


def test_colour_only_where_it_can_be_seen_and_is_wanted(kv: RunKv, monkeypatch: pytest.MonkeyPatch) -> None:
    def coloured(*flags: str, tty: bool) -> bool:
        return b"\x1b[" in kv("status", "-o", "table", *flags, tty=tty).out

    assert coloured(tty=True)
    assert not coloured(tty=False)
    assert coloured("--color", "always", tty=False)
    assert not coloured("--color", "never", tty=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured(tty=True)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not coloured(tty=True)
