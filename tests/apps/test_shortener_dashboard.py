"""The Grafana dashboard asks for metrics, labels and values that a service really exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

import kvstore
from kvstore.apps.shortener.cache import Found, LinkCache
from kvstore.apps.shortener.clicks import Clicks
from kvstore.apps.shortener.metering import Meters

FILE = Path(__file__).parents[2] / "configs" / "grafana" / "shortener.json"
ADDED = {"instance"}
"""By Prometheus when it scrapes."""
REQUESTS = [
    ("/{name}", "GET", 302), ("/{name}", "GET", 503),
    ("/api/links", "POST", 201), ("/api/links", "POST", 429), ("/links", "POST", 303),
]  # fmt: skip


async def _nothing(_code: str, _verify: bool) -> Found:
    return Found(None, 0, verified=True)


@pytest.fixture
async def samples() -> dict[str, list[dict[str, str]]]:
    """Labels of all samples, by name, of a service in which everything has happened once."""
    cache = LinkCache(_nothing, monotonic=lambda: 0.0, ttl_s=1.0, verify_s=4.0, links_max=10)
    meters = Meters(cache, Clicks(cast("kvstore.Client", None), flush_s=1.0, monotonic=lambda: 0.0))
    for route, method, status in REQUESTS:
        meters.request(route=route, method=method, status=status, seconds=0.001)
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(meters.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def queries() -> list[str]:
    dashboard = json.loads(FILE.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return asked + [each["definition"] for each in dashboard["templating"]["list"] if "definition" in each]


def _matches(how: str, wanted: str, value: str) -> bool:
    found = re.fullmatch(wanted, value) is not None if "~" in how else wanted == value
    return found != how.startswith("!")


async def test_each_query_finds_something(samples: dict[str, list[dict[str, str]]]) -> None:
    asked = queries()
    assert len(asked) >= 15
    for query in asked:
        names = re.findall(r"\bkv_shortener_\w+", query)
        assert names, query
        for name in names:
            assert name in samples, query
        for name, selector in re.findall(r"(kv_shortener_\w+)\{((?:[^}\"]|\"[^\"]*\")*)\}", query):
            parts = re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selector)
            wanted = [part for part in parts if part[0] not in ADDED]
            assert any(
                all(_matches(how, value, labels[label]) for label, how, value in wanted)
                for labels in samples[name]
            ), query
        for grouping in re.findall(r"by \(([^)]*)\)", query):
            known = ADDED.union(*(labels for name in names for labels in samples[name]))
            assert set(re.split(r",\s*", grouping)) <= known, query


async def test_every_metric_is_shown_somewhere(samples: dict[str, list[dict[str, str]]]) -> None:
    shown = set(re.findall(r"kv_shortener_\w+", " ".join(queries())))
    left_out = {name for name in samples if not name.endswith(("_created", "_sum", "_count"))} - shown
    assert left_out == set()


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = json.loads(FILE.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
