"""`kv up` and `kv down` with real processes: start, kill, restart, move, stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import pytest

from kvstore_cli.processes import load_mark

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KV = [sys.executable, "-m", "kvstore_cli.main"]
WAIT_S = 30.0


class Here:
    """A folder with `kv` in it; whatever it started is stopped at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._standing: list[subprocess.Popen[bytes]] = []

    def kv(
        self, *arguments: str, stdin: bytes | None = None, **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `kv` to its end."""
        return subprocess.run(
            [*KV, *arguments], cwd=self.folder, env={**os.environ, **environment}, input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None, capture_output=True, check=False, timeout=60,
        )  # fmt: skip

    def stay(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `kv` and leave it running, its output in `out` and `err`."""
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            process = subprocess.Popen(
                [*KV, *arguments], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        self._standing.append(process)
        return process

    def told(self) -> str:
        """What the command that stays has said so far."""
        return (self.folder / "out").read_text() + (self.folder / "err").read_text()

    def pid(self, name: str) -> int:
        """The process of a node."""
        mark = load_mark(self.folder / "kv-data" / name / "node.json")
        assert mark is not None
        return mark.pid

    def status(self) -> dict[str, Any]:
        """`kv status -o json`."""
        found: dict[str, Any] = json.loads(self.kv("status", "-o", "json").stdout or b"{}")
        return found

    def close(self) -> None:
        """Stop everything."""
        for process in self._standing:
            if process.poll() is None:
                process.terminate()
                process.wait(WAIT_S)
        if (self.folder / "kv-data" / "cluster.json").exists():
            self.kv("down")


def until(check: Callable[[], bool], what: str) -> None:
    """Wait for something that takes a while."""
    give_up_at = perf_counter() + WAIT_S
    while not check():
        assert perf_counter() < give_up_at, f"waited in vain for {what}"
        sleep(0.05)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    """An empty folder."""
    made = Here(tmp_path)
    yield made
    made.close()


@pytest.fixture
def base(free_base_port: Callable[[int], int]) -> str:
    """A free base port."""
    return str(free_base_port(3))


def test_a_cluster_keeps_its_data_over_down_and_up(here: Here, base: str) -> None:
    up = here.kv("up", "--detach", "--base-port", base)
    assert up.returncode == 0, up.stderr
    screen = up.stdout.decode()
    assert "3 nodes ready, each key on 3" in screen
    for number in range(3):
        assert f"127.0.0.1:{int(base) + number}" in screen
    for command in ("set hello world", "get hello", "status", "down"):
        assert f"kv {command}" in screen.replace(str(Path(sys.executable).parent) + "/", "")
    assert here.kv("set", "k", stdin=b"\x00\xff").returncode == 0
    assert here.kv("down").stdout == b"stopped n1, n2, n3\n"
    gone = here.kv("get", "k")
    assert gone.returncode == 4
    assert b"error[KV-N01]" in gone.stderr
    assert here.kv("down").stdout == b"nothing runs in ./kv-data\n"
    assert here.kv("up", "-d").returncode == 0
    assert here.kv("get", "k", "-o", "raw").stdout == b"\x00\xff"


def test_with_one_node_killed_reads_and_writes_go_on_and_up_starts_only_that_one(
    here: Here, base: str
) -> None:
    here.kv("up", "-d", "--base-port", base)
    here.kv("set", "before", "1")
    others = here.pid("n1"), here.pid("n3")
    os.kill(here.pid("n2"), signal.SIGKILL)
    for number in range(20):
        assert here.kv("set", f"k{number}", str(number)).returncode == 0
    assert here.kv("get", "before").stdout == b"1\n"
    until(lambda: here.status()["nodes"][1]["state"] == "down", "n2 to be seen down")
    sick = here.kv("status")
    assert sick.returncode == 5
    again = here.kv("up", "-d")
    assert again.returncode == 0
    assert b"n1, n3 already run" in again.stderr
    assert (here.pid("n1"), here.pid("n3")) == others
    assert here.kv("status").returncode == 0
    assert here.kv("mget", *(f"k{number}" for number in range(20)), "-c", "all").returncode == 0
    whole = here.kv("up", "-d")
    assert b"n1, n2, n3 already run" in whole.stderr


def test_with_two_nodes_down_the_answer_is_a_definite_no_quorum(here: Here, base: str) -> None:
    here.kv("up", "-d", "--base-port", base)
    here.kv("set", "k", "v")
    for name in ("n2", "n3"):
        os.kill(here.pid(name), signal.SIGKILL)
    until(lambda: [n["state"] for n in here.status()["nodes"]].count("down") == 2, "two nodes to be down")
    for command in (("set", "k", "w"), ("get", "k")):
        refused = here.kv(*command, "--timeout", "3s")
        assert refused.returncode == 5, refused.stderr
        assert b"needs 2 replicas" in refused.stderr
    assert here.kv("get", "k", "--consistency", "one").stdout == b"v\n"


def test_in_the_foreground_a_node_that_dies_is_started_again(here: Here, base: str) -> None:
    up = here.stay("up", "--base-port", base)
    until(lambda: "Ctrl-C stops all nodes" in here.told(), "the screen")
    first = here.pid("n2")
    os.kill(first, signal.SIGKILL)
    until(lambda: "n2 is started again" in here.told(), "the restart")
    assert "n2 ended (killed by SIGKILL); starting it again" in here.told()
    assert here.pid("n2") != first
    until(lambda: here.status().get("healthy", False), "all to be well again")
    second = here.kv("up")
    assert second.returncode == 0
    assert f"looked after by process {up.pid}" in second.stderr.decode()
    up.send_signal(signal.SIGINT)
    assert up.wait(WAIT_S) == 0
    assert "stopped; the data is in ./kv-data" in here.told()
    assert here.kv("down").stdout == b"nothing runs in ./kv-data\n"
    for name in ("n1", "n2", "n3"):
        assert '"event": "stopped"' in (here.folder / "kv-data" / name / "node.log").read_text()


def test_down_stops_the_one_that_looks_after_the_nodes(here: Here, base: str) -> None:
    """Were the nodes stopped one by one, it would start them again."""
    up = here.stay("up", "--base-port", base)
    until(lambda: "Ctrl-C stops all nodes" in here.told(), "the screen")
    assert here.kv("down").stdout == b"stopped n1, n2, n3\n"
    assert up.wait(WAIT_S) == 0
    assert "started again" not in here.told()


def test_other_ports_take_the_data_along(here: Here, base: str, free_base_port: Callable[[int], int]) -> None:
    here.kv("up", "-d", "--base-port", base)
    here.kv("set", "k", "v")
    other = str(free_base_port(3))
    running = here.kv("up", "-d", "--base-port", other)
    assert (running.returncode, b"error[KV-C11]" in running.stderr) == (3, True)
    here.kv("down")
    assert here.kv("up", "-d", "--base-port", other).returncode == 0
    assert here.kv("get", "k", "--url", f"kv://127.0.0.1:{other}").stdout == b"v\n"
    assert {node["epoch"] for node in here.status()["nodes"]} == {2}


def test_a_taken_port_is_named_before_anything_starts(here: Here, base: str) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(base) + 102))
        taken.listen()
        refused = here.kv("up", "-d", "--base-port", base)
    assert refused.returncode == 3
    assert f"error[KV-C02]: 127.0.0.1:{int(base) + 102} is taken".encode() in refused.stderr
    assert not list(here.folder.glob("kv-data/*/node.log"))


def test_fresh_forgets_only_when_told_to(here: Here, base: str) -> None:
    here.kv("up", "-d", "--base-port", base)
    here.kv("set", "k", "v")
    assert here.kv("up", "-d", "--fresh", "--yes").returncode == 3  # it runs
    here.kv("down")
    (here.folder / "kv-data" / "notes.txt").write_text("mine")
    asked = here.kv("up", "-d", "--fresh")
    assert (asked.returncode, b"error[KV-U04]" in asked.stderr) == (3, True)
    assert here.kv("up", "-d", "--fresh", "--yes", "--base-port", base, "--nodes", "1").returncode == 0
    assert here.kv("get", "k").returncode == 1
    assert (here.folder / "kv-data" / "notes.txt").read_text() == "mine"
    assert not (here.folder / "kv-data" / "n2").exists()


def test_another_number_of_nodes_is_refused_with_the_ways_out(here: Here, base: str) -> None:
    here.kv("up", "-d", "--nodes", "1", "--base-port", base)
    refused = here.kv("up", "-d", "--nodes", "5")
    assert refused.returncode == 2
    assert b"has 1 nodes" in refused.stderr
    assert b"--fresh" in refused.stderr


def test_a_node_that_cannot_start_is_told_with_its_reason_and_the_others_are_stopped(
    here: Here, base: str
) -> None:
    here.kv("up", "-d", "--base-port", base)
    here.kv("down")
    identity = here.folder / "kv-data" / "n2" / "identity.json"
    identity.write_text(identity.read_text().replace('"format": 1', '"format": 99'))
    refused = here.kv("up", "-d")
    assert refused.returncode == 3
    assert b"error[KV-C12]: n2 did not start" in refused.stderr
    assert b"KV-C05" in refused.stderr
    assert b"n2/node.log" in refused.stderr
    assert here.kv("down").stdout == b"nothing runs in ./kv-data\n"


def test_down_never_signals_a_stranger(here: Here, base: str) -> None:
    here.kv("up", "-d", "--nodes", "1", "--base-port", base)
    here.kv("down")
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        mark = {"pid": stranger.pid, "started": "1", "word": "kv-data/n1"}
        (here.folder / "kv-data" / "n1" / "node.json").write_text(json.dumps(mark))
        assert here.kv("down").stdout == b"nothing runs in ./kv-data\n"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_options_reach_every_node_and_mistakes_are_told_once(here: Here, base: str) -> None:
    wrong = here.kv("up", "-d", "--base-port", base, KV_SYNC="never")
    assert wrong.returncode == 2
    assert wrong.stderr.count(b"error[") == 1
    assert here.kv("up", "-d", "--base-port", base, KV_SYNC="os", KV_CLIENT_TOKEN="secret").returncode == 0
    assert here.kv("get", "k").returncode == 3  # AuthFailed
    told = here.kv("set", "k", "v", "-o", "json", KV_TOKEN="secret")
    assert json.loads(told.stdout)["durability"] == "os"


def test_the_log_of_a_node_can_be_looked_at(here: Here, base: str) -> None:
    here.kv("up", "-d", "--nodes", "1", "--base-port", base)
    here.kv("set", "walkey", "v" * 10)
    here.kv("down")
    rows = [
        json.loads(line) for line in here.kv("wal", "dump", "kv-data/n1", "-o", "jsonl").stdout.splitlines()
    ]
    mine = [row for row in rows if row["key"] == "walkey"]
    assert [(row["kind"], row["bytes"]) for row in mine] == [("value", 10)]
    fine = here.kv("wal", "verify", "kv-data/n1")
    assert fine.returncode == 0
    segment = here.folder / "kv-data" / "n1" / "wal" / mine[0]["segment"]
    data = bytearray(segment.read_bytes())
    data[data.index(b"walkey")] ^= 1
    segment.write_bytes(data)
    broken = here.kv("wal", "verify", "kv-data/n1", "-o", "json")
    assert json.loads(broken.stdout)[-1]["verdict"] in ("torn", "corrupt")
    assert broken.stderr
    missing = here.kv("wal", "verify", "nowhere")
    assert (missing.returncode, b"error[KV-C06]" in missing.stderr) == (3, True)


def test_a_single_server_needs_no_file_and_holds_its_directory(
    here: Here, free_port: Callable[[], int]
) -> None:
    port, peer = str(free_port()), str(free_port())
    node = here.stay("server", "--client-port", port, "--peer-port", peer)
    url = f"kv://127.0.0.1:{port}"
    until(lambda: here.kv("set", "k", "v", "--url", url).returncode == 0, "the node to serve")
    second = here.kv("server", "--client-port", str(free_port()), "--peer-port", str(free_port()))
    assert (second.returncode, b"error[KV-C03]: ./kv-data is in use" in second.stderr) == (3, True)
    taken = here.kv("server", "--data-dir", "d2", "--client-port", port, "--peer-port", str(free_port()))
    assert (taken.returncode, f"error[KV-C02]: 127.0.0.1:{port}".encode() in taken.stderr) == (3, True)
    foreign = here.kv("server", "--cluster-id", "0" * 32)
    assert (foreign.returncode, b"error[KV-C0" in foreign.stderr) == (3, True)
    node.send_signal(signal.SIGTERM)
    assert node.wait(WAIT_S) == 0
    node = here.stay("server", "--client-port", port, "--peer-port", peer)
    until(lambda: here.kv("get", "k", "--url", url).stdout == b"v\n", "the data to be back")
