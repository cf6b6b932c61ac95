"""Start and stop what is compared, each store in directories and on ports of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """How the generator speaks to a running store: one connector and options for each workload."""

    name: str
    addresses: tuple[str, ...]
    put: tuple[str, dict[str, Any]]
    get_strong: tuple[str, dict[str, Any]]
    get_weak: tuple[str, dict[str, Any]]


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on, below the range of outgoing connections, in a row."""
    for first in range(21_000 + os.getpid() % 5_000, 32_000, count):
        ports = list(range(first, first + count))
        if all(_is_free(port) for port in ports):
            return ports
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def processes(commands: Sequence[Sequence[str]], log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run commands until the block ends, their output in `log`."""
    started: list[subprocess.Popen[bytes]] = []
    with log.open("ab") as out:
        try:
            started.extend(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
                )
                for command in commands
            )
            yield started
        finally:
            for process in started:
                process.terminate()
            for process in started:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def wait_until_true(check: Sequence[str], log: Path, wanted: str = "") -> None:
    """Repeat a command until it succeeds and prints `wanted`."""
    give_up_at = time.perf_counter() + START_S
    while time.perf_counter() < give_up_at:
        done = subprocess.run(check, capture_output=True, text=True, check=False)
        if done.returncode == 0 and wanted in done.stdout:
            return
        time.sleep(0.1)
    raise RuntimeError(f"{check[0]} never became ready:\n{log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def etcd(directory: Path) -> Iterator[Target]:
    """Three etcd members, as Debian ships it; every put is fsynced by a majority."""
    ports = free_ports(6)
    clients, peers = ports[:3], ports[3:]
    names = ",".join(f"n{i}=http://127.0.0.1:{port}" for i, port in enumerate(peers))
    commands = [
        [
            "etcd",
            "--name", f"n{i}",
            "--data-dir", str(directory / f"etcd{i}"),
            "--listen-client-urls", f"http://127.0.0.1:{clients[i]}",
            "--advertise-client-urls", f"http://127.0.0.1:{clients[i]}",
            "--listen-peer-urls", f"http://127.0.0.1:{peers[i]}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{peers[i]}",
            "--initial-cluster", names,
            "--initial-cluster-state", "new",
            "--log-level", "error",
        ]
        for i in range(3)
    ]  # fmt: skip
    log = directory / "etcd.log"
    addresses = tuple(f"127.0.0.1:{port}" for port in clients)
    with processes(commands, log):
        for address in addresses:
            wait_until_true(["etcdctl", "--endpoints", address, "endpoint", "health"], log)
        yield Target(
            "etcd, 3 members",
            addresses,
            put=("rivals.etcd:connect", {}),
            get_strong=("rivals.etcd:connect", {}),
            get_weak=("rivals.etcd:connect_serializable", {}),
        )


def _redis(directory: Path, port: int, *more: str) -> list[str]:
    folder = directory / f"redis{port}"
    folder.mkdir()
    always = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
    return ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), *always, *more]


@contextlib.contextmanager
def redis_single(directory: Path) -> Iterator[Target]:
    """One Redis; every write is fsynced, by itself alone."""
    (port,) = free_ports(1)
    log = directory / "redis.log"
    with processes([_redis(directory, port)], log):
        wait_until_true(["redis-cli", "-p", str(port), "ping"], log, "PONG")
        plain = ("rivals.redis:connect", dict[str, Any]())
        yield Target("Redis, alone, fsync always", (f"127.0.0.1:{port}",), plain, plain, plain)


@contextlib.contextmanager
def redis_replicated(directory: Path) -> Iterator[Target]:
    """A primary and two replicas, all fsyncing; each write waits for one replica (WAIT 1).

    Weaker than a quorum: WAIT tells that a replica has received a write, not that it is on its disk.
    """
    ports = free_ports(3)
    log = directory / "redis.log"
    primary = _redis(directory, ports[0])
    replicas = [_redis(directory, port, "--replicaof", "127.0.0.1", str(ports[0])) for port in ports[1:]]
    with processes([primary, *replicas], log):
        for port in ports[1:]:
            wait_until_true(
                ["redis-cli", "-p", str(port), "info", "replication"], log, "master_link_status:up"
            )
        waiting = ("rivals.redis:connect_wait1", dict[str, Any]())
        yield Target("Redis, 2 replicas, WAIT 1", (f"127.0.0.1:{ports[0]}",), waiting, waiting, waiting)


def kv(*arguments: str) -> list[str]:
    """The `kv` command of the environment that runs this script."""
    return [str(Path(sys.executable).with_name("kv")), *arguments]


@contextlib.contextmanager
def ours(directory: Path, *, nodes: int = 3) -> Iterator[Target]:
    """Our nodes as `kv up` starts them; every put is fsynced by a majority."""
    base = next(p for p in range(21_000 + os.getpid() % 5_000, 31_000, 7) if _is_free_base(p, nodes))
    data = directory / "kv-data"
    start = kv("up", "--nodes", str(nodes), "--dir", str(data), "--base-port", str(base), "--detach")
    subprocess.run(start, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=START_S)
    try:
        native = "kvstore_cli.bench_native:connect"
        yield Target(
            f"kvstore, {nodes} nodes",
            tuple(f"127.0.0.1:{base + i}" for i in range(nodes)),
            put=(native, {}),
            get_strong=(native, {"c": "quorum"}),
            get_weak=(native, {"c": "one"}),
        )
    finally:
        subprocess.run(kv("down", "--dir", str(data)), check=True, stdout=subprocess.DEVNULL, timeout=START_S)


def _is_free_base(base: int, nodes: int) -> bool:
    """Whether the client ports from `base` on and the peer ports, 100 above, are free."""
    return all(_is_free(base + i + shift) for i in range(nodes) for shift in (0, 100))


def missing(*programs: str) -> list[str]:
    """Which of the programs are not installed."""
    return [name for name in programs if shutil.which(name) is None]
