"""`kv bench`: put a known load on a running cluster, and say what it did with it.

A closed loop by default (each connection waits for its answer, then asks again); `--rate` makes it an
open loop that measures from the instant each request should have left.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from typing import Any

import click

import kvstore
from kvstore.core import admission
from kvstore_cli import bench_report
from kvstore_cli.bench_run import Outcome, run, split
from kvstore_cli.bench_worker import Share
from kvstore_cli.bench_workload import MIXES

NATIVE = "kvstore_cli.bench_native:connect"


class Duration(click.ParamType):
    """`10`, `10s`, `2m`: seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse as everywhere else in `kv`."""
        if isinstance(value, float):
            return value
        try:
            return admission.parse_duration(str(value)) / 1000
        except kvstore.errors.BadTtl:
            self.fail(f"{value!r} is no duration; give 10, 10s, 2m", param, ctx)


async def _nodes(url: str, token: str | None) -> tuple[str, ...]:
    """`host:port` of every node, learned from any of them."""
    async with await kvstore.connect(url, token=token) as client:
        topology = await client.topology()
    return tuple(f"{node.host}:{node.client_port}" for node in topology.nodes)


async def _measure(url: str, whole: Share, processes: int, live: bench_report.Live) -> tuple[Share, Outcome]:
    whole = replace(whole, addresses=await _nodes(url, whole.token or None))
    return whole, await run(split(whole, processes), live)


@click.command()
@click.option(
    "--mix", type=click.Choice(list(MIXES)), default="a", show_default=True, help="What is asked for."
)
@click.option("-c", "--connections", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option(
    "-P",
    "--pipeline",
    type=click.IntRange(1, 1_000),
    default=1,
    show_default=True,
    help="Requests each connection has outstanding.",
)
@click.option(
    "--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Generator processes."
)
@click.option("--keys", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--zipfian/--uniform", default=False, help="Popular keys, or all alike (the default).")
@click.option("--value-bytes", type=click.IntRange(0), default=100, show_default=True)
@click.option("-d", "--duration", type=Duration(), default=10.0, show_default="10s")
@click.option("-n", "--count", type=click.IntRange(1), help="Requests, instead of a duration.")
@click.option(
    "--warmup", type=Duration(), default=2.0, show_default="2s", help="Not counted; 0 with --count."
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests a second (open loop).")
@click.option("--consistency", help="one, quorum or all; else the cluster's default.")
@click.option("--load/--no-load", default=None, help="Write all keys first; by default if the mix reads.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed asks for the same keys.")
@click.option("--url", envvar="KV_URL", default="kv://127.0.0.1:7401", show_default=True)
@click.option("--token", envvar="KV_TOKEN", default="", help="The cluster's client token.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def bench(*, url: str, output: str, processes: int, **given: Any) -> None:
    r"""Put load on the cluster: throughput, and latency from a histogram.

    \b
    kv bench --mix put -c 200                  as many writes as 200 waiting clients make
    kv bench --mix b --zipfian --rate 5000     95 % reads of popular keys, at a fixed rate
    """
    whole = _share(**given)
    live = bench_report.Live(sys.stderr, processes=min(processes, whole.connections), warmup_s=whole.warmup_s)
    try:
        whole, outcome = asyncio.run(_measure(url, whole, processes, live))
    finally:
        live.clear()
    plain = bench_report.as_plain(whole, processes, outcome)
    if output == "json":
        click.echo(json.dumps(plain))
    else:
        click.echo("\n".join(bench_report.as_lines(plain)))


def _share(
    *,
    mix: str,
    connections: int,
    pipeline: int,
    keys: int,
    zipfian: bool,
    value_bytes: int,
    duration: float,
    count: int | None,
    warmup: float,
    rate: float | None,
    consistency: str | None,
    load: bool | None,
    seed: int,
    token: str,
) -> Share:
    """What the options ask for, as one generator process would do it alone; addresses come later."""
    return Share(
        connector=NATIVE,
        addresses=(),
        first=0,
        connections=connections,
        depth=pipeline,
        mix=mix,
        keys=keys,
        zipfian=zipfian,
        value_bytes=value_bytes,
        options={"c": consistency} if consistency else {},
        seed=seed,
        share=0,
        shares=1,
        load=MIXES[mix].reads > 0 if load is None else load,
        warmup_s=0.0 if count else warmup,
        duration_s=duration,
        rate=rate or 0.0,
        count=count or 0,
        token=token,
    )
