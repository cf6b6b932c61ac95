"""The rate limiter, measured: `python bench/ratelimit.py local|strict|exact`.

local    decisions a second in one process, and how long one takes, from tokens that it holds
strict   decisions of our limiter and of the `limits` package over redis-server, in turn, in one run:
         same algorithm, same limits, same callers; both are asyncio clients in a process of their own
exact    many callers in several service processes ask for far more than a limit of 1,000 a second; what
         was admitted is counted over every window, also with halves cut and clocks of services apart

Needs redis-server, and `pip install redis coredis` for the rivals. All of it shares one machine: only
ratios travel.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kvstore
import ratelimit_exact
import stores
from kvstore.apps.ratelimit import Algorithm, Limit, Limiter, Mode, Rule

_SECOND_US = 1_000_000
_BURST = 100
_Decide = Callable[[str], Awaitable[bool]]


def limiter_of(kv: kvstore.Client, limit: Limit, **more: Any) -> Limiter:
    """One rule, called r."""
    return Limiter(kv, {"r": Rule(name="r", limits=(limit,), **more)})


def _quantile(sorted_values: list[float], part: float) -> float:
    return sorted_values[min(int(len(sorted_values) * part), len(sorted_values) - 1)]


# --- local -------------------------------------------------------------------------------


async def _local(addresses: list[str], seconds: float, keys: int) -> dict[str, float]:
    """Decisions from memory: bursts of calls, as a busy service makes them, on keys that stay in use."""
    limit = Limit(algorithm=Algorithm.TOKEN_BUCKET, amount=1_000_000_000, period_us=_SECOND_US)
    async with await kvstore.connect([f"kv://{each}" for each in addresses]) as kv:
        limiter = limiter_of(kv, limit, mode=Mode.LOCAL, batch=10_000, lease_us=10 * _SECOND_US)
        names = [f"customer:{number}" for number in range(keys)]
        for name in names:
            assert await limiter.check("r", name)
        check, clock = limiter.check, time.perf_counter
        done, began = 0, clock()
        while (now := clock()) < began + seconds:
            for name in names:
                await check("r", name)
            done += keys
            await asyncio.sleep(0)
        rate = done / (now - began)
        took, since = [], clock()
        while clock() < since + seconds:
            for name in names:
                before = clock()
                await check("r", name)
                took.append(clock() - before)
            await asyncio.sleep(0)
        took.sort()
        told = limiter.counts
        await limiter.close()
        return {
            "per_second": rate,
            "p50_us": _quantile(took, 0.5) * 1e6,
            "p99_us": _quantile(took, 0.99) * 1e6,
            "p999_us": _quantile(took, 0.999) * 1e6,
            "renewals": sum(told.renewals.values()),
            "decisions": sum(told.decisions.values()),
        }


def local(options: argparse.Namespace) -> None:
    """Print each round; the best is the one that was disturbed least."""
    with tempfile.TemporaryDirectory() as folder, stores.ours(Path(folder)) as target:
        print(
            "| round | decisions/s | p50 | p99 | p99.9 | batches renewed ahead |\n"
            "|---|---:|---:|---:|---:|---:|"
        )
        for number in range(options.rounds):
            gc.collect()
            found = asyncio.run(_local(list(target.addresses), options.seconds, options.keys))
            print(
                f"| {number + 1} | {found['per_second']:,.0f} | {found['p50_us']:.1f} us | "
                f"{found['p99_us']:.1f} us | {found['p999_us']:.1f} us | {found['renewals']:,.0f} |"
            )


# --- strict ------------------------------------------------------------------------------

STRATEGIES = {
    "fixed window": (Algorithm.FIXED_WINDOW, "FixedWindowRateLimiter", 1000),
    "sliding window counter": (Algorithm.SLIDING_COUNTER, "SlidingWindowCounterRateLimiter", 1000),
    "moving window (log)": (Algorithm.SLIDING_LOG, "MovingWindowRateLimiter", 100),
}
"""Name -> ours, theirs, the limit a second of each key."""


@contextmanager
def _redis(folder: Path, *, durable: bool) -> Iterator[str]:
    """A redis-server, synced at each write as our nodes are, or as it comes."""
    if durable:
        with stores.redis_single(folder) as target:
            yield f"async+redis://{target.addresses[0]}"
        return
    (port,) = stores.free_ports(1)
    data, log = folder / "redis-default", folder / "redis-default.log"
    data.mkdir()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(data)]
    with stores.processes([command], log):
        stores.wait_until_true(["redis-cli", "-p", str(port), "ping"], log, "PONG")
        yield f"async+redis://127.0.0.1:{port}"


async def _pressed(decide: _Decide, *, callers: int, keys: int, seconds: float) -> dict[str, float]:
    """Callers in a closed loop, each over all keys in an order of its own."""
    took: list[float] = []
    allowed = 0
    clock = time.perf_counter
    until = clock() + seconds + 0.5
    counted_from = clock() + 0.5  # connections are made and scripts are loaded before

    async def call(number: int) -> None:
        nonlocal allowed
        at = number * 7919
        while (before := clock()) < until:
            at += 1
            is_allowed = await decide(f"customer:{at % keys}")
            if before >= counted_from:
                took.append(clock() - before)
                allowed += is_allowed

    async with asyncio.TaskGroup() as tasks:
        for number in range(callers):
            tasks.create_task(call(number))
    took.sort()
    return {
        "per_second": len(took) / (clock() - counted_from),
        "p50_ms": _quantile(took, 0.5) * 1e3,
        "p99_ms": _quantile(took, 0.99) * 1e3,
        "allowed": allowed / max(len(took), 1),
    }


async def _ours(addresses: list[str], strategy: str, load: dict[str, Any]) -> dict[str, float]:
    algorithm, _, amount = STRATEGIES[strategy]
    limit = Limit(algorithm=algorithm, amount=amount, period_us=_SECOND_US)
    async with await kvstore.connect([f"kv://{each}" for each in addresses]) as kv:
        limiter = limiter_of(kv, limit)

        async def decide(key: str) -> bool:
            return (await limiter.check("r", key)).allowed

        try:
            return await _pressed(decide, **load)
        finally:
            await limiter.close()


async def _theirs(uri: str, strategy: str, client: str, load: dict[str, Any]) -> dict[str, float]:
    from limits import RateLimitItemPerSecond
    from limits.aio import strategies
    from limits.storage import storage_from_string

    _, name, amount = STRATEGIES[strategy]
    storage: Any = storage_from_string(uri, implementation=client)
    limiter = getattr(strategies, name)(storage)
    item = RateLimitItemPerSecond(amount)

    async def decide(key: str) -> bool:
        return bool(await limiter.hit(item, key))

    return await _pressed(decide, **load)


def _strict_once(kind: str, where: str, strategy: str, client: str, load: dict[str, Any]) -> dict[str, float]:
    """In a process of its own, so that neither inherits the other's heap."""
    given = json.dumps({"kind": kind, "where": where, "strategy": strategy, "client": client, "load": load})
    done = subprocess.run(
        [sys.executable, __file__, "strict-worker", given], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout))


def strict_worker(given: str) -> None:
    """One measurement; prints its figures."""
    asked = json.loads(given)
    if asked["kind"] == "ours":
        work = _ours(json.loads(asked["where"]), asked["strategy"], asked["load"])
    else:
        work = _theirs(asked["where"], asked["strategy"], asked["client"], asked["load"])
    import uvloop

    print(json.dumps(uvloop.run(work)))


def strict(options: argparse.Namespace) -> None:
    """Rounds in turn; medians, and our rate by theirs."""
    if absent := stores.missing("redis-server", "redis-cli"):
        sys.exit(f"not installed: {', '.join(absent)}")
    loads = {
        f"{keys:,} key{'s' if keys > 1 else ''}, {callers} callers": {
            "keys": keys, "callers": callers, "seconds": options.seconds
        }
        for keys, callers in ((1, 10), (1, 100), (10_000, 100))
    }  # fmt: skip
    seen: dict[tuple[str, str], dict[str, list[dict[str, float]]]] = {}
    for _ in range(options.rounds):
        for strategy in options.strategy or STRATEGIES:
            for name, load in loads.items():
                mine = seen.setdefault((strategy, name), {})
                for store in ("ours", "redis, fsync always", "redis, default"):
                    with tempfile.TemporaryDirectory() as folder:
                        found = _one_store(store, Path(folder), strategy, options.client, load)
                    mine.setdefault(store, []).append(found)
                    print(strategy, name, store, found, file=sys.stderr)
    print(
        "| algorithm | load | store | decisions/s | p50 | p99 | ours / it |\n"
        "|---|---|---|---:|---:|---:|---:|"
    )
    for (strategy, name), by_store in seen.items():
        ours = statistics.median(each["per_second"] for each in by_store["ours"])
        for store, each_round in by_store.items():
            rate, p50, p99 = (
                statistics.median(each[figure] for each in each_round)
                for figure in ("per_second", "p50_ms", "p99_ms")
            )
            ratio = f"{ours / rate:.2f}" if store != "ours" else ""
            print(f"| {strategy} | {name} | {store} | {rate:,.0f} | {p50:.1f} ms | {p99:.1f} ms | {ratio} |")


def _one_store(
    store: str, folder: Path, strategy: str, client: str, load: dict[str, Any]
) -> dict[str, float]:
    if store == "ours":
        with stores.ours(folder) as target:
            return _strict_once("ours", json.dumps(target.addresses), strategy, client, load)
    with _redis(folder, durable=store != "redis, default") as uri:
        return _strict_once("theirs", uri, strategy, client, load)


# --- the command -------------------------------------------------------------------------


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("local")
    one.add_argument("--rounds", type=int, default=5)
    one.add_argument("--seconds", type=float, default=3.0)
    one.add_argument("--keys", type=int, default=_BURST)
    one.set_defaults(run=local)
    two = kinds.add_parser("strict")
    two.add_argument("--rounds", type=int, default=3)
    two.add_argument("--seconds", type=float, default=4.0)
    two.add_argument("--client", choices=["redispy", "coredis"], default="redispy", help="of the rival")
    two.add_argument("--strategy", action="append", choices=list(STRATEGIES))
    two.set_defaults(run=strict)
    three = kinds.add_parser("exact")
    ratelimit_exact.arguments(three)
    three.set_defaults(run=ratelimit_exact.main)
    for name, act in (("strict-worker", strict_worker), ("exact-worker", ratelimit_exact.worker)):
        hidden = kinds.add_parser(name)
        hidden.add_argument("given")
        hidden.set_defaults(run=lambda chosen, act=act: act(chosen.given))
    options = parser.parse_args()
    busy = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load before {busy:.1f}", file=sys.stderr)
    options.run(options)


if __name__ == "__main__":
    main()
