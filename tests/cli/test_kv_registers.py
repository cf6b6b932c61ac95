"""`kv cas`, `incr`, `getset`, `resolve`, and the conditions of `set` and `del`, on real nodes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvstore import errors
from kvstore.types import Operation, OperationId

if TYPE_CHECKING:
    from tests.cli.conftest import FakeCluster, RunKv

EVERY_BYTE = bytes(range(256))
OPERATION = Operation(b"r:\xff", OperationId(bytes.fromhex("0199c1d26a8f") + bytes(10)))
KV = [sys.executable, "-m", "kvstore_cli.main"]


def value_of(kv: RunKv, key: str) -> bytes | None:
    found = kv("get", key, "-o", "raw", "-c", "linearizable")
    return found.out if found.status == 0 else None


def version_of(kv: RunKv, key: str) -> str:
    return str(json.loads(kv("get", key, "-o", "json", "-c", "linearizable").out)["version"])


@pytest.mark.e2e
@pytest.mark.xdist_group("real")
class TestRealNodes:
    """What the commands do; keys differ from test to test."""

    def test_cas_writes_over_a_value_a_version_or_nothing(self, real_kv: RunKv) -> None:
        kv = real_kv
        assert kv("cas", "r1", "1", "--expect-absent").text == "OK\n"
        assert kv("cas", "r1", "2", "--expect", "1").status == 0
        assert kv("cas", "r1", "3", "--expect-version", version_of(kv, "r1")).status == 0
        assert value_of(kv, "r1") == b"3"
        assert kv("cas", "r1x", "1", "--expect-version", "0").status == 0

    def test_a_lost_cas_says_in_one_line_what_is_there(self, real_kv: RunKv) -> None:
        kv = real_kv
        kv("set", "r2", "a\tb", "--if-absent")
        version = version_of(kv, "r2")
        for expectation in (("--expect", "b"), ("--expect-version", "1"), ("--expect-absent",)):
            for form in ("plain", "table", "raw"):
                lost = kv("cas", "r2", "x", *expectation, "-o", form)
                assert (lost.status, lost.out) == (1, b"")
                assert lost.err == f"not applied: r2 holds 'a\\tb' (version {version})\n"
        assert kv("cas", "r2none", "x", "--expect", "b").err == "not applied: there is no r2none\n"
        kv("set", "r2long", "y" * 500)
        err = kv("cas", "r2long", "x", "--expect", "b").err
        assert "yyy'... of 500 bytes (version " in err
        assert len(err) < 200
        assert value_of(kv, "r2") == b"a\tb"

    @pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
    def test_programs_get_the_same_row_either_way(self, real_kv: RunKv, form: str) -> None:
        kv, key = real_kv, f"r3{form}"
        won = kv("cas", key, "--expect-absent", "-o", form, stdin=EVERY_BYTE)
        lost = kv("cas", key, "x", "--expect", "other", "-o", form)
        assert (won.status, lost.status, won.err, lost.err) == (0, 1, "", "")
        first, second = (_row(result.text, form) for result in (won, lost))
        assert first["applied"] in (True, "True")
        assert second["applied"] in (False, "False")
        assert second["version"] == first["version"]
        assert second["value_b64"].startswith("AAECAwQF")
        assert set(first) - {"value", "value_b64"} == set(second) - {"value", "value_b64"}
        assert {"key", "version", "answered", "existed", "epoch"} <= set(first)

    def test_values_of_cas_come_from_pipes_files_and_encodings(self, real_kv: RunKv, tmp_path: Path) -> None:
        kv = real_kv
        (tmp_path / "v.bin").write_bytes(EVERY_BYTE)
        assert kv("cas", "r4", "@v.bin", "--expect-absent").status == 0
        assert value_of(kv, "r4") == EVERY_BYTE
        assert kv("cas", "r4", "-", "--expect", "@v.bin", stdin=b"\x00\n").status == 0
        assert kv("cas", "r4", "new", "--expect", "-", stdin=b"\x00\n").status == 0
        assert kv("cas", "r4", "00ff", "--expect", "6e6577", "--value-encoding", "hex").status == 0
        assert kv("cas", "r4", "@x", "--expect", "@x", "--literal").status == 1
        assert kv("cas", "r4", "-f", "v.bin", "--expect", "AP8=", "--value-encoding", "base64").status == 2
        assert kv("cas", "r4", "--expect-version", version_of(kv, "r4"), stdin=b"piped").status == 0
        assert value_of(kv, "r4") == b"piped"
        assert kv("cas", "r4", "", "--expect", "piped").status == 0
        assert kv("cas", "r4", "x", "--expect-absent").status == 1, "an empty value is a value"
        assert kv("cas", "72ff00", "v", "--expect-absent", "--key-encoding", "hex").status == 0
        assert kv("get", "cv8A", "--key-encoding", "base64").text == "v\n"

    def test_set_takes_conditions(self, real_kv: RunKv) -> None:
        kv = real_kv
        assert kv("set", "r5", "1", "--if-absent", "--ttl", "1h").text == "OK\n"
        assert 3500 < float(kv("ttl", "r5").text) <= 3600
        lost = kv("set", "r5", "2", "--if-absent")
        assert (lost.status, lost.err.startswith("not applied: r5 holds '1'")) == (1, True)
        assert kv("set", "r5", "2", "--if-value", "1").status == 0
        assert kv("set", "r5", "3", "--if-value", "1").status == 1
        version = version_of(kv, "r5")
        assert kv("set", "r5", "--if-version", version, stdin=b"\xff").status == 0
        assert kv("set", "r5", "4", "--if-version", version).status == 1
        assert value_of(kv, "r5") == b"\xff"
        won = kv("set", "r5", "5", "--if-value", "-", "-o", "table", stdin=b"\xff")
        assert won.text.startswith("OK, synced on ")
        assert won.text.endswith(f", version {version_of(kv, 'r5')}\n")

    def test_del_takes_conditions(self, real_kv: RunKv) -> None:
        kv = real_kv
        kv("set", "r6", "1", "--if-absent")
        assert kv("del", "r6", "--if-value", "2").status == 1
        assert kv("del", "r6", "--if-version", "17").status == 1
        assert value_of(kv, "r6") == b"1"
        assert kv("del", "r6", "--if-version", version_of(kv, "r6")).status == 0
        assert value_of(kv, "r6") is None
        assert kv("del", "r6", "--if-value", "1").err == "not applied: there is no r6\n"

    def test_incr_counts_and_keeps_bounds(self, real_kv: RunKv) -> None:
        kv = real_kv
        assert kv("incr", "r7").text == "1\n"
        assert kv("incr", "r7", "41").text == "42\n"
        assert kv("incr", "r7", "-2", "-o", "raw").out == b"40"
        assert json.loads(kv("incr", "r7", "-o", "json").out)["value"] == 41
        assert kv("incr", "r7", "2", "--max", "43").text == "43\n"
        above = kv("incr", "r7", "2", "--min", "0", "--max", "44")
        assert (above.status, above.out) == (1, b"")
        assert (
            above.err
            == f"not applied: r7 holds '43' (version {version_of(kv, 'r7')}), and +2 would leave 0..44\n"
        )
        assert kv("incr", "r7", "--", "-50").text == "-7\n"
        assert kv("incr", "r7", "-50", "--min", "-10").status == 1
        assert kv("incr", "p7", "3", "--period", "20").text == "3\n"
        assert kv("incr", "p7", "--period", "21").text == "1\n"
        over = kv("incr", "p7", "--period", "20")
        assert over.status == 1
        assert "period 20 is over" in over.err
        assert kv("incr", "r7new", "5", "--initial", "100", "--ttl", "1h").text == "105\n"
        assert float(kv("ttl", "r7new").text) > 3500
        kv("set", "r7text", "many")
        no_number = kv("incr", "r7text")
        assert (no_number.status, no_number.err[:13]) == (3, "error[KV-R05]")

    def test_getset_prints_what_it_replaced(self, real_kv: RunKv) -> None:
        kv = real_kv
        first = kv("getset", "r8", "-", stdin=EVERY_BYTE)
        assert (first.status, first.out, first.err) == (0, b"", "")
        second = kv("getset", "r8", "2", "-o", "raw")
        assert (second.status, second.out) == (0, EVERY_BYTE)
        assert kv("getset", "r8", "3").text == "2\n"
        row = json.loads(kv("getset", "r8new", "1", "-o", "json").out)
        assert (row["value"], row["existed"], row["applied"]) == (None, False, True)
        assert kv("getset", "r8new2", "1", "-o", "table").err == "there was nothing before\n"

    def test_resolve_says_what_became_and_makes_it_a_fact(self, real_kv: RunKv) -> None:
        kv = real_kv
        for _ in range(2):
            answer = kv("resolve", str(OPERATION))
            assert (answer.status, answer.text, answer.err) == (1, "not applied\n", "")
        row = json.loads(kv("resolve", str(OPERATION), "-o", "json").out)
        assert (row["operation"], row["applied"], row["key_b64"]) == (str(OPERATION), False, "cjr/")
        for junk in ("", "zz", "00:00", str(OPERATION)[1:]):
            wrong = kv("resolve", junk)
            assert (wrong.status, wrong.err[:13]) == (2, "error[KV-A05]"), junk

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("cas", "k", "v"), "Try: give --expect-version, --expect or --expect-absent"),
            (("cas", "k", "v", "--expect", "1", "--expect-absent"), "--expect and --expect-absent do not go"),
            (("cas", "k", "v", "--expect-version", "-1"), "-1"),
            (("cas", "k", "-", "--expect", "-"), "standard input"),
            (("set", "k", "v", "--if-absent", "--if-value", "1"), "do not go together"),
            (("set", "k", "v", "--if-absent", "-w", "2"), "do not go with a condition"),
            (("set", "k", "v", "--if-value", "1", "--durability", "always"), "do not go with a condition"),
            (("del", "a", "b", "--if-value", "1"), "a condition is for one key"),
            (("del", "a", "--if-value", "1", "--if-version", "1"), "do not go together"),
            (("incr", "k", "many"), "many"),
            (("incr", "k", "9223372036854775808"), "64 bits"),
            (("resolve",), "missing argument"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_a_wrong_command_line_changes_nothing(
        self, real_kv: RunKv, arguments: tuple[str, ...], said: str
    ) -> None:
        result = real_kv(*arguments, stdin=b"")
        assert (result.status, result.out) == (2, b"")
        assert said in result.err
        assert result.err.count("\n") == 1


def _row(text: str, form: str) -> dict[str, Any]:
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert len(rows) == 1
        return {str(name): value for name, value in rows[0].items()}
    return dict(json.loads(text))


# --- when nobody knows, and when nobody can ----------------------------------------------


def _failing(cluster: FakeCluster, verb: str, error: BaseException) -> None:
    async def fail(*_arguments: object, **_terms: object) -> None:
        raise error

    setattr(cluster, verb, fail)


@pytest.mark.parametrize(
    "error",
    [
        errors.DeadlineExceeded(timeout_ms=5000),
        errors.ConnectionLost(address="h:1", reason="reset"),
        errors.QuorumTimeout(operation="incr", needed="a majority of", acked="too few", missing="unknown"),
    ],
    ids=lambda error: error.name,
)
@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("cas", ("cas", "k", "v", "--expect", "1")),
        ("cas", ("set", "k", "v", "--if-absent")),
        ("cas", ("del", "k", "--if-value", "1")),
        ("incr", ("incr", "k")),
        ("get_and_set", ("getset", "k", "v")),
        ("resolve", ("resolve", str(OPERATION))),
        ("put", ("set", "k", "v", "-c", "linearizable")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_unresolved_change_names_its_operation(
    kv: RunKv, cluster: FakeCluster, verb: str, arguments: tuple[str, ...], error: errors.Unresolved
) -> None:
    named = type(error)(**error.fields)
    named.operation = OPERATION
    _failing(cluster, verb, named)
    result = kv(*arguments)
    assert (result.status, result.out) == (4, b"")
    assert result.err.startswith(f"error[{error.code}]: {error.message}; nobody knows yet")
    assert result.err.endswith(f"Try: kv resolve {OPERATION}\n")
    assert result.err.count("\n") == 1


def test_what_is_forgotten_is_not_asked_for_again(kv: RunKv, cluster: FakeCluster) -> None:
    forgotten = errors.Forgotten(operation="00")
    forgotten.operation = OPERATION
    _failing(cluster, "resolve", forgotten)
    result = kv("resolve", str(OPERATION))
    assert result.status == 4
    assert "Try: read the key" in result.err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NoMajority(operation="incr"), 5),
        (errors.Unavailable(operation="incr", needed=2, alive=1, down="n2 n3"), 5),
        (errors.Cancelled(operation="00"), 3),
        (errors.UnsafeRegisters(), 3),
        (errors.CannotConnect(address="h:1", reason="refused"), 4),
    ],
    ids=lambda value: value.name if isinstance(value, errors.KVError) else "",
)
def test_a_refused_change_has_its_status(
    kv: RunKv, cluster: FakeCluster, error: errors.KVError, status: int
) -> None:
    _failing(cluster, "incr", error)
    result = kv("incr", "k")
    assert (result.status, result.out) == (status, b"")
    assert f"error[{error.code}]" in result.err


def _kill(directory: Path, name: str) -> None:
    """Kill a node of `kv up --detach`, found by its data directory in its command line."""
    ending = f"{directory.name}/{name}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(word.endswith(ending) for word in (process / "cmdline").read_bytes().split(b"\0")):
                os.kill(int(process.name), signal.SIGKILL)
                return
    raise AssertionError(f"{name} does not run")


@pytest.mark.e2e
@pytest.mark.slow
def test_without_a_majority_nothing_is_changed_and_the_status_is_5(
    tmp_path: Path, free_base_port: Callable[[int], int]
) -> None:
    directory, base = tmp_path / f"own-{os.getpid()}", free_base_port(3)
    environment = {**os.environ, "KV_URL": ",".join(f"127.0.0.1:{base + at}" for at in range(3))}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*KV, *words], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    up = ("up", "--detach", "--dir", str(directory), "--base-port", str(base))
    assert run(*up).returncode == 0
    try:
        assert run("incr", "n", "5").stdout == "5\n"
        _kill(directory, "n3")
        assert run("incr", "n").stdout == "6\n", "one may be missing"
        _kill(directory, "n2")
        for words in (("incr", "n"), ("get", "n", "-c", "linearizable"), ("cas", "n", "0", "--expect", "6")):
            refused = run(*words, "--timeout", "1s")
            assert (refused.returncode, refused.stdout) == (5, ""), refused.stderr
            assert refused.stderr.startswith("error[KV-Q0")
        assert run(*up).returncode == 0
        assert run("incr", "n", "--timeout", "20s").stdout == "7\n", "what was refused was not applied"
    finally:
        run("down", "--dir", str(directory))
