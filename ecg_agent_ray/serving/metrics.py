"""Our own Prometheus metrics. They count; they hold no id, no name and no word of a patient.

A scrape through the service's port reaches any one of the ingress replicas, so every series carries
the ``replica`` that counted it: ``sum(rate(…))`` over them is the whole service.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

__all__ = ["ServiceMetrics"]

_NAMESPACE = "ecg_agent"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_DIFFERENCES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 1)


class ServiceMetrics:
    """Counters and histograms of one ingress replica."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._replica = f"{os.uname().nodename}-{os.getpid()}"

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace=_NAMESPACE, registry=self._registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> Histogram:
            return Histogram(
                name, text, labels, namespace=_NAMESPACE, registry=self._registry, buckets=buckets
            )

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, namespace=_NAMESPACE, registry=self._registry)

        self.requests = counter("requests", "Requests", "method", "route", "status")
        self.latency = histogram("request_seconds", "Time to the whole response", "route")
        self.overloads = counter("overloads", "Requests refused for want of capacity", "part")
        self.turns = counter(
            "turns", "Chat turns by the action that ended them", "action", "leads", "arm"
        )
        self.degraded_turns = counter("degraded_turns", "Turns that lacked a part", "part")
        self.tool_calls = counter("tool_calls", "Tool calls in chat", "tool", "leads")
        self.tool_seconds = histogram("tool_seconds", "One tool call", "tool")
        self.tokens = counter("tokens", "Language model tokens", "kind")
        self.queue = histogram("queue_seconds", "Until the agent began to work on a turn")
        self.first_content = histogram(
            "time_to_first_content_seconds", "Until the answer's first text"
        )
        self.repairs = counter("grounding", "Sentences changed by the number check", "what", "arm")
        self.refused_uploads = counter("refused_uploads", "Refused uploads", "reason")
        self.uploads = counter("uploads", "ECGs taken", "leads", "format")
        self.lead_quality = counter("lead_quality", "Leads of ECGs taken", "leads", "status")
        self.measured = counter(
            "measured_values", "Values asked of the measurement tool", "leads", "value", "given"
        )
        self.classified = counter("classified", "ECGs classified", "leads")
        self.positive = counter("positive_labels", "Labels above the threshold", "leads", "label")
        self.compared = counter("canary_compared", "ECGs classified by champion and challenger")
        self.disagreed = counter("canary_disagreed", "Labels in one answer alone", "label")
        self.difference = histogram(
            "canary_largest_difference",
            "Largest difference of a label's probability between champion and challenger",
            buckets=_DIFFERENCES,
        )
        self.evaluation = gauge(
            "champion_evaluation",
            "Evaluation logged with the version in use: the baseline of what is served",
            "kind",
            "version",
            "metric",
        )
        gauge("replica_info", "Which ingress replica answered").set(1)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; ``route`` is the template, not the path."""
        self.requests.labels(method, route, str(status)).inc()
        self.latency.labels(route).observe(seconds)

    def observe_turn(self, final: Mapping[str, Any]) -> None:
        """Count one finished chat turn from its ``final`` event."""
        leads, arm = final["lead_configuration"], final["arm"]
        self.turns.labels(final["action"], leads, arm).inc()
        for part in final["degraded"]:
            self.degraded_turns.labels(part).inc()
        for step in final["steps"]:
            self.tool_calls.labels(step["tool"], leads).inc()
            if step["ms"]:
                self.tool_seconds.labels(step["tool"]).observe(step["ms"] / 1000)
            self._observe_output(step["tool"], leads, step["tool_output"])
        for kind in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            self.tokens.labels(kind.removesuffix("_tokens")).inc(final["usage"].get(kind, 0))
        for what, count in final["grounding"].items():
            self.repairs.labels(what, arm).inc(count)
        timings = final["timings"]
        self.queue.observe(timings["queue_s"])
        if "first_content_s" in timings:
            self.first_content.observe(timings["first_content_s"])

    def observe_upload(self, leads: str, format_: str, quality: Iterable[str]) -> None:
        """Count one ECG and the quality status of each of its leads."""
        self.uploads.labels(leads, format_).inc()
        for status in quality:
            self.lead_quality.labels(leads, status).inc()

    def observe_tool(self, tool: str, leads: str, result: Mapping[str, Any]) -> None:
        """Count one result of a tool's endpoint: its dialogue form and the canary's comparison."""
        self._observe_output(tool, leads, result["output"])
        if (canary := result.get("canary")) is not None:
            self.compared.inc()
            for label in canary["disagree"]:
                self.disagreed.labels(label).inc()
            self.difference.observe(canary["largest_difference"])

    def _observe_output(self, tool: str, leads: str, output: Any) -> None:
        if tool == "measurement" and isinstance(output, Mapping) and "error" not in output:
            for value, given in output.items():
                self.measured.labels(leads, value, str(given is not None).lower()).inc()
        elif tool == "classification" and isinstance(output, list):
            self.classified.labels(leads).inc()
            for entry in output:
                self.positive.labels(leads, str(entry).partition(" ")[0]).inc()

    def observe_version(self, kind: str, version: str, metrics: Mapping[str, float]) -> None:
        """The evaluation of the version in use; forgets that of the one before."""
        for labels in [found for found in self._evaluated() if found[0] == kind]:
            self.evaluation.remove(*labels)
        for name, value in metrics.items():
            self.evaluation.labels(kind, version, name).set(value)

    def _evaluated(self) -> list[tuple[str, ...]]:
        samples = next(iter(self.evaluation.collect())).samples
        return [(s.labels["kind"], s.labels["version"], s.labels["metric"]) for s in samples]

    def families(self) -> list[Metric]:
        """Every metric there is, those that counted nothing yet among them."""
        return list(self._registry.collect())

    def render(self) -> bytes:
        return generate_latest(_WithReplica(self._registry, self._replica))  # type: ignore[arg-type]


class _WithReplica:
    """A registry's metrics with the label ``replica`` on every series."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry = registry
        self._replica = replica

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [self._labelled(sample) for sample in metric.samples]
            yield metric

    def _labelled(self, sample: Sample) -> Sample:
        return sample._replace(labels={**sample.labels, "replica": self._replica})
