"""What the report draws, as numbers: coordinates of the timeline and of the plots. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jepsen_lite.history import Operation
from jepsen_lite.judging import Span
from jepsen_lite.verdict import Verdict

OUTCOMES = ("ok", "fail", "unknown")
TIMELINE_OPS_MAX = 250
_NEAR_MIN = 40
"""Operations around the evidence, however little there was at its time."""
COLUMN, ROW_MIN, HEIGHT_MAX = 150, 16, 9_000
_MARGIN_S = 0.25
PLOT_WIDTH, PLOT_HEIGHT, PLOT_LEFT, PLOT_BOTTOM = 900, 220, 56, 24
_LATENCY_MS = (0.1, 10_000.0)
_POINTS_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Box:
    """One operation of the timeline."""

    x: float
    y: float
    height: float
    outcome: str
    label: str
    hover: str
    marked: bool


@dataclass(frozen=True, slots=True)
class Band:
    """A fault, as far as it is in the picture; along the axis of time."""

    start: float
    size: float
    label: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """One key, a column for each process, time downwards."""

    key: str
    why: str
    columns: tuple[str, ...]
    boxes: tuple[Box, ...]
    bands: tuple[Band, ...]
    ticks: tuple[Tick, ...]
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Plot:
    """Time to the right, something upwards; one SVG path for each outcome."""

    title: str
    paths: dict[str, str]
    bands: tuple[Band, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def chosen_key(operations: Sequence[Operation], failing: Verdict | None) -> str:
    """The key to show: of the verdict, of its evidence, or the busiest one."""
    if failing is not None:
        told = [failing.key, *(op.key for part in failing.evidence for op in part.operations)]
        known = {op.key for op in operations}
        for key in told:
            if key in known:
                return key
    counts: dict[str, int] = {}
    for op in operations:
        counts[op.key] = counts.get(op.key, 0) + 1
    return max(sorted(counts), key=lambda key: counts[key], default="")


def timeline(operations: Sequence[Operation], spans: Sequence[Span], failing: Verdict | None) -> Timeline:
    """The failing key around the evidence, or the beginning of the busiest one."""
    key = chosen_key(operations, failing)
    evidence = [op for part in failing.evidence for op in part.operations] if failing else []
    marked = {(op.process, op.began) for op in evidence}
    of_key = sorted((op for op in operations if op.key == key), key=lambda op: op.began)
    moments = [at for op in evidence for at in (op.began, op.ended) if at is not None and at < 1e9]
    shown = _window(of_key, marked, min(moments, default=-math.inf), max(moments, default=math.inf))
    if not shown:
        return Timeline(key, "no operation", (), (), (), (), COLUMN, 0)
    since = shown[0].began - _MARGIN_S
    until = max(op.ended if op.ended is not None else op.began for op in shown) + _MARGIN_S
    height = min(max(len(shown) * ROW_MIN * 2, 300), HEIGHT_MAX)
    scale = height / (until - since)
    processes = sorted({op.process for op in shown})
    boxes = tuple(
        Box(
            processes.index(op.process) * COLUMN,
            round((op.began - since) * scale, 1),
            round(max(((op.ended if op.ended is not None else until) - op.began) * scale, ROW_MIN - 2), 1),
            op.outcome,
            _label(op),
            str(op),
            (op.process, op.began) in marked,
        )
        for op in shown
    )
    step = _step((until - since) / max(height / 80, 1))
    ticks = tuple(
        Tick(round((at * step - since) * scale, 1), f"{at * step:g} s")
        for at in range(math.ceil(since / step), math.floor(until / step) + 1)
    )
    why = "around the evidence, which has a thick edge" if marked else "the busiest key"
    if len(shown) < len(of_key):
        why += f"; {len(shown)} of its {len(of_key)} operations"
    columns = tuple(f"process {process}" for process in processes)
    return Timeline(
        key, why, columns, boxes, _bands(spans, since, until, height), ticks, len(columns) * COLUMN, height
    )


def _window(
    of_key: Sequence[Operation], marked: set[tuple[int, float]], since: float, until: float
) -> list[Operation]:
    """Operations to show: those marked, and those near them in time, as many as a reader bears."""
    if not marked:
        return list(of_key[:TIMELINE_OPS_MAX])

    def distance(op: Operation) -> tuple[bool, float]:
        """Marked ones first, then by how far in time from the evidence."""
        ended = op.ended if op.ended is not None else math.inf
        away = max(since - ended, op.began - until, 0.0)
        return (op.process, op.began) not in marked, away if away > _MARGIN_S else 0.0

    ordered = sorted(of_key, key=distance)
    inside = sum(distance(op)[1] == 0.0 for op in ordered)
    kept = {id(op) for op in ordered[: min(max(inside, _NEAR_MIN), TIMELINE_OPS_MAX)]}
    return [op for op in of_key if id(op) in kept]


def _label(op: Operation) -> str:
    value = "" if op.value is None else str(op.value)
    if isinstance(op.value, list):
        value = f"[{len(op.value)}]"
    if op.kind == "cas":
        value = f"{'-' if op.expected is None else op.expected}→{value}"
    text = f"{op.kind} {value}"
    return text if len(text) <= 24 else text[:23] + "…"


def _bands(spans: Sequence[Span], since: float, until: float, size: float) -> tuple[Band, ...]:
    scale = size / (until - since)
    return tuple(
        Band(
            round((max(span.began, since) - since) * scale, 1),
            round(max((min(span.ended, until) - max(span.began, since)) * scale, 1), 1),
            str(span.fault),
        )
        for span in spans
        if span.began < until and span.ended > since
    )


def _step(least: float) -> float:
    """A round number of at least this: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(least, 1e-6)))
    return next(round(power * times, 9) for times in (1, 2, 5, 10) if power * times >= least * 0.999)


def _x(at: float, until: float) -> float:
    return round(PLOT_LEFT + at / until * (PLOT_WIDTH - PLOT_LEFT), 1)


def _until(operations: Sequence[Operation], spans: Sequence[Span]) -> float:
    ends = [op.ended if op.ended is not None else op.began for op in operations]
    return max([*ends, *(span.ended for span in spans), 1.0])


def _time_axis(until: float) -> tuple[Tick, ...]:
    step = _step(until / 12)
    return tuple(Tick(_x(at * step, until), f"{at * step:g} s") for at in range(math.floor(until / step) + 1))


def _plot_bands(spans: Sequence[Span], until: float) -> tuple[Band, ...]:
    return tuple(
        Band(
            _x(max(span.began, 0.0), until),
            max(round(_x(span.ended, until) - _x(max(span.began, 0.0), until), 1), 1.0),
            str(span.fault),
        )
        for span in spans
    )


def latencies(operations: Sequence[Operation], spans: Sequence[Span]) -> Plot:
    """A point for each operation: when it ended, and how long it took, on a logarithmic scale."""
    until = _until(operations, spans)
    low, high = (math.log10(bound) for bound in _LATENCY_MS)
    floor = PLOT_HEIGHT - PLOT_BOTTOM

    def y(ms: float) -> float:
        share = (math.log10(min(max(ms, _LATENCY_MS[0]), _LATENCY_MS[1])) - low) / (high - low)
        return round(floor - share * floor, 1)

    ended = [op for op in operations if op.ended is not None]
    stride = max(len(ended) // _POINTS_MAX, 1)
    paths = {
        word: "".join(
            f"M{_x(op.ended or 0.0, until)} {y(((op.ended or 0.0) - op.began) * 1000)}h0"
            for op in ended[::stride]
            if op.outcome == word
        )
        for word in OUTCOMES
    }
    ticks = tuple(Tick(y(ms), f"{ms:g} ms") for ms in (0.1, 1, 10, 100, 1_000, 10_000))
    return Plot("Latency", paths, _plot_bands(spans, until), _time_axis(until), ticks)


def rates(operations: Sequence[Operation], spans: Sequence[Span]) -> Plot:
    """Operations a second, by outcome, over as many slices as the width bears."""
    until = _until(operations, spans)
    width = max(until / 120, 0.25)
    slices = math.floor(until / width) + 1
    counts = {word: [0] * slices for word in OUTCOMES}
    for op in operations:
        if op.outcome in counts:
            at = op.ended if op.ended is not None else op.began
            counts[op.outcome][min(int(at / width), slices - 1)] += 1
    top = max((max(row) for row in counts.values()), default=1) / width or 1.0
    step = _step(top / 4)
    top = math.ceil(top / step) * step
    floor = PLOT_HEIGHT - PLOT_BOTTOM

    def y(rate: float) -> float:
        return round(floor - rate / top * floor, 1)

    paths = {
        word: "M"
        + "L".join(f"{_x(min((n + 0.5) * width, until), until)} {y(c / width)}" for n, c in enumerate(row))
        for word, row in counts.items()
        if any(row)
    }
    ticks = tuple(Tick(y(n * step), f"{n * step:g}/s") for n in range(round(top / step) + 1))
    return Plot("Rate", paths, _plot_bands(spans, until), _time_axis(until), ticks)
