"""What the data commands do, on the fake and on real nodes alike. Keys differ from test to test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import RunKv

EVERY_BYTE = bytes(range(256))


def test_what_was_set_is_got(both: RunKv) -> None:
    assert both("set", "d1:a", "Ada").text == "OK\n"
    assert both("get", "d1:a").out == b"Ada\n"
    assert both("set", "d1:a", "Grace").status == 0
    assert both("get", "d1:a", "-o", "raw").out == b"Grace"


def test_any_bytes_come_back_as_they_were(both: RunKv) -> None:
    assert both("set", "d2:bin", stdin=EVERY_BYTE).status == 0
    assert both("get", "d2:bin", "-o", "raw").out == EVERY_BYTE
    assert both("get", "d2:bin").out == EVERY_BYTE + b"\n"


def test_an_empty_value_is_a_value(both: RunKv) -> None:
    assert both("set", "d3:empty", "").status == 0
    assert both("get", "d3:empty", "-o", "raw").out == b""
    assert both("exists", "d3:empty").status == 0


def test_a_value_comes_from_a_dash_a_file_or_an_at_sign(both: RunKv, tmp_path: Path) -> None:
    (tmp_path / "v.bin").write_bytes(b"\x00from a file\n")
    for arguments, stdin, expected in (
        (("-",), b"piped\n", b"piped\n"),
        (("--file", "-"), b"piped too", b"piped too"),
        (("@v.bin",), None, b"\x00from a file\n"),
        (("--file", "v.bin"), None, b"\x00from a file\n"),
        (("--literal", "@v.bin"), None, b"@v.bin"),
        (("--literal", "--", "-"), None, b"-"),
        (("--value-encoding", "hex", "00ff"), None, b"\x00\xff"),
        (("--value-encoding", "base64", "AP8="), None, b"\x00\xff"),
    ):
        assert both("set", "d4:v", *arguments, stdin=stdin).status == 0, arguments
        assert both("get", "d4:v", "-o", "raw").out == expected, arguments


def test_keys_of_any_bytes_are_named_in_hex_or_base64(both: RunKv) -> None:
    assert both("set", "00ff01", "v", "--key-encoding", "hex").status == 0
    assert both("get", "AP8B", "--key-encoding", "base64").text == "v\n"
    found = both("get", "00ff01", "--key-encoding", "hex", "-o", "json")
    assert json.loads(found.out)["key"] == "00ff01"
    assert both("scan", "00ff", "--key-encoding", "hex", "-k").text == "00ff01\n"


def test_a_shell_argument_that_is_not_utf8_is_a_key_too(both: RunKv) -> None:
    # Python hands over such bytes as lone surrogates; they must reach the store as the shell gave them.
    odd = b"d5:\xff".decode("utf-8", "surrogateescape")
    assert both("set", odd, "v").status == 0
    assert both("get", b"d5:\xff".hex(), "--key-encoding", "hex").text == "v\n"


def test_a_missing_key_is_a_no_and_not_an_error(both: RunKv) -> None:
    for command in ("get", "ttl", "persist", "del", "exists"):
        result = both(command, "d6:nothing")
        assert (result.status, result.err) == (1, ""), command
    assert both("expire", "d6:nothing", "5s").status == 1
    for command in ("get", "ttl", "persist", "del"):
        assert both(command, "d6:nothing", "--missing-ok").status == 0
    assert both("expire", "d6:nothing", "5s", "--missing-ok").status == 0
    assert both("get", "d6:nothing", "-o", "json").out == b"null\n"


def test_delete_says_how_many_were_there(both: RunKv) -> None:
    both("mset", "d7:a", "1", "d7:b", "2")
    assert both("del", "d7:a", "d7:b").text == "2\n"
    gone = both("del", "d7:a")
    assert (gone.status, gone.text) == (1, "0\n")
    assert both("get", "d7:a").status == 1


def test_exists_answers_in_words_and_status(both: RunKv) -> None:
    both("set", "d8:a", "1")
    yes, no = both("exists", "d8:a"), both("exists", "d8:b")
    assert ((yes.status, yes.text), (no.status, no.text)) == ((0, "yes\n"), (1, "no\n"))


def test_a_ttl_is_given_changed_shown_and_taken_away(both: RunKv) -> None:
    both("set", "d9:a", "v", "--ttl", "90s")
    assert 80 < float(both("ttl", "d9:a").text) <= 90
    assert both("expire", "d9:a", "2h").status == 0
    assert 7100 < json.loads(both("ttl", "d9:a", "-o", "json").out)["ttl"] <= 7200
    assert both("persist", "d9:a").status == 0
    assert both("ttl", "d9:a").text == "never\n"
    assert json.loads(both("ttl", "d9:a", "-o", "json").out)["ttl"] is None
    assert both("get", "d9:a").text == "v\n"


def test_a_write_without_ttl_takes_an_earlier_ttl_away(both: RunKv) -> None:
    both("set", "d10:a", "v", "--ttl", "90s")
    both("set", "d10:a", "w")
    assert both("ttl", "d10:a").text == "never\n"


def test_several_keys_are_set_and_got_in_one_call(both: RunKv) -> None:
    assert both("mset", "d11:a", "1", "d11:b", "2", "--ttl", "1h").text == "OK\n"
    found = both("mget", "d11:b", "d11:x", "d11:a", "d11:b")
    assert (found.status, found.text) == (1, "d11:b\t2\nd11:a\t1\n")
    assert both("mget", "d11:b", "d11:x", "--missing-ok").status == 0
    assert float(both("ttl", "d11:b").text) > 3000


def test_raw_is_one_value_alone_and_of_several_a_line_each(both: RunKv) -> None:
    both("set", "raw:1", stdin=b"a\xff")
    both("set", "raw:2", "b")
    assert both("get", "raw:1", "-o", "raw").out == b"a\xff"
    assert both("mget", "raw:1", "raw:2", "-o", "raw").out == b"raw:1\ta\xff\nraw:2\tb\n"


def test_scan_lists_what_begins_with_a_prefix(both: RunKv) -> None:
    both("mset", *(word for n in range(30) for word in (f"d12:{n:02}", str(n))))
    both("set", "d12:gone", "x")
    both("del", "d12:gone")
    rows = sorted(both("scan", "d12:").text.splitlines())
    assert rows == [f"d12:{n:02}\t{n}" for n in range(30)]
    assert sorted(both("scan", "--prefix", "d12:", "-k").text.split()) == [f"d12:{n:02}" for n in range(30)]
    assert len(both("scan", "d12:", "--limit", "7", "-o", "jsonl").out.splitlines()) == 7
    assert both("scan", "d12:none").text == ""


def test_locate_names_slot_partition_and_owners(both: RunKv) -> None:
    place = json.loads(both("locate", "somekey", "-o", "json").out)
    assert (place["slot"], place["partition"]) == (11058, 172)  # the slot redis-server gives it
    assert len(place["owners"]) == 3
    assert both("locate", "foo{hash_tag}").text.startswith("2515\t39\t127.0.0.1:")


def test_a_level_can_be_chosen_for_each_call(both: RunKv) -> None:
    assert both("set", "d13:a", "v", "--consistency", "all").status == 0
    for level in ("one", "quorum", "all"):
        assert both("get", "d13:a", "-c", level).text == "v\n"
    assert both("set", "d13:a", "w", "-w", "3").status == 0
    assert both("get", "d13:a", "-r", "1").status == 0


def test_every_call_that_has_a_level_takes_the_strongest_too(both: RunKv) -> None:
    level = ("-c", "linearizable")
    assert both("set", "d15:a", "v", *level).status == 0
    assert both("get", "d15:a", *level).text == "v\n"
    assert both("exists", "d15:a", *level).text == "yes\n"
    assert both("expire", "d15:a", "2h", *level).status == 0
    assert both("persist", "d15:a", *level).status == 0
    assert both("mset", "d15:b", "1", "d15:c", "2", *level).status == 0
    assert both("mget", "d15:b", "d15:c", *level).text == "d15:b\t1\nd15:c\t2\n"
    assert both("del", "d15:a", "d15:b", *level).text == "2\n"
    assert both("get", "d15:a", *level).status == 1


@pytest.mark.e2e
@pytest.mark.xdist_group("real")
@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("get", "k" * 481), 2, "KV-A01"),
        (("set", "", "v"), 2, "KV-A01"),
        (("set", "k", "v", "--ttl", "0"), 2, "KV-A03"),
        (("set", "k", "v", "--ttl", "-5"), 2, "KV-A03"),
        (("set", "k", "v", "--ttl", "soon"), 2, "KV-A03"),
        (("set", "k", "v", "--ttl", "999999999999"), 2, "KV-A03"),
        (("expire", "k", "0s"), 2, "KV-A03"),
        (("get", "k", "--consistency", "most"), 2, "KV-A04"),
        (("get", "k", "--consistency", "linearizable", "-r", "2"), 2, "KV-A04"),
        (("scan", "--consistency", "linearizable"), 3, "KV-R01"),
        (("set", "k", "v", "-w", "4"), 2, "KV-A04"),
        (("get", "k", "--timeout", "0"), 2, "KV-A05"),
        (("get", "k", "--url", "http://x"), 2, "KV-A05"),
        (("get", "k", "--url", "kv://127.0.0.1:1"), 4, "KV-N01"),
    ],
)
def test_what_is_wrong_is_refused_with_code_and_remedy(
    real_kv: RunKv, arguments: tuple[str, ...], status: int, code: str
) -> None:
    result = real_kv(*arguments)
    assert (result.status, result.out) == (status, b""), result.err
    assert result.err.startswith(f"error[{code}]: ")
    assert "Try: " in result.err
    assert result.err.count("\n") == 1


@pytest.mark.e2e
@pytest.mark.xdist_group("real")
def test_a_value_above_the_limit_is_refused(real_kv: RunKv) -> None:
    assert real_kv("set", "d14:a", stdin=bytes(1 << 20)).status == 0
    refused = real_kv("set", "d14:b", stdin=bytes((1 << 20) + 1))
    assert refused.status == 2
    assert "error[KV-A02]" in refused.err
    endless = real_kv("set", "d14:b", stdin=bytes(9 << 20))
    assert endless.status == 2
    assert "error[KV-A02]" in endless.err
