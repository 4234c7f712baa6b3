"""`mlflow deployments -t ray-serve` with the service's own builder, as YAML files name it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.registry import log_classifier, resolve

pytestmark = pytest.mark.slow


@pytest.fixture
def served_at(ray_cluster: Any) -> Iterator[str]:
    from ray import serve

    serve.shutdown()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_the_whole_service_from_mlflows_command_line(
    served_at: str, store: str, tmp_path: Path, tiny_agent: Path
) -> None:
    import mlflow

    with mlflow.start_run() as run:
        version = log_classifier(
            resolve("builtin:classifier"),
            run_id=run.info.run_id,
            metrics={"macro_auroc": 0.9},
            alias="champion",
        )
    small = {"num_cpus": 0.1, "graceful_shutdown_s": 1}
    parts = ("ingress", "measurement", "classification", "agent")
    args = {
        "classifier": "{model_uri}",
        "agent": str(tiny_agent),
        "store": str(tmp_path / "ecgs"),
        "deployments": dict.fromkeys(parts, small),
    }
    config = {
        "builder": "ecg_agent_ray.serving:build",
        "args": json.dumps(args),
        "route_prefix": "/",
    }
    client = get_deploy_client("ray-serve")
    with pytest.raises(MlflowException, match="without API tokens"):
        client.create_deployment("open", "models:/ecg-classifier@champion", config=config)
    config["args"] = json.dumps(args := args | {"allow_unauthenticated": True})
    with pytest.raises(MlflowException, match="agnet"):
        wrong = config | {"args": json.dumps(args | {"agnet": "auto"})}
        client.create_deployment("wrong", "models:/ecg-classifier@champion", config=wrong)
    made = client.create_deployment("cardio", "models:/ecg-classifier@champion", config=config)
    assert made["model_uri"] == f"models:/ecg-classifier/{version.version}"
    assert made["status"] == "RUNNING"
    assert [found["name"] for found in client.list_deployments()] == ["cardio"]
    with httpx.Client(base_url=served_at, timeout=180) as http:
        parts_ready = http.get("/readyz").json()["parts"]
        assert parts_ready["classification"]["uri"] == made["model_uri"]
        ecg_id = http.post(f"/v1/samples/{ecg.samples()[0].stem}").json()["id"]
        measured = http.post(f"/v1/ecgs/{ecg_id}/measurement").json()
    assert measured == tools.measure(ecg.read(ecg.samples()[0])).to_dict()
    with pytest.raises(MlflowException, match="over HTTP"):
        client.predict("cardio", {"inputs": [1]})
    client.delete_deployment("cardio")
    assert client.list_deployments() == []
