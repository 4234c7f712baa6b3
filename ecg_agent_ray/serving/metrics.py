"""Our own Prometheus metrics. They count; they hold no id, no name and no word of a patient.

Each ingress replica counts what it served and names itself in the ``replica`` label.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["ServiceMetrics"]

_NAMESPACE = "ecg_agent"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServiceMetrics:
    """Counters and histograms of one ingress replica."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace=_NAMESPACE, registry=self._registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                f"{name}_seconds",
                text,
                labels,
                namespace=_NAMESPACE,
                registry=self._registry,
                buckets=_SECONDS,
            )

        self.requests = counter("requests", "Requests", "method", "route", "status")
        self.latency = seconds("request", "Time to the whole response", "route")
        self.turns = counter("turns", "Chat turns by the action that ended them", "action")
        self.tool_calls = counter("tool_calls", "Tool calls in chat", "tool")
        self.tokens = counter("tokens", "Language model tokens", "kind")
        self.first_content = seconds("time_to_first_content", "Until the answer's first text")
        self.repairs = counter("grounding", "Sentences changed by the number check", "what")
        self.refused_uploads = counter("refused_uploads", "Refused uploads", "reason")
        replica = Gauge(
            "replica_info",
            "Which ingress replica answered",
            ["replica"],
            namespace=_NAMESPACE,
            registry=self._registry,
        )
        replica.labels(f"{os.uname().nodename}-{os.getpid()}").set(1)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; ``route`` is the template, not the path."""
        self.requests.labels(method, route, str(status)).inc()
        self.latency.labels(route).observe(seconds)

    def observe_turn(self, final: Mapping[str, Any]) -> None:
        """Count one finished chat turn from its ``final`` event."""
        self.turns.labels(final["action"]).inc()
        for step in final["steps"]:
            self.tool_calls.labels(step["tool"]).inc()
        for kind in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            self.tokens.labels(kind.removesuffix("_tokens")).inc(final["usage"].get(kind, 0))
        for what, count in final["grounding"].items():
            self.repairs.labels(what).inc(count)
        first = final.get("timings", {}).get("first_content_s")
        if first is not None:
            self.first_content.observe(first)

    def render(self) -> bytes:
        return generate_latest(self._registry)
