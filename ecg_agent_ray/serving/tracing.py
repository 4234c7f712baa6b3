"""One OpenTelemetry trace a request, across the replicas that worked on it.

Spans carry names, times, counts and model versions; no id of an ECG, no word of a dialogue. They go
to any OTLP/HTTP endpoint; MLflow's tracking server is one.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, Status, StatusCode

from ecg_agent_ray.errors import ConfigError, MissingDependencyError
from ecg_agent_ray.serving.config import ServiceConfig, TracesConfig

__all__ = ["carrier", "configure_tracing", "span"]

_log = logging.getLogger(__name__)
_TRACER = trace.get_tracer("ecg_agent_ray")
_EXPERIMENT = "ecg-agent-traces"


def configure_tracing(config: ServiceConfig, part: str) -> None:
    """Send this process's spans where the configuration says; for replicas, once each.

    A tracing system that is away costs its spans and nothing else.

    Raises:
        MissingDependencyError: the exporter is not installed.
        ConfigError: traces shall go to MLflow, which is no server here.
    """
    if config.traces.endpoint is None:
        return
    _install(config.traces, config.tracking_uri or "", part)


@functools.cache
def _install(traces: TracesConfig, tracking_uri: str, part: str) -> None:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingDependencyError(
            "traces need opentelemetry-exporter-otlp-proto-http",
            hint="pip install 'ecg-agent-ray[traces]'",
        ) from error
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    endpoint = traces.endpoint or ""
    headers: dict[str, str] = {}
    if endpoint == "mlflow":
        endpoint, headers = _mlflow_endpoint(tracking_uri)
    resource = Resource.create(
        {"service.name": "ecg-agent", "service.namespace": part, "process.pid": os.getpid()}
    )
    provider = TracerProvider(resource=resource, sampler=ParentBasedTraceIdRatio(traces.share))
    exporter = OTLPSpanExporter(endpoint=endpoint, headers=headers, timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)


def _mlflow_endpoint(tracking_uri: str) -> tuple[str, dict[str, str]]:
    if not tracking_uri.startswith(("http://", "https://")):
        raise ConfigError(
            f"traces can go to an MLflow server, which {tracking_uri!r} is not",
            hint="set MLFLOW_TRACKING_URI to its http(s) address",
        )
    import mlflow

    client = mlflow.MlflowClient(tracking_uri)
    found = client.get_experiment_by_name(_EXPERIMENT)
    number = found.experiment_id if found else client.create_experiment(_EXPERIMENT)
    headers = {"x-mlflow-experiment-id": str(number)}
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    return f"{tracking_uri.rstrip('/')}/v1/traces", headers


def carrier() -> dict[str, str]:
    """The current span as text, to be sent along with a call to another replica."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


@contextlib.contextmanager
def span(name: str, parent: Mapping[str, str] | None = None, **attributes: Any) -> Iterator[Span]:
    """A span within ``parent``, a :func:`carrier`, or within the current one."""
    with _TRACER.start_as_current_span(
        name,
        context=propagate.extract(parent) if parent else None,
        attributes={f"ecg_agent.{key}": value for key, value in attributes.items()},
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except Exception as error:
            # its text may hold what a patient said
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
