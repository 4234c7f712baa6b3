"""`ecg-agent serve` with its neighbours of production: ECGs on S3, traces in an MLflow server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
import yaml

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.shipped import shipped

BUCKET = "hospital"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Neighbours:
    """URLs of the service and of the MLflow server, and a client of the S3 server."""

    url: str
    mlflow_url: str
    s3: Any

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=180)

    def objects(self) -> list[str]:
        """Keys in the bucket, whole."""
        found = self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return sorted(item["Key"] for item in found)


@pytest.fixture(scope="module")
def neighbours(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_agent: Path,
    empty_database: Path,
    mlflow_server: Any,
) -> Iterator[Neighbours]:
    pytest.importorskip("s3fs")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    folder = tmp_path_factory.mktemp("neighbours")
    s3_server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3_server.start()
    host, port = s3_server.get_host_and_port()
    # what a container is given, and nothing else
    aws = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws.items():
            patch.setenv(name, value)
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket=BUCKET)
        shutil.copy(empty_database, folder / "mlflow.db")
        with (
            mlflow_server(f"sqlite:///{folder / 'mlflow.db'}") as tracking,
            _served(folder, tiny_agent, tracking) as url,
        ):
            yield Neighbours(url, tracking, s3)
    s3_server.stop()


@contextlib.contextmanager
def _served(folder: Path, agent: Path, tracking: str) -> Iterator[str]:
    document = yaml.safe_load((shipped("serve_configs") / "local.yaml").read_text())
    document["applications"][0]["args"] |= {
        "agent": str(agent),
        "classifier": "builtin:",
        "store": f"s3://{BUCKET}/ecgs",
        "traces": {"endpoint": "mlflow"},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(document))
    environment = os.environ | {
        "ECG_AGENT_HOME": str(folder / "home"),
        "MLFLOW_TRACKING_URI": tracking,
    }
    command = [sys.executable, "-m", "ecg_agent_ray.cli", "serve", "--port", "0"]
    command += ["--config", str(folder / "mine.yaml")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            found = (re.search(r"http://\S+", line) for line in process.stdout)
            yield next(match[0] for match in found if match)
        finally:
            process.terminate()
            process.wait(60)


def test_an_ecg_on_s3(neighbours: Neighbours) -> None:
    header = ecg.samples()[0]
    files = [("files", (p.name, p.read_bytes())) for p in (header, header.with_suffix(".dat"))]
    with neighbours.client() as client:
        ecg_id = client.post("/v1/ecgs", files=files).json()["id"]
        folder = f"ecgs/{ecg_id}"
        assert neighbours.objects() == [f"{folder}/meta.json", f"{folder}/signal.npy"]
        measured = client.post(f"/v1/ecgs/{ecg_id}/measurement").json()
        assert measured == tools.measure(ecg.read(header)).to_dict()
        assert client.delete(f"/v1/ecgs/{ecg_id}").status_code == 204
        assert neighbours.objects() == []
        assert client.get(f"/v1/ecgs/{ecg_id}").status_code == 404


def test_one_mlflow_trace_a_turn(neighbours: Neighbours) -> None:
    """Made by three processes, put together by the server."""
    messages: list[dict[str, str]] = []
    tools_called = []
    with neighbours.client() as client:
        ecg_id = client.post(f"/v1/samples/{ecg.samples()[0].stem}").json()["id"]
        for said in ("Zebra: please measure.", "Zebra: and again?"):
            messages.append({"role": "user", "content": said})
            about = {"ecg_id": ecg_id, "include_steps": True}
            body = {"model": "ecg-agent", "messages": messages, "ecg_agent": about}
            answer = client.post("/v1/chat/completions", json=body).json()
            messages.append(answer["choices"][0]["message"])
            tools_called.append(sorted({s["tool"] for s in answer["ecg_agent"]["steps"]}))
    expected = [
        {"POST /v1/chat/completions", "turn", *names, *(f"call {name}" for name in names)}
        for names in tools_called
    ]
    turns = _turns(neighbours.mlflow_url, expected)
    assert sorted(turns.values(), key=sorted) == sorted(expected, key=sorted)
    assert any("measurement" in names for names in expected)
    text = " ".join(turns)
    for secret in ("Zebra", ecg_id, messages[-1]["content"]):
        assert secret not in text


def _turns(mlflow_url: str, expected: list[set[str]]) -> dict[str, set[str]]:
    """The names of its spans by the text of each trace of a turn, once they are as expected."""
    client = mlflow.MlflowClient(mlflow_url)
    deadline = time.monotonic() + 90
    while True:
        turns = {}
        experiment = client.get_experiment_by_name("ecg-agent-traces")
        for trace in client.search_traces(locations=[experiment.experiment_id]):
            names = {span.name for span in trace.data.spans}
            if "POST /v1/chat/completions" in names:
                turns[trace.to_json()] = names
        complete = sorted(turns.values(), key=sorted) == sorted(expected, key=sorted)
        if complete or time.monotonic() > deadline:
            return turns
        time.sleep(0.5)
