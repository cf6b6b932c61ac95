"""`kv bench`: put a known load on a running cluster, and say what it did with it.

A closed loop by default (each connection waits for its answer, then asks again); `--rate` makes it an
open loop that measures from the instant each request should have left.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from kvstore_cli import bench_report
from kvstore_cli.bench_run import Outcome, run, split
from kvstore_cli.bench_worker import Share
from kvstore_cli.bench_workload import MIXES
from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.output import Output
from kvstore_cli.session import Session
from kvstore_cli.settings import Duration, token_of

if TYPE_CHECKING:
    from kvstore.client.client import Client

NOTHING_SUCCEEDED = 5
"""Exit status: the cluster is not healthy."""
NATIVE = "kvstore_cli.bench_native:connect"


class WarmUp(Duration):
    """A duration that may be 0."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse; raises errors.BadTtl."""
        return 0 if value in ("0", "0s", "0ms") else super().convert(value, param, ctx)


@click.command(cls=KvCommand)
@click.option(
    "--mix",
    type=click.Choice(list(MIXES)),
    default="a",
    show_default=True,
    help="YCSB's a, b, c, d, or put, get alone.",
)
@click.option(
    "-c",
    "--connections",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    metavar="N",
    help="Spread over all nodes.",
)
@click.option(
    "-P",
    "--pipeline",
    type=click.IntRange(1, 1_000),
    default=1,
    show_default=True,
    metavar="N",
    help="Requests each connection has outstanding.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Generator processes; one makes some 70,000 requests a second.",
)
@click.option(
    "--keys",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    metavar="N",
    help="Keys that exist and are asked for.",
)
@click.option("--zipfian", is_flag=True, help="Few keys are popular; by default all are alike.")
@click.option(
    "--value-bytes",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    metavar="N",
    help="Size of each value.",
)
@click.option(
    "-d",
    "--duration",
    type=Duration(),
    default=10_000,
    show_default="10s",
    metavar="TIME",
    help="How long to measure.",
)
@click.option("-n", "--count", type=click.IntRange(1), metavar="N", help="Requests, instead of a duration.")
@click.option(
    "--warmup",
    type=WarmUp(),
    default=2_000,
    show_default="2s",
    metavar="TIME",
    help="Before that; not counted. None with --count.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Requests a second, sent on time whatever comes back (open loop).",
)
@click.option("--load/--no-load", default=None, help="Write all keys first. By default when the mix reads.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed asks for the same keys.")
@click.option(
    "--consistency",
    type=click.Choice(("one", "quorum", "all", "linearizable")),
    envvar="KV_CONSISTENCY",
    metavar="LEVEL",
    help="one, quorum (the default), all or linearizable.",
)
@pass_session
def bench(session: Session, /, *, processes: int, **given: Any) -> int:
    r"""Put load on the cluster: throughput, and latency from a histogram.

    Writes keys named user000000000000 and so on: use a cluster where they do no harm. Exit status 5 when
    nothing succeeded.

    \b
      kv bench --mix put -c 200                 as many writes as 200 waiting clients make
      kv bench --mix b --zipfian --rate 5000    95 % reads of popular keys, at a fixed rate
    """
    share = replace(_share(**given), addresses=session.call(_nodes), token=token_of(session.settings) or "")
    live = bench_report.Live(sys.stderr, processes=min(processes, share.connections), warmup_s=share.warmup_s)
    try:
        outcome: Outcome = asyncio.run(run(split(share, processes), live))
    finally:
        live.clear()
    plain = bench_report.as_plain(share, processes, outcome)
    out = Output(session.settings)
    if out.form == "csv":
        plain = bench_report.flat(plain)
    out.one(plain, "\n".join(bench_report.as_lines(plain)) if not out.for_programs else "")
    return 0 if outcome.tally.inside else NOTHING_SUCCEEDED


async def _nodes(kv: Client) -> tuple[str, ...]:
    """`host:port` of every node."""
    topology = await kv.topology()
    return tuple(f"{node.host}:{node.client_port}" for node in topology.nodes)


def _share(
    *,
    mix: str,
    connections: int,
    pipeline: int,
    keys: int,
    zipfian: bool,
    value_bytes: int,
    duration: int,
    count: int | None,
    warmup: int,
    rate: float | None,
    consistency: str | None,
    load: bool | None,
    seed: int,
) -> Share:
    """What the options ask for, as one generator process would do it alone; the addresses come later."""
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
        warmup_s=0.0 if count else warmup / 1000,
        duration_s=duration / 1000,
        rate=rate or 0.0,
        count=count or 0,
    )
