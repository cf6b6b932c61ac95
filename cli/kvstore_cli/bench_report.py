"""What `kv bench` tells: a live line while it runs, then a table for people or JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from kvstore_cli.bench_histogram import Histogram
from kvstore_cli.bench_load import Tally
from kvstore_cli.bench_run import Outcome
from kvstore_cli.bench_worker import TICK_S, Share
from kvstore_cli.bench_workload import MIXES

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class Live:
    """One line that rewrites itself; silent when `stream` is no terminal."""

    def __init__(self, stream: IO[str], *, processes: int, warmup_s: float) -> None:
        self._stream = stream
        self._on = stream.isatty()
        self._processes = processes
        self._warmup_s = warmup_s
        self._pending = Tally()
        self._reports = 0

    def __call__(self, seconds: float, part: Tally) -> None:
        """Take in one process's report; print once each has sent one."""
        self._pending.add(part)
        self._reports += 1
        if self._reports % self._processes or not self._on:
            return
        tally, self._pending = self._pending, Tally()
        both = Histogram()
        for histogram in tally.latency.values():
            both.add(histogram)
        if both.total:
            rate, p50, p99 = both.total / TICK_S, _ms(both.quantile(0.5)), _ms(both.quantile(0.99))
            what = f"{rate:>9,.0f}/s   p50 {p50}   p99 {p99} ms"
        else:
            what = "warming up" if seconds < self._warmup_s + TICK_S else "no answers"
        failed = sum(tally.errors.values())
        self._stream.write(
            f"\r{seconds:6.1f} s  {what}" + (f"   {failed} errors" if failed else "") + "\x1b[K"
        )
        self._stream.flush()

    def clear(self) -> None:
        """Leave an empty line for what comes next."""
        if self._on:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _ms(micros: float) -> str:
    return f"{micros / 1000:.2f}"


def plain_latency(histogram: Histogram) -> dict[str, float]:
    """Count and milliseconds, for JSON."""
    quantiles = {name: histogram.quantile(share) / 1000 for name, share in QUANTILES.items()}
    return {
        "count": histogram.total,
        "mean": round(histogram.mean / 1000, 3),
        **quantiles,
        "max": histogram.maximum / 1000,
    }


def as_plain(share: Share, processes: int, outcome: Outcome) -> dict[str, Any]:
    """Everything, under stable names, for `-o json`."""
    return {
        "mix": share.mix,
        "keys": share.keys,
        "distribution": "latest" if MIXES[share.mix].latest else ("zipfian" if share.zipfian else "uniform"),
        "value_bytes": share.value_bytes,
        "connections": share.connections,
        "pipeline": share.depth,
        "processes": processes,
        "nodes": len(share.addresses),
        "rate": share.rate or None,
        "options": share.options,
        "seed": share.seed,
        "seconds": round(outcome.window_s, 3),
        "per_second": round(outcome.per_second, 1),
        "errors": dict(sorted(outcome.tally.errors.items())),
        "turns_lost": outcome.turns_lost,
        "latency_ms": {
            "all": plain_latency(outcome.latency),
            **{kind: plain_latency(h) for kind, h in outcome.tally.latency.items() if h.total},
        },
    }


def flat(plain: dict[str, Any]) -> dict[str, Any]:
    """The same as one row: nested names joined by an underscore."""
    row: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            row |= {f"{name}_{inner}": each for inner, each in flat(value).items()}
        else:
            row[name] = value
    return row


def as_lines(plain: dict[str, Any]) -> Iterator[str]:
    """The table for people, from what `as_plain` made."""
    loop = f"open loop at {plain['rate']:,.0f}/s" if plain["rate"] else "closed loop"
    level = " ".join(f"{name}={value}" for name, value in plain["options"].items()) or "default consistency"
    yield (
        f"mix {plain['mix']} ({MIXES[plain['mix']].about}), {plain['keys']:,} keys, {plain['distribution']}, "
        f"{plain['value_bytes']} B values"
    )
    yield (
        f"{plain['connections']} connections x {plain['pipeline']} to {plain['nodes']} nodes, {loop}, "
        f"{level}, {plain['processes']} generator processes"
    )
    yield ""
    yield f"{'':8}{'count':>12}{'per s':>10}" + "".join(
        f"{name + ' ms':>11}" for name in ("mean", *QUANTILES, "max")
    )
    for kind, row in plain["latency_ms"].items():
        figures = "".join(f"{row[name]:>11.2f}" for name in ("mean", *QUANTILES, "max"))
        share = row["count"] / max(1, plain["latency_ms"]["all"]["count"])
        yield f"{kind:8}{row['count']:>12,}{share * plain['per_second']:>10,.0f}{figures}"
    if plain["errors"]:
        yield ""
        yield "errors  " + ", ".join(f"{name} {count:,}" for name, count in plain["errors"].items())
    if plain["turns_lost"]:
        yield f"{plain['turns_lost']} requesters lost their connection: the load was less than asked for"
