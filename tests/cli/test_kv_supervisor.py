"""Looking after node processes: restarts that slow down, giving up, and ending by force."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest

from kvstore_cli import local_cluster, supervisor
from kvstore_cli.local_cluster import LocalCluster, Member
from kvstore_cli.problems import NodeDidNotStart, NodeDidNotStop
from kvstore_cli.processes import ProcessMark
from kvstore_cli.supervisor import Supervisor

FAILS = "import sys; print('error[KV-C03]: in use', file=sys.stderr); sys.exit(3)"
SLEEPS = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    """A cluster of two whose nodes are whatever a test says."""
    return local_cluster.found(tmp_path, count=2, base_port=7401, replicas=3, partitions=16)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Say what a node's process runs."""

    def choose(program: str) -> None:
        def command(cluster: LocalCluster, member: Member, _config: str | None) -> list[str]:
            return [sys.executable, "-c", program, str(cluster.folder(member))]

        monkeypatch.setattr(supervisor, "command_of", command)

    monkeypatch.setattr(supervisor, "POLL_S", 0.01)
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.0, 0.02, 0.03))
    return choose


def wait_for_log(cluster: LocalCluster, text: str) -> None:
    """Until every node of the cluster has written something."""
    give_up_at = perf_counter() + 20
    while not all(c.exists() and text in c.read_text() for c in map(cluster.log, cluster.members)):
        assert perf_counter() < give_up_at


def test_the_command_line_tells_a_node_from_its_brothers(cluster: LocalCluster) -> None:
    line = supervisor.command_of(cluster, cluster.members[1], "c.toml")
    pairs = dict(zip(line[4::2], line[5::2], strict=True))
    assert pairs == {
        "--name": "n2", "--data-dir": str(cluster.directory / "n2"), "--listen-host": "127.0.0.1",
        "--client-port": "7402", "--peer-port": "7502", "--config": "c.toml",
    }  # fmt: skip


def test_a_node_that_never_starts_is_given_up_and_the_others_go_on(
    cluster: LocalCluster, runs: Callable[[str], None]
) -> None:
    said: list[str] = []
    runs(SLEEPS)
    looking = Supervisor(cluster, config=None, say=said.append)
    looking.start(cluster.members)
    wait_for_log(cluster, "ready")
    first, second = looking._children
    runs(FAILS)
    first.process.kill()
    give_up_at = perf_counter() + 20
    while not first.given_up:
        looking._look_at(first)
        looking._look_at(second)
        assert perf_counter() < give_up_at
    ends = [line.partition(" (")[2][:8] for line in said[::2]]
    assert ends == ["killed b", "exit sta", "exit sta", "exit sta"]
    assert "error[KV-C03]: in use" in said[-1]
    assert str(cluster.log(first.member)) in said[-1]
    assert second.process.poll() is None
    looking.stop()


def test_a_long_life_forgives_earlier_deaths(
    cluster: LocalCluster, runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(FAILS)
    said: list[str] = []
    looking = Supervisor(cluster, config=None, say=said.append)
    looking.start(cluster.members[:1])
    (child,) = looking._children
    child.process.wait()
    child.deaths = 3
    monkeypatch.setattr(supervisor, "STEADY_S", 0.0)
    looking._look_at(child)
    assert (child.deaths, child.given_up) == (1, False)


def test_a_failed_start_names_node_reason_and_log(cluster: LocalCluster, runs: Callable[[str], None]) -> None:
    runs(FAILS)
    looking = Supervisor(cluster, config=None, say=print)
    looking.start(cluster.members)
    for child in looking._children:
        child.process.wait()
    with pytest.raises(NodeDidNotStart) as failed:
        looking.check_started()
    assert failed.value.fields["node"] == "n1"
    assert "KV-C03" in failed.value.fields["reason"]
    looking.stop()


def test_only_what_this_run_wrote_counts_as_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text("error[KV-C03]: of last week\n")
    begin = log.stat().st_size
    assert supervisor.last_words(log, begin) == ""
    with log.open("a") as opened:
        opened.write("Traceback\nMemoryError\n\n")
    assert supervisor.last_words(log, begin) == "MemoryError"
    assert supervisor.last_words(tmp_path / "nowhere", 0) == ""


def test_a_large_log_is_set_aside(
    cluster: LocalCluster, runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES_MAX", 10)
    log = cluster.log(cluster.members[0])
    log.write_text("x" * 11)
    runs(FAILS)
    child = supervisor.start(cluster, cluster.members[0], None)
    child.process.wait()
    assert log.with_suffix(".log.1").read_text() == "x" * 11
    assert "KV-C03" in log.read_text()


def test_a_node_that_ignores_the_request_is_ended_by_force(
    cluster: LocalCluster, runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(STUBBORN)
    said: list[str] = []
    looking = Supervisor(cluster, config=None, say=said.append)
    looking.start(cluster.members)
    wait_for_log(cluster, "ready")
    monkeypatch.setattr(supervisor, "STOP_S", 0.05)
    looking.stop()
    assert said == ["n1 does not end; killing it", "n2 does not end; killing it"]
    assert [child.process.returncode for child in looking._children] == [-signal.SIGKILL] * 2


def test_down_names_what_did_not_stop_and_kills_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN, str(tmp_path)], stdout=subprocess.PIPE
    ) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        mark = ProcessMark.of(stubborn.pid, str(tmp_path))
        with pytest.raises(NodeDidNotStop) as failed:
            supervisor.stop_marked([("n1", mark)], timeout_s=0.2)
        assert f"kill -9 {stubborn.pid}" in failed.value.one_line()
        assert stubborn.poll() is None
        stubborn.kill()


@pytest.mark.parametrize(
    ("status", "words"), [(3, "exit status 3"), (-9, "killed by SIGKILL"), (-200, "killed by signal 200")]
)
def test_an_end_is_told_in_words(status: int, words: str) -> None:
    assert supervisor.how_it_ended(status) == words
