"""What Prometheus is told; counted where it happens, collected when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kvstore.apps.ratelimit.breaker import Circuit
from kvstore.apps.ratelimit.limiter import Limiter

_SECONDS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class _Decisions(Collector):
    """The limiter's own counts."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def collect(self) -> Iterable[Metric]:
        """Called at each scrape."""
        decided = CounterMetricFamily(
            "kv_ratelimit_decisions",
            "Calls decided, by rule, by what decided, and whether they were allowed",
            labels=["rule", "source", "allowed"],
        )
        for (rule, source, allowed), count in sorted(self._limiter.counts.decisions.items()):
            decided.add_metric([rule, source.value, str(allowed).lower()], count)
        circuit = GaugeMetricFamily(
            "kv_ratelimit_circuit", "1 for the state of the circuit to the store", labels=["state"]
        )
        for state in Circuit:
            circuit.add_metric([state.value], float(self._limiter.breaker.circuit is state))
        renewed = CounterMetricFamily(
            "kv_ratelimit_renewals", "Batches asked for ahead of need, in local mode", labels=["result"]
        )
        for result, count in self._limiter.counts.renewals.items():
            renewed.add_metric([result], count)
        doubt = GaugeMetricFamily(
            "kv_ratelimit_clock_doubt_seconds", "How far apart the earliest and the latest are that it can be"
        )
        doubt.add_metric([], self._limiter.moments().doubt_us / 1_000_000)
        return [decided, circuit, renewed, doubt]


class Metrics:
    """One service's metrics, in a registry of their own."""

    def __init__(self, limiter: Limiter) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Decisions(limiter))
        self.requests = Counter(
            "kv_ratelimit_http_requests", "Requests served", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "kv_ratelimit_http_request_seconds",
            "Time to serve",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.grpc_requests = Counter(
            "kv_ratelimit_grpc_requests", "Calls of ShouldRateLimit", ["code"], registry=self._registry
        )
        self.grpc_seconds = Histogram(
            "kv_ratelimit_grpc_request_seconds",
            "Time to answer ShouldRateLimit",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.reloads = Counter(
            "kv_ratelimit_rule_reloads", "Rules files read anew", ["result"], registry=self._registry
        )

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
