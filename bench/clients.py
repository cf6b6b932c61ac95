"""Linearizable calls as a Python program makes them: `python bench/clients.py`, ours and etcd's in turn.

bench/registers.py drives both stores by a generator that costs next to nothing, which tells what the servers
can do. A program has a client library: kvstore here, `aetcd` (asyncio over grpcio; `pip install aetcd`) for
etcd. Each side has one process with so many tasks that wait for one answer each.

`--own-tool` adds etcd's own generator, `etcdctl check perf --load l`: 500 clients, keys of 256 bytes and
values of 1 KiB, one minute; with `--callers 500 --key-bytes 256 --value-bytes 1024` ours is asked for the
same, but that its keys are there already.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import kvstore
import stores
from stores import Target

KEYS = 5_000
LOADERS = 50
_Call = Callable[[bytes, int], Awaitable[Any]]


async def _ours(addresses: list[str], value: bytes) -> dict[str, _Call]:
    kv = await kvstore.connect([f"kv://{each}" for each in addresses])
    return {
        "put": lambda key, _task: kv.put(key, value, consistency="linearizable"),
        "get": lambda key, _task: kv.get(key, consistency="linearizable"),
    }


async def _theirs(addresses: list[str], value: bytes) -> dict[str, _Call]:
    aetcd = importlib.import_module("aetcd")
    clients = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        clients.append(aetcd.Client(host=host, port=int(port)))
        await clients[-1].connect()
    return {
        "put": lambda key, task: clients[task % len(clients)].put(key, value),
        "get": lambda key, task: clients[task % len(clients)].get(key),
    }


async def _measure(asked: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Each kind of call, with so many tasks, over keys that are there."""
    connect = _ours if asked["store"] == "ours" else _theirs
    calls = await connect(asked["addresses"], random.Random(1).randbytes(asked["value_bytes"]))
    put = calls["put"]
    keys = [(b"key:%d:" % number).ljust(asked["key_bytes"], b"k") for number in range(KEYS)]

    async def load(first: int) -> None:
        for number in range(first, KEYS, LOADERS):
            await put(keys[number], number)

    async with asyncio.TaskGroup() as tasks:
        for first in range(LOADERS):
            tasks.create_task(load(first))
    return {name: await _pressed(call, keys, asked) for name, call in calls.items()}


async def _pressed(call: _Call, keys: list[bytes], asked: dict[str, Any]) -> dict[str, float]:
    took: list[float] = []
    began = perf_counter()
    until = began + asked["seconds"]

    async def drive(task: int) -> None:
        dice = random.Random(task)
        while (before := perf_counter()) < until:
            await call(keys[dice.randrange(KEYS)], task)
            took.append(perf_counter() - before)

    async with asyncio.TaskGroup() as tasks:
        for task in range(asked["callers"]):
            tasks.create_task(drive(task))
    took.sort()
    return {
        "per_second": len(took) / (perf_counter() - began),
        "p50_ms": took[len(took) // 2] * 1e3,
        "p99_ms": took[len(took) * 99 // 100] * 1e3,
    }


def worker(given: str) -> None:
    """One measurement in a process of its own; prints its figures."""
    asked = json.loads(given)
    if asked["store"] == "ours":
        import uvloop

        print(json.dumps(uvloop.run(_measure(asked))))
    else:
        print(json.dumps(asyncio.run(_measure(asked))))  # grpcio brings a loop of its own


def _asked(
    target: Target, store: str, callers: int, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    asked = {
        "store": store,
        "addresses": target.addresses,
        "callers": callers,
        "seconds": options.seconds,
        "key_bytes": options.key_bytes,
        "value_bytes": options.value_bytes,
    }
    command = [sys.executable, __file__, "--worker", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout))


def _own_tool(target: Target) -> float:
    """Puts a second by etcd's own generator."""
    command = ["etcdctl", "--endpoints", ",".join(target.addresses), "check", "perf", "--load", "l"]
    environment = {**os.environ, "ETCDCTL_API": "3"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    told = re.search(r"(\d+) writes/s", done.stdout)
    if told is None:
        raise RuntimeError(done.stdout[-500:] + done.stderr[-500:])
    return float(told[1])


def main() -> None:
    """Rounds in turn; medians, and our rate by theirs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each kind of call")
    parser.add_argument("--callers", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--key-bytes", type=int, default=16)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument(
        "--own-tool", action="store_true", help="etcdctl check perf as well, a minute a round"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return
    if absent := stores.missing("etcd", "etcdctl"):
        sys.exit(f"not installed: {', '.join(absent)}")
    seen: dict[tuple[str, int], dict[str, list[dict[str, float]]]] = {}
    tool: list[float] = []
    for _ in range(options.rounds):
        for store, opener in (("ours", stores.ours), ("etcd", stores.etcd)):
            with tempfile.TemporaryDirectory() as folder, opener(Path(folder)) as target:
                for callers in options.callers:
                    for name, figures in _asked(target, store, callers, options).items():
                        seen.setdefault((name, callers), {}).setdefault(store, []).append(figures)
                        print(store, name, callers, figures, file=sys.stderr)
                if store == "etcd" and options.own_tool:
                    tool.append(_own_tool(target))
    print("| call | callers | ours/s | p99 | etcd/s | p99 | ratio |\n|---|---:|---:|---:|---:|---:|---:|")
    for (name, callers), by_store in seen.items():
        rates, tails = (
            [statistics.median(each[figure] for each in by_store[store]) for store in ("ours", "etcd")]
            for figure in ("per_second", "p99_ms")
        )
        ratio = rates[0] / rates[1]
        print(
            f"| linearizable {name} | {callers} | {rates[0]:,.0f} | {tails[0]:.0f} ms "
            f"| {rates[1]:,.0f} | {tails[1]:.0f} ms | {ratio:.2f} |"
        )
    if tool:
        print(f"\netcdctl check perf --load l: {statistics.median(tool):,.0f} puts a second")


if __name__ == "__main__":
    main()
