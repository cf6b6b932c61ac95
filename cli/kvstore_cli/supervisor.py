"""Start the node processes of a cluster on this machine, look after them, and stop them.

Rules kept here:
- nodes run in sessions of their own, so Ctrl-C reaches us alone and we end them in order;
- a node that dies is started again, at once and then ever more slowly; one that cannot even start
  five times in a row is left alone, and the others go on;
- a child is known by `ProcessMark`, never by its bare pid.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from kvstore_cli.local_cluster import LocalCluster, Member
from kvstore_cli.problems import NodeDidNotStart, NodeDidNotStop
from kvstore_cli.processes import ProcessMark

POLL_S = 0.1
LOG_BYTES_MAX = 16 << 20
BACKOFF_S = (0.2, 1.0, 2.0, 5.0, 10.0)
STEADY_S = 30.0
"""A node that ran this long is forgiven its earlier deaths."""
STOP_S = 20.0
_ERROR_LINE = "error["

Say = Callable[[str], None]


@dataclass(slots=True)
class Child:
    """One node process of ours."""

    member: Member
    process: subprocess.Popen[bytes]
    log_from: int
    """Where this run's output begins in the log."""
    started_at: float
    deaths: int = 0
    restart_at: float | None = None
    given_up: bool = False


def command_of(cluster: LocalCluster, member: Member, config: str | None) -> list[str]:
    """The command line of a node: everything that tells it from its brothers stands there."""
    line = [
        sys.executable, "-m", "kvstore_cli.main", "server",
        "--name", member.name,
        "--data-dir", str(cluster.folder(member)),
        "--listen-host", member.host,
        "--client-port", str(member.client_port),
        "--peer-port", str(member.peer_port),
    ]  # fmt: skip
    return [*line, "--config", config] if config else line


def start(cluster: LocalCluster, member: Member, config: str | None) -> Child:
    """Start one node, its output going to its log."""
    log = cluster.log(member)
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as out:
        begin = out.tell()
        process = subprocess.Popen(  # noqa: S603  our own interpreter and command
            command_of(cluster, member, config),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    ProcessMark.of(process.pid, str(cluster.folder(member))).save(cluster.mark_file(member))
    return Child(member, process, begin, perf_counter())


def last_words(log: Path, begin: int) -> str:
    """Why a node ended, by its own log: its error line, else its last line."""
    try:
        with log.open("rb") as opened:
            opened.seek(max(begin, log.stat().st_size - (64 << 10)))
            lines = opened.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    told = [line for line in lines if line.strip()]
    return next((line for line in reversed(told) if line.startswith(_ERROR_LINE)), told[-1] if told else "")


def how_it_ended(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


class Supervisor:
    """Our node processes."""

    def __init__(self, cluster: LocalCluster, *, config: str | None, say: Say) -> None:
        self._cluster = cluster
        self._config = config
        self._say = say
        self._children: list[Child] = []
        self._stop = False

    def start(self, members: Sequence[Member]) -> None:
        """Start these nodes."""
        self._children = [start(self._cluster, member, self._config) for member in members]

    def check_started(self) -> None:
        """Raise NodeDidNotStart when one has ended already."""
        for child in self._children:
            status = child.process.poll()
            if status is not None:
                log = self._cluster.log(child.member)
                reason = last_words(log, child.log_from) or how_it_ended(status)
                raise NodeDidNotStart(
                    node=child.member.name, reason=reason.removeprefix("error"), log=str(log)
                )

    def stand_by(self) -> None:
        """Look after the nodes until SIGINT or SIGTERM."""
        before = {
            number: signal.signal(number, self._asked_to_stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            while not self._stop:
                for child in self._children:
                    self._look_at(child)
                time.sleep(POLL_S)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _asked_to_stop(self, _number: int, _frame: object) -> None:
        self._stop = True

    def _look_at(self, child: Child) -> None:
        now = perf_counter()
        if child.given_up:
            return
        if child.restart_at is not None:
            if now >= child.restart_at:
                self._restart(child)
            return
        status = child.process.poll()
        if status is None:
            return
        name = child.member.name
        lived = now - child.started_at
        child.deaths = 1 if lived >= STEADY_S else child.deaths + 1
        why = how_it_ended(status)
        words = last_words(self._cluster.log(child.member), child.log_from)
        if words.startswith(_ERROR_LINE):
            why = f"{why}, {words}"
        if child.deaths > len(BACKOFF_S):
            child.given_up = True
            self._say(f"{name} ended again ({why}); left alone, see {self._cluster.log(child.member)}")
            return
        pause = BACKOFF_S[child.deaths - 1]
        child.restart_at = now + pause
        self._say(f"{name} ended ({why}); starting it again in {pause:g} s")

    def _restart(self, child: Child) -> None:
        again = start(self._cluster, child.member, self._config)
        child.process, child.log_from, child.started_at = again.process, again.log_from, again.started_at
        child.restart_at = None
        self._say(f"{child.member.name} is started again (process {child.process.pid})")

    def stop(self) -> None:
        """Ask all to end, wait for them, and end by force whoever does not. For our own children only."""
        for child in self._children:
            if child.process.poll() is None:
                child.process.terminate()
        give_up_at = perf_counter() + STOP_S
        for child in self._children:
            try:
                child.process.wait(max(give_up_at - perf_counter(), 0.1))
            except subprocess.TimeoutExpired:
                self._say(f"{child.member.name} does not end; killing it")
                child.process.kill()
                child.process.wait()
        for child in self._children:
            self._cluster.mark_file(child.member).unlink(missing_ok=True)


def stop_marked(marks: Sequence[tuple[str, ProcessMark]], *, timeout_s: float) -> None:
    """End processes that another command started. Raises NodeDidNotStop."""
    for _, mark in marks:
        mark.send(signal.SIGTERM)
    give_up_at = perf_counter() + timeout_s
    left = list(marks)
    while left and perf_counter() < give_up_at:
        time.sleep(POLL_S / 2)
        left = [(name, mark) for name, mark in left if mark.is_alive()]
    if left:
        raise NodeDidNotStop(
            nodes=", ".join(name for name, _ in left),
            seconds=f"{timeout_s:g}",
            pids=" ".join(str(mark.pid) for _, mark in left),
        )


def our_mark() -> ProcessMark:
    """This very process."""
    return ProcessMark.of(os.getpid(), "up")
