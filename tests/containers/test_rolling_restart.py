"""Every container is restarted, one after the other, while clients work: none of their quorum calls fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import kvstore
from jepsen_lite.nemesis import Fault
from jepsen_lite.targets import containers
from kvstore import errors

CLIENTS = 6
pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("containers"),
]


async def ready(cluster: containers.Containers) -> None:
    """Every node serves, and is linked to every other."""
    async with asyncio.timeout(120):
        for node in cluster.nodes:
            while True:
                try:
                    async with await kvstore.connect(node.url, timeout=2, pinned=True) as kv:
                        status = await kv.status()
                except errors.KVError:
                    status = {}
                peers = (status.get("peers") or {}).values()
                if status.get("state") == "ready" and all(peer["up"] for peer in peers):
                    break
                await asyncio.sleep(0.1)


class Worker:
    """A client that reads back what it wrote, again and again."""

    def __init__(self, number: int) -> None:
        self.key = f"rolling/{number}"
        self.done = 0
        self.failed: list[str] = []

    async def work(self, kv: kvstore.Client, stop: asyncio.Event) -> None:
        while not stop.is_set():
            value = b"%d" % self.done
            try:
                await kv.put(self.key, value, consistency="quorum")
                entry = await kv.get(self.key, consistency="quorum")
            except errors.KVError as error:
                self.failed.append(error.one_line())
                continue
            if entry is None or entry.value != value:
                self.failed.append(f"wrote {value!r}, read {entry!r}")
            self.done += 1
            await asyncio.sleep(0.02)


async def test_a_rolling_restart_fails_no_quorum_call(tmp_path: Path) -> None:
    missing = await containers.problem()
    if missing:
        pytest.skip(missing)
    workers, stop = [Worker(number) for number in range(CLIENTS)], asyncio.Event()
    async with containers.opened(tmp_path, nodes=3, replicas=3, kinds=()) as cluster:
        await ready(cluster)
        urls = [node.url for node in cluster.nodes]
        async with await kvstore.connect(urls, timeout=15) as kv, asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(worker.work(kv, stop))
            for node in cluster.nodes:
                await asyncio.sleep(1.0)
                restart = Fault(0.0, 0.0, "rolling", "restart", nodes=(node.number,))
                await cluster.do(restart)
                await asyncio.sleep(1.0)
                await cluster.undo(restart)
                await ready(cluster)
            stop.set()
        await cluster.stop()
        assert cluster.complaints() == []
    assert [worker.failed for worker in workers] == [[]] * CLIENTS
    assert sum(worker.done for worker in workers) > 100


async def test_the_measure_notices_a_cluster_without_a_quorum(tmp_path: Path) -> None:
    """The negative control: two of three nodes at once."""
    missing = await containers.problem()
    if missing:
        pytest.skip(missing)
    worker, stop = Worker(0), asyncio.Event()
    async with containers.opened(tmp_path, nodes=3, replicas=3, kinds=()) as cluster:
        await ready(cluster)
        async with await kvstore.connect([node.url for node in cluster.nodes], timeout=2) as kv:
            await cluster.do(Fault(0.0, 0.0, "kill", "kill", nodes=(1, 2)))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(worker.work(kv, stop))
                await asyncio.sleep(3)
                stop.set()
    assert worker.failed
