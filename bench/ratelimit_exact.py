"""How exact limits are, under far more calls than they allow: `python bench/ratelimit.py exact`.

Several service processes with many callers each share one key with a limit of 1,000 in any second. Each call
that was admitted is noted with its begin and end by the machine's monotonic clock, which is one for all
processes; the clock that a service *decides* by is its own, and may be set seconds apart. Counted is every
span of a second in which calls wholly lie: what is more than the limit there was surely too much.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import kvstore
from jepsen_lite import nemesis
from jepsen_lite.targets import processes
from kvstore.apps.ratelimit import Algorithm, Limit, Limiter, Mode, OnFailure, Rule
from kvstore.apps.ratelimit.clock import StoreClock
from kvstore.apps.ratelimit.machine import wall_us

AMOUNT, PERIOD_S = 1000, 1.0
BATCH, LEASE_S = 20, 0.2


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `exact` may be told."""
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--services", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--only", action="append", help="scenarios whose name has this in it")


def rule(mode: str, services: int) -> Rule:
    """What all services share."""
    limit = Limit(algorithm=Algorithm.SLIDING_LOG, amount=AMOUNT, period_us=int(PERIOD_S * 1e6))
    leased = (
        {"batch": BATCH, "lease_us": int(LEASE_S * 1e6), "instances": services} if mode == "local" else {}
    )
    return Rule(
        name="r",
        limits=(limit,),
        mode=Mode(mode),
        on_failure=OnFailure.CLOSED,
        **leased,  # type: ignore[arg-type]
    )


def most_in_any_second(admitted: list[list[float]]) -> int:
    """The most calls that lie wholly in one span of a period."""
    by_end = sorted(admitted, key=lambda span: span[1])
    worst = first = last = 0
    for since in sorted(began for began, _ in admitted):
        while first < len(by_end) and by_end[first][1] < since:
            first += 1
        while last < len(by_end) and by_end[last][1] < since + PERIOD_S:
            last += 1
        inside = sum(by_end[at][0] >= since for at in range(first, last))
        worst = max(worst, inside)
    return worst


async def _call(limiter: Limiter, until: float, dice: random.Random, told: dict[str, Any]) -> None:
    while (began := perf_counter()) < until:
        outcome = await limiter.check("r", "hot")
        if outcome.allowed:
            told["admitted"].append((began, perf_counter()))
        else:
            told["failed" if outcome.failed else "refused"] += 1
            await asyncio.sleep(dice.uniform(0.005, 0.04))


async def _serve(asked: dict[str, Any]) -> dict[str, Any]:
    dice = random.Random(asked["seed"])
    ahead_us = int(asked["ahead_s"] * 1e6)
    told: dict[str, Any] = {"admitted": [], "refused": 0, "failed": 0}
    kv = await kvstore.connect(asked["urls"], local_addr=(asked["host"], 0))
    async with kv:
        limiter = Limiter(
            kv, {"r": rule(asked["mode"], asked["services"])}, clock=StoreClock(lambda: wall_us() + ahead_us)
        )
        until = perf_counter() + asked["seconds"]
        async with asyncio.TaskGroup() as tasks:
            for _ in range(asked["callers"]):
                tasks.create_task(_call(limiter, until, dice, told))
        await limiter.close()
    return told


def worker(given: str) -> None:
    """One service; prints what it admitted."""
    print(json.dumps(asyncio.run(_serve(json.loads(given)))))


async def _scenario(options: argparse.Namespace, *, mode: str, cut: bool, apart_s: float) -> dict[str, Any]:
    plan = nemesis.plan("halves", seed=1, nodes=options.nodes, seconds=options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        async with processes.opened(
            Path(folder), nodes=options.nodes, replicas=3, kinds={"cut"}, links="auto"
        ) as cluster:
            urls = [node.url for node in cluster.nodes]
            await _until_ready(urls, cluster.client_host)
            services = [
                await asyncio.create_subprocess_exec(
                    *(sys.executable, str(Path(__file__).with_name("ratelimit.py")), "exact-worker"),
                    json.dumps(
                        {
                            "urls": urls,
                            "host": cluster.client_host,
                            "mode": mode,
                            "seconds": options.seconds,
                            "services": options.services,
                            "callers": options.clients // options.services,
                            "seed": number,
                            "ahead_s": apart_s * (number % 2),
                        }
                    ),
                    stdout=subprocess.PIPE,
                    limit=1 << 28,
                )
                for number in range(options.services)
            ]
            began = perf_counter()
            answers = asyncio.gather(*(each.communicate() for each in services))  # noqa: TID251
            for fault in plan.faults if cut else ():
                await asyncio.sleep(max(began + fault.at - perf_counter(), 0))
                await cluster.do(fault)
                await asyncio.sleep(max(began + fault.until - perf_counter(), 0))
                await cluster.undo(fault)
            found = [json.loads(out) for out, _ in await answers]
    admitted = [span for each in found for span in each["admitted"]]
    return {
        "admitted": len(admitted),
        "per_second": len(admitted) / options.seconds,
        "refused": sum(each["refused"] for each in found),
        "failed": sum(each["failed"] for each in found),
        "worst": most_in_any_second(admitted),
    }


async def _until_ready(urls: list[str], host: str) -> None:
    for url in urls:
        while True:
            try:
                async with await kvstore.connect([url], pinned=True, local_addr=(host, 0)) as kv:
                    peers = (await kv.status()).get("peers") or {}
                    if all(peer.get("up") for peer in peers.values()):
                        break
            except kvstore.KVError:
                pass
            await asyncio.sleep(0.2)


def main(options: argparse.Namespace) -> None:
    """All scenarios; a table."""
    print(
        f"{options.clients} callers in {options.services} services, {options.seconds:g} s, "
        f"sliding_log {AMOUNT:,} in {PERIOD_S:g} s\n\n"
        "| scenario | admitted/s | refused | failed closed | most in any second | may be |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    for mode in ("strict", "local"):
        bound = AMOUNT + rule(mode, options.services).over_admission_max(rule(mode, 1).limits[0])
        for name, cut, apart_s in (
            ("quiet", False, 0.0),
            ("halves cut", True, 0.0),
            ("halves cut, service clocks 5 s apart", True, 5.0),
        ):
            title = f"{mode}, {name}"
            if options.only and not any(each in title for each in options.only):
                continue
            found = asyncio.run(_scenario(options, mode=mode, cut=cut, apart_s=apart_s))
            print(
                f"| {title} | {found['per_second']:,.0f} | {found['refused']:,} | {found['failed']:,} | "
                f"{found['worst']:,} | {bound:,} |",
                flush=True,
            )
