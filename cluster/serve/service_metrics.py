"""What the service counts and times, for Prometheus: of this replica alone."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)


class ServiceMetrics:
    """The figures of one process; routes are named by their templates, so that no id becomes a label."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        of: Any = {"registry": self._registry, "namespace": "genrec"}
        self.requests = Counter("requests", "requests by route and status", ["route", "method", "status"], **of)
        self.request_s = Histogram("request_seconds", "whole requests", ["route"], buckets=SECONDS, **of)
        self.in_flight = Gauge("requests_in_flight", "requests in progress", **of)
        self.batch = Histogram(
            "search_requests", "requests per search", ["run"], buckets=(1, 2, 4, 8, 16, 32, 64), **of
        )
        self.search_s = Histogram("search_seconds", "searches", ["run"], buckets=SECONDS, **of)
        self.answers = Counter("answers", "recommendations by run and source", ["run", "source", "cached"], **of)
        self.changes = Counter("changes", "inserts, removals and reloads", ["change", "result"], **of)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


METRICS = ServiceMetrics()
"""Of this process: a replica has one service."""
