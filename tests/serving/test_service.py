"""Readiness, metrics, page, OpenAPI, configuration, and a service that leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from ecg_agent_ray.errors import ConfigError, ServiceError
from ecg_agent_ray.serving import ServiceConfig, load_service_config, running_service
from ecg_agent_ray.serving.config import LimitsConfig
from ecg_agent_ray.serving.handles import direct
from ecg_agent_ray.serving.uploads import safe_name
from ecg_agent_ray.shipped import shipped


def test_ready_and_all_parts_there(service: Any) -> None:
    with service.client(None) as client:
        answer = client.get("/readyz")
        assert client.get("/healthz").json() == {"status": "ok"}
    assert answer.status_code == 200
    assert answer.json()["degraded"] == []
    parts = answer.json()["parts"]
    assert set(parts) == {"measurement", "classification", "agent"}
    assert parts["classification"]["uri"] == "models:/ecg-classifier@champion"
    assert parts["classification"]["reason"] == "the registered champion"
    assert parts["agent"]["reason"] == "configured"


def test_parts_are_called_without_the_object_store(service: Any) -> None:
    """Whatever Serve's default was where the handle was made."""
    from ray import serve

    handle = serve.get_deployment_handle("measurement", "ecg-agent")
    call = direct(handle).status.remote()
    assert call.by_reference is False
    assert call.result(timeout_s=60)["ready"] is True


def test_metrics_count_without_naming(service: Any, ecg_id: str) -> None:
    with service.client() as client:
        client.get(f"/v1/ecgs/{ecg_id}")
        text = client.get("/metrics").text
    assert re.search(r'ecg_agent_requests_total{.*route="/v1/ecgs/{ecg_id}".*} [1-9]', text)
    assert ecg_id not in text
    assert "alice" not in text


def test_page_is_self_contained(service: Any) -> None:
    with service.client(None) as client:
        answer = client.get("/")
    assert answer.status_code == 200
    assert "not a medical device" in answer.text.lower()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", answer.text)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    own = re.findall(r'(?:src|href)="(/[^"]+)"', answer.text)
    with service.client(None) as client:
        for path in [*own, "/page/statements.json"]:
            loaded = client.get(path)
            assert loaded.status_code == 200
            unchanged = client.get(path, headers={"If-None-Match": loaded.headers.get("etag", "")})
            assert unchanged.status_code == (304 if "etag" in loaded.headers else 200)
        assert client.get("/page/../app.py").status_code == 404
        assert client.get("/page/%2e%2e/%2e%2e/__init__.py").status_code == 404


def test_a_streamed_step_carries_the_tools_whole_result(service: Any, ecg_id: str) -> None:
    """The page shows where a value was measured, so it needs more than the model reads."""
    with service.client() as client:
        body = {
            "model": "ecg-agent",
            "messages": [{"role": "user", "content": "Please measure."}],
            "stream": True,
            "ecg_agent": {"ecg_id": ecg_id, "include_steps": True},
        }
        lines = client.post("/v1/chat/completions", json=body).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    said = [chunk["ecg_agent"] for chunk in chunks if "ecg_agent" in chunk]
    events = [part["event"] for part in said if "event" in part]
    outputs = [event for event in events if event["type"] == "tool_output"]
    assert outputs
    for event in outputs:
        assert event["detail"]["record_id"]
    (report,) = [part for part in said if "steps" in part]
    assert all("detail" not in step for step in report["steps"])


def test_openapi_tells_the_contract(service: Any) -> None:
    with service.client(None) as client:
        document = client.get("/openapi.json").json()
    for path in (
        "/v1/ecgs",
        "/v1/ecgs/{ecg_id}",
        "/v1/ecgs/{ecg_id}/signal",
        "/v1/ecgs/{ecg_id}/plot.svg",
        "/v1/ecgs/{ecg_id}/measurement",
        "/v1/ecgs/{ecg_id}/classification",
        "/v1/ecgs/{ecg_id}/explanation",
        "/v1/chat/completions",
        "/v1/models",
        "/healthz",
        "/readyz",
        "/metrics",
    ):
        assert path in document["paths"], path
    upload = document["paths"]["/v1/ecgs"]["post"]
    assert {"201", "413", "415", "422", "429", "503"} <= upload["responses"].keys()
    assert "application/problem+json" in upload["responses"]["415"]["content"]


def test_every_answer_carries_security_headers(service: Any) -> None:
    with service.client(None) as client:
        for path in ("/", "/healthz", "/nowhere", "/v1/models"):
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("name", sorted(p.stem for p in shipped("serve_configs").glob("*.yaml")))
def test_shipped_configurations_load(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = load_service_config(name)
    assert config.host in ("127.0.0.1", "0.0.0.0")
    text = (shipped("serve_configs") / f"{name}.yaml").read_text()
    ServeDeploySchema.model_validate(yaml.safe_load(text))


def test_production_is_not_open() -> None:
    with pytest.raises(ConfigError, match="API tokens"):
        load_service_config("production").check_exposure()


def test_all_faults_of_a_configuration_at_once(tmp_path: Path) -> None:
    text = (shipped("serve_configs") / "local.yaml").read_text()
    document = yaml.safe_load(text)
    document["applications"][0]["args"] |= {"retention_hours": -1, "agnet": "auto"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError) as caught:
        load_service_config(path)
    assert {problem.split(":")[0] for problem in caught.value.problems} == {
        "retention_hours",
        "agnet",
    }
    with pytest.raises(ConfigError, match="local"):
        load_service_config("nosuch")


def test_a_taken_port_is_said(ray_cluster: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = ServiceConfig(port=taken.getsockname()[1])
        with pytest.raises(ServiceError, match="cannot listen"), running_service(config):
            pass


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("00001_hr.hea", "00001_hr.hea"),
        ("../../etc/passwd", "passwd"),
        ("C:\\ecg\\a b.edf", "a_b.edf"),
        (".hidden", "hidden"),
        ("..", "upload"),
        ("", "upload"),
        ("ä\0ö.dcm", "_.dcm"),
        ("x" * 300 + ".edf", "x" * 76 + ".edf"),
    ],
)
def test_safe_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe
    assert len(safe_name(name)) <= 80


def test_limits_are_documented_with_units() -> None:
    for model in (ServiceConfig, LimitsConfig):
        assert all(field.description for field in model.model_fields.values())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_leaves_no_process(tmp_path: Path, number: int) -> None:
    """`ecg-agent serve` in its own session: after the signal nobody of that session lives."""
    environment = os.environ | {"ECG_AGENT_HOME": str(tmp_path)}
    environment.pop("RAY_ADDRESS", None)
    mark = f"ECG_AGENT_HOME={tmp_path}".encode()
    command = [sys.executable, "-m", "ecg_agent_ray.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout is not None
        url = ""
        for line in process.stdout:
            if found := re.search(r"http://\S+", line):
                url = found[0]
                break
        assert httpx.get(f"{url}/readyz", timeout=10).status_code == 200
        # open, but for this machine alone
        rebound = httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"}, timeout=10)
        assert rebound.status_code == 403
        if number == signal.SIGINT:
            # a terminal sends Ctrl-C to the whole group, Ray's processes included
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(60) == 0
    deadline = time.monotonic() + 20
    while (left := _processes_with(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []


def _processes_with(mark: bytes) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            if mark in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_killed_part_degrades_and_comes_back(service: Any, ecg_id: str) -> None:
    """kill -9 of the classifier: measuring goes on, classifying is right or a 503 for a while."""
    with service.client() as client:
        expected = client.post(f"/v1/ecgs/{ecg_id}/classification").json()
        for process in psutil.Process().children(recursive=True):
            # Ray names a worker after the actor it runs
            if process.name().startswith("ray::ServeReplica:ecg-agent:classif"):
                process.kill()
        statuses = []
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert client.post(f"/v1/ecgs/{ecg_id}/measurement").status_code == 200
            ready = client.get("/readyz")
            assert ready.status_code == 200, ready.text
            answer = client.post(f"/v1/ecgs/{ecg_id}/classification", timeout=90)
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                assert answer.json() == expected
                break
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) > 0
            time.sleep(0.5)
        assert statuses[-1] == 200
