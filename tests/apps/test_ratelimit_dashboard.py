"""The Grafana dashboard asks for metrics and labels that the service really exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families

import kvstore
from kvstore.apps.ratelimit.limiter import Limiter, Source
from kvstore.apps.ratelimit.metrics import Metrics

FILE = Path(__file__).parents[2] / "configs" / "grafana" / "ratelimit.json"
ADDED = {"instance"}
"""By Prometheus when it scrapes."""
_METRIC = re.compile(r"\bkv_ratelimit_\w+")
_LABELS = re.compile(r"(\w+)\s*(?:=~|!=|!~|=)")


def exported() -> dict[str, set[str]]:
    """Samples and their labels, of a service in which everything has happened once."""
    limiter = Limiter(cast("kvstore.Client", None), {})
    limiter.counts.of("api", Source.STRICT)[True] += 1
    metrics = Metrics(limiter)
    metrics.requests.labels("/v1/check", "200").inc()
    metrics.seconds.labels("/v1/check").observe(0.001)
    metrics.grpc_requests.labels("OK").inc()
    metrics.grpc_seconds.observe(0.001)
    metrics.reloads.labels("done").inc()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def queries() -> list[str]:
    dashboard = json.loads(FILE.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return asked + [each["definition"] for each in dashboard["templating"]["list"] if "definition" in each]


def test_each_metric_and_label_that_is_queried_is_exported() -> None:
    samples, asked = exported(), queries()
    assert len(asked) >= 15
    for query in asked:
        names = _METRIC.findall(query)
        assert names, query
        for name in names:
            assert name in samples, query
            labels = samples[name] | ADDED
            for selector in re.findall(re.escape(name) + r"\{([^}]*)\}", query):
                assert set(_LABELS.findall(selector)) <= labels, query
            for grouping in re.findall(r"by \(([^)]*)\)", query):
                assert set(re.split(r",\s*", grouping)) <= labels, query


def test_each_metric_that_is_exported_is_shown() -> None:
    shown = {name for query in queries() for name in _METRIC.findall(query)}
    families = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in exported()}
    assert families - {re.sub(r"_(bucket|total)$", "", name) for name in shown} == set()


def test_panels_stand_side_by_side_and_have_ids_of_their_own() -> None:
    panels: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
