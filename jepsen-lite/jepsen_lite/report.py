"""The report of a run: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path

from jepsen_lite import drawing
from jepsen_lite.history import encode
from jepsen_lite.nemesis import Plan
from jepsen_lite.runner import Options, Outcome

NAME = "report.html"
_TEMPLATE = "report_template.html"


class NoTemplatingError(Exception):
    """Jinja is not installed: the other files of the run are there all the same."""


def render(options: Options, plan: Plan, outcome: Outcome) -> str:
    """The whole page. Raises NoTemplatingError."""
    try:
        from jinja2 import Environment, StrictUndefined  # noqa: PLC0415  an extra: `kvring[jepsen]`
    except ImportError:
        raise NoTemplatingError("no report without jinja2: pip install 'kvring[jepsen]'") from None
    text = resources.files("jepsen_lite").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    # Everything that is shown came from clients, nodes or logs: all of it is escaped.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    lines = "\n".join(encode(op) for op in outcome.operations)
    return environment.from_string(text).render(
        options=options,
        plan=plan,
        outcome=outcome,
        word=str(outcome.judgement.word),
        failing=outcome.judgement.failing,
        figures=_rows(outcome.judgement.figures),
        timeline=drawing.timeline(outcome.operations, outcome.spans, outcome.judgement.failing),
        plots=[
            drawing.latencies(outcome.operations, outcome.spans),
            drawing.rates(outcome.operations, outcome.spans),
        ],
        sizes=drawing,
        history=base64.b64encode(_history(outcome, lines)).decode(),
    )


def _history(outcome: Outcome, lines: str) -> bytes:
    import json  # noqa: PLC0415

    return (json.dumps({"jepsen-lite": 1, **outcome.header}) + "\n" + lines + "\n").encode()


def _rows(figures: dict[str, object]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            rows += [(f"{name}: {inner}", each) for inner, each in value.items()]
        elif value is not None:
            rows.append((name, round(value, 3) if isinstance(value, float) else value))
    return [(name.replace("_", " "), value) for name, value in rows]


def write(directory: Path, options: Options, plan: Plan, outcome: Outcome) -> Path:
    """Write the page of a run into its folder. Raises NoTemplatingError."""
    path = directory / NAME
    path.write_text(render(options, plan, outcome), encoding="utf-8")
    return path
