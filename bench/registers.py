"""Linearizable calls beside etcd's, in turn, in one run: `python bench/registers.py`.

Both do the same for their users: a put that a majority has synced and that every later read sees, a
read that sees it, a number incremented by many at once. etcd orders all keys in one log, we order each key by
itself. The generator is the same and as cheap for both (see bench/compare.py); calls go to the key's
first owner, as the client library sends them. etcd's counter is its users' loop: read, then a
transaction that compares the revision, again until it fits.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter

import stores
from compare import measure_share
from kvstore.core.window import APPLIED
from kvstore_cli.bench_native import connect as connect_ours
from kvstore_cli.bench_worker import ask, operation_prefix
from rivals import etcd
from stores import Target

LINEAR = {"c": "linearizable"}
HOT_CLIENTS = 100
_Increment = Callable[[], Awaitable[None]]


async def _ours_counter(address: str) -> _Increment:
    channel = await connect_ours(address, "")
    prefix, count = operation_prefix(), 0

    async def increment() -> None:
        nonlocal count
        count += 1
        operation = prefix + count.to_bytes(4, "big")
        done = await ask(channel, "change", [b"hot", operation, "incr", [1, 0, None, None], {"t": 5_000}])
        assert done[0] & APPLIED, done

    return increment


async def _etcd_counter(address: str) -> _Increment:
    channel = await etcd.connect(address, "")
    seen: list[tuple[int, int]] = [(0, 0)]

    async def increment() -> None:
        while True:
            revision, number = seen[0]
            params = [b"hot", revision, str(number + 1).encode()]
            done, seen[0] = etcd.decode_cas(await ask(channel, "cas", params), params)
            if done:
                return

    return increment


async def _hot(target: Target, opener: Callable[[str], Awaitable[_Increment]], seconds: float) -> float:
    """Increments a second of one key by many clients."""
    clients = [await opener(target.addresses[n % len(target.addresses)]) for n in range(HOT_CLIENTS)]
    done = 0
    until = perf_counter() + seconds

    async def drive(increment: _Increment) -> None:
        nonlocal done
        while perf_counter() < until:
            await increment()
            done += 1

    began = perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for increment in clients:
            tasks.create_task(drive(increment))
    return done / (perf_counter() - began)


def one_round(seconds: float, folder: Path) -> dict[str, dict[str, float]]:
    """Each workload on each store, once."""
    figures: dict[str, dict[str, float]] = {}
    for opener, counter, put, get in (
        (
            stores.ours,
            _ours_counter,
            ("rivals.ours:connect_routed", LINEAR),
            ("rivals.ours:connect_routed", LINEAR),
        ),
        (stores.etcd, _etcd_counter, ("rivals.etcd:connect", {}), ("rivals.etcd:connect", {})),
    ):
        with opener(folder) as target:
            mine = figures.setdefault(target.name, {})
            for position, (name, mix, how, connections) in enumerate(
                (
                    ("linearizable put, 50 connections", "put", put, 50),
                    ("linearizable put, 200 connections", "put", put, 200),
                    ("linearizable get, 50 connections", "get", get, 50),
                )
            ):
                mine[name] = measure_share(
                    target, mix, how, connections, seconds=seconds, load=position == 0
                )["per_second"]
            mine["one counter, 100 clients"] = asyncio.run(_hot(target, counter, seconds))
            for name, rate in mine.items():
                print(f"{target.name:20} {name:36} {rate:>10,.0f}/s", file=sys.stderr)
    return figures


def main() -> None:
    """Print the medians and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    if absent := stores.missing("etcd", "etcdctl"):
        sys.exit(f"not installed: {', '.join(absent)}")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for the generator's processes
    seen: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for store, by_name in one_round(options.seconds, Path(folder)).items():
                for name, rate in by_name.items():
                    seen.setdefault(name, {}).setdefault(store, []).append(rate)
    print("| workload | ours, median/s | etcd, median/s | ratio |\n|---|---:|---:|---:|")
    for name, by_store in seen.items():
        ours, theirs = (statistics.median(rates) for rates in by_store.values())
        print(f"| {name} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
