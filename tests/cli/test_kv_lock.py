"""`kv lock`: real nodes, real commands, real signals."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kvstore.sync
from kvstore.client.locks import KEY_PREFIX

if TYPE_CHECKING:
    from tests.cli.conftest import RunKv

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("real")]
KV = [sys.executable, "-m", "kvstore_cli.main"]
PATIENCE_S = 20


class Locks:
    """Starts `kv lock` as a process."""

    def __init__(self, url: str) -> None:
        self._environment = {**os.environ, "KV_URL": url}
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, before: Sequence[str] = (), **more: Any) -> subprocess.Popen[str]:
        """Begin, and go on."""
        terms = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        process = subprocess.Popen([*before, *KV, "lock", *words], env=self._environment, text=True, **terms)
        self._started.append(process)
        return process

    def run(self, *words: str) -> tuple[int, str, str]:
        """Begin, and wait for the end: status, output, errors."""
        process = self.start(*words)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err

    def end(self) -> None:
        """Nothing outlives its test."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def locks(real_url: str) -> Iterator[Locks]:
    """`kv lock` on real nodes."""
    made = Locks(real_url)
    yield made
    made.end()


def sh(script: str) -> tuple[str, ...]:
    return ("--", "sh", "-c", script)


def said(process: subprocess.Popen[str]) -> str:
    """The next line of output: what the command does, so that nobody need guess how long it takes."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
    assert ready, "it says nothing"
    return process.stdout.readline().strip()


def is_gone(pid: int) -> bool:
    """Whether a process ends within a while."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        stat = Path(f"/proc/{pid}/stat")
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_the_commands_status_and_output_are_passed_on(locks: Locks) -> None:
    for status in (0, 1, 7, 255):
        assert locks.run("k1", *sh(f"echo out; echo err >&2; exit {status}")) == (status, "out\n", "err\n")
    assert locks.run("k1", *sh("kill -9 $$"))[0] == 128 + 9
    assert locks.run("k1", "--", sys.executable, "-c", "import sys; print(sys.argv)", "--ttl", "-x")[1] == (
        "['-c', '--ttl', '-x']\n"
    )


def test_the_command_knows_its_lock_and_tokens_grow(locks: Locks, real_url: str) -> None:
    told = [locks.run("k2", *sh("echo $KV_LOCK_NAME $KV_LOCK_TOKEN"))[1].split() for _ in range(3)]
    assert {name for name, _ in told} == {"k2"}
    tokens = [int(token) for _, token in told]
    assert tokens == sorted(set(tokens))
    with kvstore.sync.connect(real_url) as kv:
        assert kv.lock("k2", wait=0).acquire() > tokens[-1]
        kv.delete(KEY_PREFIX + b"k2", consistency="linearizable")


def test_two_contenders_exclude_each_other(locks: Locks, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"echo in >> {log}; sleep 0.1; echo out >> {log}"
    running = [locks.start("k3", *sh(script)) for _ in range(4)]
    assert [process.wait(PATIENCE_S) for process in running] == [0] * 4
    assert log.read_text().split() == ["in", "out"] * 4


def test_a_taken_lock_is_waited_for_only_so_long(locks: Locks) -> None:
    holder = locks.start("k4", *sh("echo held; read line"), stdin=subprocess.PIPE)
    assert said(holder) == "held"
    for wait in ("0", "200ms"):
        status, out, err = locks.run("k4", "--wait", wait, *sh("echo never"))
        assert (status, out) == (1, "")
        assert err.startswith("error[KV-R08]: lock k4 is held by somebody else; waited ")
        assert err.count("\n") == 1
    patient = locks.start("k4", "--wait", "20s", *sh("echo mine"))
    holder.communicate("go\n", timeout=PATIENCE_S)
    assert patient.communicate(timeout=PATIENCE_S)[0] == "mine\n"
    assert (holder.returncode, patient.returncode) == (0, 0)


def test_the_lease_is_renewed_beyond_its_ttl(locks: Locks) -> None:
    holder = locks.start("k5", "--ttl", "1s", *sh("echo held; sleep 2.5; echo done"))
    assert said(holder) == "held"
    time.sleep(1.7)
    assert locks.run("k5", "--wait", "0", *sh("echo never"))[0] == 1
    out, err = holder.communicate(timeout=PATIENCE_S)
    assert (holder.returncode, out, err) == (0, "done\n", "")
    assert locks.run("k5", "--wait", "0", *sh("echo free"))[1] == "free\n"


def test_a_holder_that_is_killed_blocks_others_for_its_ttl_only(locks: Locks) -> None:
    holder = locks.start("k6", "--ttl", "2s", *sh("echo $KV_LOCK_TOKEN; exec sleep 3"))
    token = int(said(holder))
    holder.kill()
    began = time.monotonic()
    assert locks.run("k6", "--wait", "0", *sh("echo never"))[0] == 1
    status, out, _ = locks.run("k6", "--wait", "20s", *sh("echo $KV_LOCK_TOKEN"))
    assert status == 0
    assert int(out) > token
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_goes_on_to_the_command_and_the_lock_is_free_after(locks: Locks, number: int) -> None:
    # The command decides: this one puts things in order and says so in its status.
    script = 'trap "echo caught; exit 9" INT TERM HUP; echo held; while :; do sleep 0.05; done'
    holder = locks.start("k7", *sh(script))
    assert said(holder) == "held"
    holder.send_signal(number)
    out, _ = holder.communicate(timeout=PATIENCE_S)
    assert (holder.returncode, out) == (9, "caught\n")
    assert locks.run("k7", "--wait", "0", *sh("echo free"))[1] == "free\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_ends_the_wait_for_a_lock(locks: Locks, number: int) -> None:
    holder = locks.start("k8", *sh("echo held; read line"), stdin=subprocess.PIPE)
    assert said(holder) == "held"
    waiter = locks.start("k8", "--wait", "1m", *sh("echo never"))
    _until_connected(waiter.pid)
    waiter.send_signal(number)
    out, err = waiter.communicate(timeout=PATIENCE_S)
    assert (waiter.returncode, out, err.strip()) == (128 + number, "", "")
    holder.communicate("go\n", timeout=PATIENCE_S)


def _until_connected(pid: int) -> None:
    """Its handlers stand before it asks for the lock: wait until it catches SIGTERM."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.02)
    raise AssertionError("it waits for nothing")


def test_a_lost_lease_ends_the_command_and_all_it_started(locks: Locks, real_kv: RunKv) -> None:
    script = """sh -c 'trap "" TERM; exec sleep 60' & echo $! $$; wait"""  # the child outlives a mere TERM
    holder = locks.start("k9", "--ttl", "1s", *sh(script))
    child, parent = map(int, said(holder).split())
    assert real_kv("del", "lock:k9", "-c", "linearizable").status == 0
    _, err = holder.communicate(timeout=PATIENCE_S)
    assert holder.returncode == 6
    assert err.startswith("error[KV-U05]: the lock k9 was lost")
    assert err.count("\n") == 1
    assert is_gone(child)
    assert is_gone(parent)


def test_a_command_that_ignores_term_is_killed_after_the_grace(locks: Locks, real_kv: RunKv) -> None:
    script = 'trap "echo not yet" TERM; echo held; while :; do sleep 0.05; done'
    holder = locks.start("k10", "--ttl", "1s", "--grace", "300ms", *sh(script))
    assert said(holder) == "held"
    assert real_kv("del", "lock:k10", "-c", "linearizable").status == 0
    out, _ = holder.communicate(timeout=PATIENCE_S)
    assert (holder.returncode, out) == (6, "not yet\n")


def test_what_somebody_else_took_meanwhile_is_not_released(locks: Locks, real_kv: RunKv) -> None:
    holder = locks.start("k11", "--ttl", "1s", *sh("echo held; exec sleep 60"))
    assert said(holder) == "held"
    assert real_kv("set", "lock:k11", "another", "-c", "linearizable").status == 0
    assert holder.wait(PATIENCE_S) == 6
    assert real_kv("get", "lock:k11", "-c", "linearizable").text == "another\n"


def test_ctrl_c_on_a_terminal_reaches_the_command_once(locks: Locks) -> None:
    count = (
        "import signal, sys, time; caught = []; signal.signal(signal.SIGINT, lambda *_: caught.append(1));"
        "print('held', flush=True); [time.sleep(0.05) for _ in range(30)]; print('caught', len(caught));"
        "sys.exit(5)"
    )
    with_terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    python = [sys.executable, "-c"]
    typing = locks.start("k12", "--", *python, count, stdin=subprocess.PIPE, before=[*python, with_terminal])
    assert typing.stdin is not None
    assert said(typing) == "held"
    typing.stdin.write("\x03")
    typing.stdin.flush()
    out, _ = typing.communicate(timeout=PATIENCE_S)
    assert (typing.returncode, "caught 1" in out) == (5, True), out


def test_a_wrong_call_is_told_and_takes_no_lock(real_kv: RunKv) -> None:
    for arguments, status, said_so in (
        (("lock", "k13"), 2, "missing argument"),
        (("lock", "k13", "--"), 2, "missing argument"),
        (("lock", "", "--", "true"), 2, "a lock needs a name"),
        (("lock", "k13", "--ttl", "0", "--", "true"), 2, "KV-A03"),
        (("lock", "k13", "--ttl", "50ms", "--", "true"), 2, "KV-A03"),
        (("lock", "k13", "--wait", "soon", "--", "true"), 2, "KV-A05"),
        (("lock", "k" * 480, "--", "true"), 2, "KV-A01"),
        (("lock", "k13", "--", "no-such-command-at-all"), 3, "no such command"),
        (("lock", "k13", "--url", "kv://127.0.0.1:1", "--", "true"), 4, "KV-N01"),
    ):
        result = real_kv(*arguments)
        assert (result.status, result.out) == (status, b""), arguments
        assert said_so in result.err
        assert result.err.count("\n") == 1
    assert real_kv("exists", "lock:k13", "-c", "linearizable").status == 1


def test_the_shell_sends_its_user_to_another_terminal(real_kv: RunKv) -> None:
    result = real_kv("shell", stdin=b"lock k14 -- true\n")
    assert result.status == 2
    assert "lock does not work in the shell" in result.err
