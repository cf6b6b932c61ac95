"""Metrics in Prometheus's text form; one registry for each service."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstore.apps.shortener.cache import LinkCache
from kvstore.apps.shortener.clicks import Clicks

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class _Inside(Collector):
    """Numbers that the parts keep for themselves."""

    def __init__(self, cache: LinkCache, clicks: Clicks) -> None:
        self._cache = cache
        self._clicks = clicks

    def collect(self) -> Iterator[Metric]:
        """Read them now."""
        for name, about, value in (
            ("cache_hits", "Links served from memory", self._cache.hits),
            ("cache_reads", "Links read from the store", self._cache.reads),
            ("clicks_noted", "Clicks counted in memory", self._clicks.noted),
            ("clicks_dropped", "Clicks not counted, for want of room", self._clicks.dropped),
            ("click_writes_failed", "Writes of clicks that were tried again", self._clicks.failed),
        ):
            yield CounterMetricFamily(f"kv_shortener_{name}", about, value=value)
        for name, about, waiting in (
            ("clicks_waiting", "Clicks in memory that are not written", self._clicks.waiting),
            ("journal_waiting", "Records of clicks that are not counted", self._clicks.journal_waiting),
        ):
            yield GaugeMetricFamily(f"kv_shortener_{name}", about, value=waiting)


class Meters:
    """What is measured at the door."""

    def __init__(self, cache: LinkCache, clicks: Clicks) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Inside(cache, clicks))
        self._requests = Counter(
            "kv_shortener_requests", "Requests", ["route", "method", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "kv_shortener_request_seconds",
            "How long requests took",
            ["route"],
            registry=self._registry,
            buckets=_BUCKETS,
        )

        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        """By labels: looking them up costs more than counting."""

    def request(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """Count one."""
        found = self._known.get((route, method, status))
        if found is None:
            found = self._requests.labels(route, method, str(status)), self._seconds.labels(route)
            self._known[route, method, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
