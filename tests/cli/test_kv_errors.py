"""Every failure is one line with a code, and every kind has its exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvstore import errors
from kvstore_cli import problems
from kvstore_cli.explain import known

if TYPE_CHECKING:
    from tests.cli.conftest import FakeCluster, RunKv

LINE = re.compile(r"error\[KV-[A-Z]\d\d\]: .+\n")


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (errors.Unavailable(operation="put", needed=2, alive=1, down="n2, n3"), 5),
        (errors.QuorumTimeout(operation="put", needed=2, acked=1, missing="n2"), 5),
        (errors.DeadlineExceeded(timeout_ms=5000), 4),
        (errors.ConnectionLost(address="h:1", reason="reset"), 4),
        (errors.CannotConnect(address="h:1", reason="connection refused"), 4),
        (errors.Crashed(reason="disk"), 4),
        (errors.DiskFull(free=1, reserve=2), 3),
        (errors.AuthFailed(), 3),
        (errors.Overloaded(what="requests", maximum=1, retry_after_ms=5), 3),
        (errors.Conflict(expected=1, got=2), 6),
        (errors.BadKey(length=0, maximum=480), 2),
        (ExceptionGroup("in a task", [ExceptionGroup("inside", [errors.DiskFull(free=1, reserve=2)])]), 3),
        (PermissionError(13, "Permission denied", "/x"), 3),
        (RuntimeError("never thought of"), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_is_one_line_with_its_exit_status(
    kv: RunKv, cluster: FakeCluster, failure: Exception, status: int
) -> None:
    cluster.failure = failure
    result = kv("set", "k", "v")
    assert (result.status, result.out) == (status, b"")
    assert LINE.fullmatch(result.err), result.err
    assert "Traceback" not in result.err


def test_a_mistake_of_ours_says_how_to_report_it(
    kv: RunKv, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.failure = ZeroDivisionError("a\nb")
    line = kv("get", "k").err
    assert "ZeroDivisionError" in line
    assert "KV_DEBUG=1" in line
    assert line.count("\n") == 1
    monkeypatch.setenv("KV_DEBUG", "1")
    assert "Traceback (most recent call last)" in kv("get", "k").err


def test_ctrl_c_is_130_and_silent(kv: RunKv, cluster: FakeCluster) -> None:
    cluster.failure = KeyboardInterrupt()
    result = kv("get", "k")
    assert (result.status, result.out, result.err.strip()) == (130, b"", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gte", "k"), "Try: kv get"),
        (("config", "chek"), "Try: kv config check"),
        (("xyzzy",), "Try: kv --help"),
        (("get",), "missing argument"),
        (("get", "a", "b"), "unexpected extra argument"),
        (("get", "a", "--consistncy", "one"), "--consistency"),
        (("get", "a", "-o", "xml"), "xml"),
        (("set", "k", "v", "--file", "f"), "both VALUE and --file"),
        (("set", "k"), "no value is given"),
        (("set", "k", "zz", "--value-encoding", "hex"), "'zz' is not hex"),
        (("get", "zz", "--key-encoding", "hex"), "'zz' is not hex"),
        (("mset", "a", "1", "b"), "'b' has no value"),
        (("scan", "a", "--prefix", "b"), "given twice"),
        (("up", "--nodes", "0"), "0"),
        (("completion", "tcsh"), "tcsh"),
        (("explain", "KV-Q09"), "Try: kv explain KV-Q"),
        (("wal", "dump"), "missing argument"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(kv: RunKv, arguments: tuple[str, ...], said: str) -> None:
    result = kv(*arguments)
    assert (result.status, result.out) == (2, b"")
    assert LINE.fullmatch(result.err), result.err
    assert said in result.err


def test_a_file_that_is_not_there_is_named(kv: RunKv) -> None:
    for arguments in (("set", "k", "@nowhere"), ("set", "k", "-f", "nowhere"), ("import", "nowhere")):
        result = kv(*arguments)
        assert result.status == 3
        assert "error[KV-U02]: nowhere: No such file" in result.err


def test_the_token_comes_from_flag_variable_or_file(
    kv: RunKv, cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvstore_cli.settings import token_of

    (tmp_path / "token").write_text("from-file\n")
    kv("get", "k")
    assert token_of(cluster.settings) is None
    monkeypatch.setenv("KV_TOKEN_FILE", str(tmp_path / "token"))
    kv("get", "k")
    assert token_of(cluster.settings) == "from-file"
    monkeypatch.setenv("KV_TOKEN", "from-env")
    kv("get", "k")
    assert token_of(cluster.settings) == "from-env"
    kv("get", "k", "--token", "from-flag")
    assert token_of(cluster.settings) == "from-flag"
    monkeypatch.delenv("KV_TOKEN")
    monkeypatch.setenv("KV_TOKEN_FILE", "/nowhere")
    with pytest.raises(problems.FileProblem):
        token_of(type(cluster.settings)())


# --- kv explain -------------------------------------------------------------------------


@pytest.mark.parametrize("code", known())
def test_every_code_is_explained(kv: RunKv, code: str) -> None:
    row = json.loads(kv("explain", code, "-o", "json").out)
    kind = known()[code]
    assert row["exit_status"] in problems.EXIT_CODES
    assert row["took_effect"] == ("no" if kind.definite else "unknown")
    text = kv("explain", code.lower()).text
    assert text.startswith(f"{code} {kind.name}\n")
    assert "what to do" in text


def test_no_error_of_the_command_shares_its_code_or_name() -> None:
    for kind in problems.OWN:
        assert kind.code not in errors.BY_CODE
        assert kind.name not in errors.BY_NAME
    assert len({kind.code for kind in problems.OWN}) == len(problems.OWN)


def test_every_error_says_what_to_try_with_its_fields_filled_in() -> None:
    names = "problem hint path reason where what directory node log nodes seconds pids verdict"
    fields = dict.fromkeys(names.split(), "X")
    for kind in problems.OWN:
        line = kind(**fields).one_line()
        assert line.startswith(f"error[{kind.code}]: ")
        assert "{" not in line


def test_an_error_is_found_by_name_too(kv: RunKv) -> None:
    assert kv("explain", "quorum-timeout").text == kv("explain", "KV-Q02").text


def test_exit_codes_are_explained(kv: RunKv) -> None:
    rows = json.loads(kv("explain", "exit-codes", "-o", "json").out)
    assert [row["status"] for row in rows] == [0, 1, 2, 3, 4, 5, 6, 130, 141]


# --- as a process -----------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.parametrize("arguments", [("get", "k"), ("import",), ("status",)], ids=" ".join)
def test_ctrl_c_ends_a_call_that_waits(arguments: tuple[str, ...]) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"kv://127.0.0.1:{deaf.getsockname()[1]}"
        waiting = subprocess.Popen(
            [sys.executable, "-m", "kvstore_cli.main", "--url", url, "--timeout", "60s", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        connection, _ = deaf.accept()
        with connection:
            connection.recv(1)
            waiting.send_signal(signal.SIGINT)
            out, err = waiting.communicate(timeout=10)
    assert (waiting.returncode, out, err.strip()) == (130, b"", b"")


@pytest.mark.e2e
def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m kvstore_cli.main config init - | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")


@pytest.mark.e2e
def test_a_closed_output_is_no_traceback() -> None:
    command = f"{sys.executable} -m kvstore_cli.main explain | true; sleep 0.1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr == ""


@pytest.mark.e2e
def test_a_full_disk_behind_the_output_is_told() -> None:
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "kvstore_cli.main", "config", "init", "-"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30,
        )  # fmt: skip
    assert done.returncode == 3
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def filled(real_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a shell calls `kv` of a real cluster that holds enough to overflow a pipe."""
    monkeypatch.setenv("KV_URL", real_url)
    lines = "".join(json.dumps({"key": f"e:{i:04}", "value": "v" * 2_000}) + "\n" for i in range(100))
    kv = f"{sys.executable} -m kvstore_cli.main"
    subprocess.run(
        ["bash", "-c", f"{kv} import"], input=lines.encode(), check=True, capture_output=True, timeout=30
    )
    return kv


def _shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.e2e
@pytest.mark.xdist_group("real")
@pytest.mark.parametrize("form", ["plain", "table"])
@pytest.mark.parametrize("arguments", ["scan e:", "export", "options", "--help", "get --help"])
def test_when_the_reader_has_gone_the_status_says_so(filled: str, arguments: str, form: str) -> None:
    # The reader is gone before anything is written.
    done = _shell(f"(sleep 0.1; exec {filled} {arguments} -o {form}) | exec true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout.strip(), done.stderr) == (str(problems.PIPE_CLOSED), "")


@pytest.mark.e2e
@pytest.mark.xdist_group("real")
def test_streams_that_are_closed_are_no_traceback(filled: str) -> None:
    done = _shell(f"{filled} set closed b >&-; {filled} get closed >&-; {filled} get nothing >&-; echo $?")
    assert (done.stdout, done.stderr) == ("1\n", "")
    for arguments in ("set closed", "import", "shell"):
        done = _shell(f"{filled} {arguments} <&-")
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.startswith("error[KV-U02]: standard input: Bad file descriptor")
    assert _shell(f"{filled} get closed 2>&-").stdout == "b\n"


@pytest.mark.e2e
@pytest.mark.xdist_group("real")
def test_what_cannot_be_written_out_is_told_with_what_to_do(filled: str) -> None:
    for arguments in ("get e:0000", "set e:0000 x", "scan e: -o table", "export", "options", "get --help"):
        done = _shell(f"{filled} {arguments} >/dev/full")
        assert (done.returncode, LINE.fullmatch(done.stderr) is not None) == (3, True), done.stderr
        assert done.stderr.startswith("error[KV-U06]: the output cannot be written: No space left on device")


@pytest.mark.e2e
@pytest.mark.parametrize(
    "arguments",
    [
        "--url kv://..:1 get a",
        "--url kv://$(printf 'a%.0s' {1..70}).com:1 get a",
        "--url $'kv://\\xff:1' get a",
        "--token $'\\xff' get a",
        "set a b --if-version 99999999999999999999999",
        "cas a b --expect-version 99999999999999999999",
    ],
)
@pytest.mark.xdist_group("real")
def test_plain_bad_input_is_no_mistake_of_ours(filled: str, arguments: str) -> None:
    done = _shell(f"{filled} {arguments}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[KV-A05]: ")
    assert LINE.fullmatch(done.stderr)
