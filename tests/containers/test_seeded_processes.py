"""Real `kv server` processes that know each other's addresses alone; one of them is killed on the way."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvstore
from kvstore import errors

NODES = (1, 2, 3)
PATIENCE_S = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(240)]


class Seeded:
    """Three processes with one seed list."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.ports = ports
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def url(self, node: int) -> str:
        return f"kv://127.0.0.1:{self.ports[2 * node - 2]}"

    def start(self, node: int) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KV_")} | {
            "KV_NAME": f"n{node}",
            "KV_DATA_DIR": str(self.folder / f"n{node}"),
            "KV_CLIENT_PORT": str(self.ports[2 * node - 2]),
            "KV_PEER_PORT": str(self.ports[2 * node - 1]),
            "KV_SEEDS": ",".join(f"127.0.0.1:{port}" for port in self.ports[::2]),
            "KV_PARTITIONS": "64",
        }
        with (self.folder / f"n{node}.log").open("ab") as log:
            self.running[node] = subprocess.Popen(
                [sys.executable, "-m", "kvstore_cli.main", "server"], env=environment, stdout=log, stderr=log
            )

    def kill(self, node: int) -> None:
        self.running[node].kill()
        self.running.pop(node).wait()

    def stop(self) -> dict[int, int]:
        for process in self.running.values():
            process.terminate()
        return {node: process.wait(30) for node, process in self.running.items()}

    def clusters(self) -> set[str]:
        """Those that the directories are members of."""
        return {
            json.loads((self.folder / f"n{node}" / "identity.json").read_text())["cluster"] for node in NODES
        }


@pytest.fixture
def seeded(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Seeded]:
    nodes = Seeded(tmp_path, [free_port() for _ in range(6)])
    yield nodes
    for node in list(nodes.running):
        nodes.kill(node)


async def served(seeded: Seeded) -> None:
    """Until every node has what was written at all of them."""
    async with asyncio.timeout(PATIENCE_S):
        for node in NODES:
            while True:
                try:
                    async with await kvstore.connect(seeded.url(node), timeout=2, pinned=True) as kv:
                        await kv.put(f"k{node}", b"v", consistency="all")
                        break
                except errors.KVError:
                    await asyncio.sleep(0.1)


@pytest.mark.parametrize("victim", [1, 3])
@pytest.mark.parametrize("stage", ["identity.json", "pledge", "topology.json"])
async def test_a_node_killed_at_any_stage_comes_back_into_the_one_cluster(
    seeded: Seeded, stage: str, victim: int
) -> None:
    for node in NODES:
        seeded.start(node)
    async with asyncio.timeout(PATIENCE_S):
        while not (seeded.folder / f"n{victim}" / stage).exists():
            await asyncio.sleep(0.005)
    seeded.kill(victim)
    seeded.start(victim)
    await served(seeded)
    assert len(seeded.clusters() - {""}) == 1
    assert len({(seeded.folder / f"n{node}" / "topology.json").read_bytes() for node in NODES}) == 1
    assert seeded.stop() == dict.fromkeys(NODES, 0)
