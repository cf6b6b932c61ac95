"""What many keys cost a node: memory, disk, and the time from kill -9 to serving again.

Memory is resident memory less the mapped pages of the base store: those belong to the page cache, and
the kernel takes them back when anybody needs them. Both are shown, from /proc/PID/smaps.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import stores
from kvstore import errors
from kvstore_cli.bench_native import connect
from kvstore_cli.bench_worker import ask, operation_prefix
from kvstore_cli.bench_workload import key_name
from kvstore_cli.local_cluster import LocalCluster, Member, load_cluster

BATCH_KEYS = 250
CONNECTIONS = 6
RESTART_S = 60.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes (10^6 bytes) of one process."""

    resident: float
    mapped_store: float

    @property
    def own(self) -> float:
        """What the process itself holds."""
        return self.resident - self.mapped_store

    def __str__(self) -> str:
        return (
            f"resident {self.resident:.1f} MB, less mapped base store {self.mapped_store:.1f}: {self.own:.1f}"
        )


def memory_of(pid: int) -> Memory:
    """Read /proc/PID/smaps: all resident pages, and those that map a base store."""
    resident = mapped = 0
    in_store = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            in_store = line.endswith(".mdb")
        elif line.startswith("Rss:"):
            size = int(line.split()[1]) * 1024
            resident += size
            mapped += size * in_store
    return Memory(resident / 1e6, mapped / 1e6)


async def load(addresses: tuple[str, ...], keys: int, value: bytes) -> float:
    """Write keys 0..keys-1 with put_many; returns seconds."""
    began = perf_counter()
    starts = iter(range(0, keys, BATCH_KEYS))
    prefix = operation_prefix()

    async def writer(address: str) -> None:
        channel = await connect(address, "")
        for start in starts:
            pairs = [[key_name(n), value] for n in range(start, min(start + BATCH_KEYS, keys))]
            for item in await ask(channel, "put_many", [pairs, prefix + start.to_bytes(4, "big"), {}]):
                if isinstance(item, dict):
                    raise errors.from_wire(item.get("error"))
        channel.close()

    async with asyncio.TaskGroup() as writers:
        for number in range(CONNECTIONS):
            writers.create_task(writer(addresses[number % len(addresses)]))
    return perf_counter() - began


async def first_read(address: str, key: bytes) -> None:
    """Return once the node at `address` has served this key from its own replica."""
    give_up_at = perf_counter() + RESTART_S
    while perf_counter() < give_up_at:
        try:
            channel = await connect(address, "")
            found = await ask(channel, "get", [key, {"c": "one"}])
            channel.close()
        except errors.KVError:
            await asyncio.sleep(0.005)
        else:
            assert found[-1], f"{key!r} is gone"
            return
    raise TimeoutError(address)


def restart(cluster: LocalCluster, member: Member) -> tuple[float, subprocess.Popen[bytes]]:
    """Kill a node without warning, start it as it was started; returns seconds to its first read."""
    mark = cluster.process(member)
    assert mark is not None
    command = Path(f"/proc/{mark.pid}/cmdline").read_bytes().split(b"\0")[:-1]
    os.kill(mark.pid, signal.SIGKILL)
    while mark.is_alive():
        time.sleep(0.01)
    began = perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    asyncio.run(first_read(member.address, key_name(0)))
    return perf_counter() - began, process


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=100)
    options = parser.parse_args()
    value = random.Random(1).randbytes(options.value_bytes)
    with tempfile.TemporaryDirectory() as folder, stores.ours(Path(folder)) as target:
        cluster = load_cluster(Path(folder) / "kv-data")
        running = {member: mark for member in cluster.members if (mark := cluster.process(member))}
        for member, mark in running.items():
            print(f"{member.name} empty    {memory_of(mark.pid)}")
        seconds = asyncio.run(load(target.addresses, options.keys, value))
        rate = f"{options.keys / seconds:,.0f}/s, put_many of {BATCH_KEYS}, {CONNECTIONS} connections"
        print(f"{options.keys:,} keys, {options.value_bytes} B values, loaded in {seconds:.1f} s ({rate})")
        for member, mark in running.items():
            used = sum(f.stat().st_size for f in cluster.folder(member).rglob("*") if f.is_file())
            print(f"{member.name} loaded   {memory_of(mark.pid)}; {used / 1e6:.0f} MB of files")
        took, process = restart(cluster, cluster.members[0])
        print(f"{cluster.members[0].name} kill -9 to first read {took:.2f} s; then {memory_of(process.pid)}")
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
