"""Real processes, killed the hard way: clients notice nothing, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvstore
import kvstore.sync

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
KV = [sys.executable, "-m", "kvstore_cli.main"]


class Detached:
    """A cluster of `kv up --detach`."""

    def __init__(self, directory: Path, base_port: int) -> None:
        self._up = [*KV, "up", "--detach", "--dir", str(directory), "--base-port", str(base_port)]
        self._directory = directory
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("KV_")}
        self.urls = [f"kv://127.0.0.1:{base_port + at}" for at in range(3)]

    def up(self) -> None:
        """Start what does not run."""
        self._run(self._up)

    def down(self) -> None:
        """Stop all in order."""
        self._run([*KV, "down", "--dir", str(self._directory)])

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=self._environment
        )
        assert done.returncode == 0, done.stderr

    def pid(self, name: str) -> int:
        """The process of a node, by its data directory in its command line."""
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = process.read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.endswith(f"{self._directory.name}/{name}".encode()) for word in words):
                return int(process.parent.name)
        raise AssertionError(f"{name} does not run")


@pytest.fixture
def detached(tmp_path: Path, free_base_port: Callable[[int], int]) -> Iterator[Detached]:
    """Three processes, stopped at the end."""
    cluster = Detached(tmp_path / f"cluster-{os.getpid()}", free_base_port(3))
    cluster.up()
    yield cluster
    cluster.down()


async def test_killing_any_one_node_reaches_no_client_and_loses_nothing(detached: Detached) -> None:
    acknowledged: dict[str, bytes] = {}
    stop = asyncio.Event()

    async def work(client: kvstore.Client, worker: int) -> None:
        count = 0
        while not stop.is_set():
            key, value = f"w{worker}-{count % 50}", b"%d" % count
            receipt = await client.put(key, value)
            assert len(receipt.answered) >= 2
            acknowledged[key] = value
            entry = await client.get(key)
            assert entry is not None
            assert entry.value == value
            count += 1

    async with await kvstore.connect(detached.urls, timeout=10) as client:
        async with asyncio.TaskGroup() as tasks:
            for worker in range(6):
                tasks.create_task(work(client, worker))
            for name in ("n1", "n2", "n3"):
                await asyncio.sleep(0.4)
                os.kill(detached.pid(name), signal.SIGKILL)
                await asyncio.sleep(0.6)
                await asyncio.to_thread(detached.up)
                await asyncio.sleep(0.4)
            stop.set()
        assert len(acknowledged) >= 100
        entries = await client.get_many(list(acknowledged), consistency="all")
    assert {key: entry.value for key, entry in entries.items() if entry is not None} == acknowledged


def test_all_nodes_killed_at_once_come_back_with_everything_acknowledged(detached: Detached) -> None:
    keys = {f"k{number}": b"%d" % number for number in range(2_000)}
    with kvstore.sync.connect(detached.urls) as client:
        client.put_many(keys)
    for name in ("n1", "n2", "n3"):
        os.kill(detached.pid(name), signal.SIGKILL)
    detached.up()
    with kvstore.sync.connect(detached.urls) as client:
        entries = client.get_many(list(keys))
        assert {key: entry.value for key, entry in entries.items() if entry is not None} == keys
        status = client.status()
    assert status["storage"]["recovered_records"] > 0
    assert json.dumps(status["counters"])
