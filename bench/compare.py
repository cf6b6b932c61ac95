"""The same load on our cluster, etcd and Redis, in turn, in one run: `make bench`.

Every store is started fresh on this machine with its own directories, loaded with the same keys, and
driven by the same generator (kvstore_cli.bench_worker) over a channel of the same cost. Each round
takes the stores in another order. The table shows the fastest round and the median; latencies and
ratios are those of the fastest, because whatever disturbs a round only makes it slower.

What the figures can and cannot tell: the generator and all nodes share one machine and its disk, so
they compare the processor time a request costs as much as anything else, and there is no network.
Only ratios travel.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import stores
from kvstore_cli.bench_report import as_plain
from kvstore_cli.bench_run import run, split
from kvstore_cli.bench_worker import Share
from stores import Target

Opener = Callable[[Path], contextlib.AbstractContextManager[Target]]

RIVALS: dict[str, tuple[Opener, tuple[str, ...]]] = {
    "kvstore": (stores.ours, ()),
    "etcd": (stores.etcd, ("etcd", "etcdctl")),
    "redis": (stores.redis_single, ("redis-server", "redis-cli")),
    "redis-replicated": (stores.redis_replicated, ("redis-server", "redis-cli")),
}

WORKLOADS: dict[str, tuple[str, str, int]] = {
    "put, 50 connections": ("put", "put", 50),
    "put, 200 connections": ("put", "put", 200),
    "get strong, 50 connections": ("get", "get_strong", 50),
    "get weak, 50 connections": ("get", "get_weak", 50),
}
"""Name -> mix, which connector of the target, connections. Strong: quorum (ours), linearizable (etcd).
Weak: `one` (ours), serializable (etcd). Redis answers both from its primary."""

CALM_BUSY_MAX = 0.1


def measure(target: Target, workload: str, options: argparse.Namespace, *, load: bool) -> dict[str, Any]:
    """One workload on one running store."""
    mix, mode, connections = WORKLOADS[workload]
    return measure_share(
        target,
        mix,
        getattr(target, mode),
        connections,
        seconds=options.seconds,
        load=load,
        keys=options.keys,
        value_bytes=options.value_bytes,
        warmup=options.warmup,
        processes=options.processes,
    )


def measure_share(
    target: Target,
    mix: str,
    how: tuple[str, dict[str, Any]],
    connections: int,
    *,
    seconds: float,
    load: bool,
    keys: int = 100_000,
    value_bytes: int = 100,
    warmup: float = 1.0,
    processes: int = 1,
) -> dict[str, Any]:
    """One mix through one connector, as plain figures."""
    connector, call_options = how
    whole = Share(
        connector=connector,
        addresses=target.addresses,
        first=0,
        connections=connections,
        depth=1,
        mix=mix,
        keys=keys,
        zipfian=False,
        value_bytes=value_bytes,
        options=call_options,
        seed=1,
        share=0,
        shares=1,
        load=load,
        warmup_s=warmup,
        duration_s=seconds,
        rate=0.0,
        count=0,
    )
    outcome = asyncio.run(run(split(whole, processes), lambda _seconds, _part: None))
    return as_plain(whole, processes, outcome)


def rounds(options: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (workload, store, figures), round by round."""
    chosen = [name for name in RIVALS if name in options.stores]
    for number in range(options.rounds):
        for name in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
            opener, _ = RIVALS[name]
            wait_for_calm(options.calm)
            with tempfile.TemporaryDirectory(dir=options.dir) as folder, opener(Path(folder)) as target:
                for position, workload in enumerate(WORKLOADS):
                    figures = measure(target, workload, options, load=position == 0)
                    rate = f"{figures['per_second']:>10,.0f}/s"
                    print(f"round {number + 1}  {target.name:28} {workload:28} {rate}", file=sys.stderr)
                    yield workload, target.name, figures


def busy_share(seconds: float = 1.0) -> float:
    """The share of all processors' time that was used, over the next moment. Linux only."""

    def read() -> tuple[int, int]:
        fields = [
            int(f) for f in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        ]
        return sum(fields), fields[3] + fields[4]

    total, idle = read()
    time.sleep(seconds)
    total_later, idle_later = read()
    return 1.0 - (idle_later - idle) / max(1, total_later - total)


def wait_for_calm(seconds: float) -> None:
    """Wait until the machine does nothing else, or for `seconds` at most."""
    give_up_at = perf_counter() + seconds
    while perf_counter() < give_up_at and busy_share() > CALM_BUSY_MAX:
        pass


def fsync_us(folder: str | None) -> float:
    """Median of a 4 KiB write and fdatasync in microseconds, where the stores keep their data."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        took = []
        for number in range(200):
            began = perf_counter()
            os.pwrite(file.fileno(), bytes(4096), number * 4096)
            os.fdatasync(file.fileno())
            took.append(perf_counter() - began)
    return statistics.median(took) * 1e6


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> Iterator[str]:
    """Markdown: one row for each workload and store."""
    yield "| workload | store | fastest round/s | median/s | p50 ms | p99 ms | ours / theirs |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for workload, by_store in results.items():
        # Whatever else runs on a machine only makes a round slower, so the fastest is the truest.
        fastest = {name: max(rounds, key=lambda f: f["per_second"]) for name, rounds in by_store.items()}
        own = next((f["per_second"] for name, f in fastest.items() if name.startswith("kvstore")), None)
        for name, best in fastest.items():
            median = statistics.median(f["per_second"] for f in by_store[name])
            latency = best["latency_ms"]["all"]
            ratio = f"{own / best['per_second']:.2f}" if own and not name.startswith("kvstore") else ""
            figures = [
                f"{best['per_second']:,.0f}",
                f"{median:,.0f}",
                f"{latency['p50']:.1f}",
                f"{latency['p99']:.1f}",
            ]
            yield f"| {' | '.join([workload, name, *figures, ratio])} |"
            if failed := sum(sum(f["errors"].values()) for f in by_store[name]):
                yield f"| {workload} | {name} | {failed} errors | | | | |"


def main() -> None:
    """Measure, print the table, and keep the raw figures when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stores", nargs="+", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="measured, for each workload")
    parser.add_argument("--warmup", type=float, default=2.0)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1, help="generator processes")
    parser.add_argument(
        "--calm", type=float, default=0.0, help="wait up to so many seconds for an idle machine"
    )
    parser.add_argument("--dir", help="where the stores keep their data for the time of the run")
    parser.add_argument("--json", type=Path, help="write every single figure here")
    options = parser.parse_args()
    for name in list(options.stores):
        if absent := stores.missing(*RIVALS[name][1]):
            print(f"{name}: left out, {', '.join(absent)} is not installed", file=sys.stderr)
            options.stores.remove(name)
    # The generator's processes find the rivals' channels here.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {workload: {} for workload in WORKLOADS}
    for workload, name, figures in rounds(options):
        results[workload].setdefault(name, []).append(figures)
    print(
        f"{os.cpu_count()} processors, {platform.machine()}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, fdatasync of 4 KiB {fsync_us(options.dir):.0f} us; "
        f"{options.rounds} rounds of {options.seconds:g} s, {options.keys:,} keys, "
        f"{options.value_bytes} B values\n"
    )
    print("\n".join(table(results)))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
