"""One trace a user turn, across the replicas, with nothing of the patient in it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.serving import ServiceConfig
from ecg_agent_ray.serving.config import TracesConfig
from ecg_agent_ray.serving.tracing import configure_tracing

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")


def test_one_trace_a_turn(service: Any, collector: Any, ecg_id: str) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    body = {
        "model": "ecg-agent",
        "messages": [{"role": "user", "content": "Zebra: what is the heart rate?"}],
        "ecg_agent": {"ecg_id": ecg_id, "include_steps": True},
    }
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    with service.client() as client:
        answer = client.post("/v1/chat/completions", json=body, headers=headers).json()
    tools = [step["tool"] for step in answer["ecg_agent"]["steps"]]
    names = {"POST /v1/chat/completions", "turn", *(f"call {t}" for t in tools), *tools}

    def ours() -> list[tuple[int, Any]]:
        return [(pid, s) for pid, s in collector.spans if s.trace_id.hex() == trace_id]

    deadline = time.monotonic() + 60
    while not names <= {s.name for _, s in ours()} and time.monotonic() < deadline:
        time.sleep(0.2)
    spans = ours()
    assert {s.name for _, s in spans} == names
    # ingress, agent, and a tool's replica where the random model called one
    assert len({pid for pid, _ in spans}) == 2 + len({t == "measurement" for t in tools})
    ids = {s.span_id for _, s in spans}
    roots = [s.name for _, s in spans if s.parent_span_id not in ids]
    assert roots == ["POST /v1/chat/completions"]
    with service.client() as client:
        client.get(f"/v1/ecgs/{ecg_id}")
    while "GET /v1/ecgs/{ecg_id}" not in {s.name for _, s in collector.spans}:
        assert time.monotonic() < deadline + 60
        time.sleep(0.2)
    told = "".join(str(s) for _, s in collector.spans)
    for secret in ("Zebra", ecg_id, answer["choices"][0]["message"]["content"]):
        assert secret not in told


def test_traces_to_mlflow_need_its_server() -> None:
    config = ServiceConfig(
        traces=TracesConfig(endpoint="mlflow"), tracking_uri="sqlite:///somewhere.db"
    )
    with pytest.raises(ConfigError, match="MLflow server"):
        configure_tracing(config, "test")
