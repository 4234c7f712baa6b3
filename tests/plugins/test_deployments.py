"""``mlflow deployments -t ray-serve`` with plain pyfunc models on a real Ray Serve."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pandas as pd
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from ecg_agent_ray.plugins import deployments
from ecg_agent_ray.plugins.deployments import target_help
from ecg_agent_ray.shipped import shipped

MODEL = """
import time
import mlflow
from mlflow.pyfunc import PythonModel

class Adder(PythonModel):
    def load_context(self, context):
        self.number = context.model_config["number"]
        if self.number < 0:
            raise RuntimeError("this model does not load")

    def predict(self, context, model_input, params=None):
        time.sleep(0.05)
        return [float(x) + self.number for x in model_input["x"]]

    def predict_stream(self, context, model_input, params=None):
        for step in range(3):
            yield {"step": step + self.number}

mlflow.models.set_model(Adder())
"""


@pytest.fixture
def add(store: str, tmp_path: Path) -> Callable[[int], str]:
    """``add(n)``: URI of a new version of a model that adds ``n``."""
    script = tmp_path / "adder.py"
    script.write_text(MODEL)

    def log(number: int) -> str:
        with mlflow.start_run():
            info = mlflow.pyfunc.log_model(
                name="adder",
                python_model=str(script),
                model_config={"number": number},
                pip_requirements=["mlflow"],
                registered_model_name="adder",
            )
        return f"models:/adder/{info.registered_model_version}"

    return log


@pytest.fixture
def client(serve_port: int) -> Iterator[Any]:
    """The target's client; nothing of a test that failed is left for the next."""
    from ray import serve

    yield get_deploy_client("ray-serve")
    for name in serve.status().applications:
        serve.delete(name)


SMALL = {"num_cpus": "0.1"}


def test_a_deployment_from_creation_to_deletion(
    serve_port: int, client: Any, add: Callable[[int], str]
) -> None:
    add(1)
    mlflow.MlflowClient().set_registered_model_alias("adder", "champion", "1")
    made = client.create_deployment("one", "models:/adder@champion", config=SMALL)
    assert made["flavor"] == "python_function"
    assert made["model_uri"] == "models:/adder/1"
    assert (made["status"], made["replicas"]) == ("RUNNING", {"RUNNING": 1})
    assert made["url"] == f"http://127.0.0.1:{serve_port}/one"
    with pytest.raises(MlflowException, match="exists"):
        client.create_deployment("one", "models:/adder/1")
    assert [item["name"] for item in client.list_deployments()] == ["one"]

    table = pd.DataFrame({"x": [1.0, 2.5]})
    assert client.predict("one", table).get_predictions()[0].tolist() == [2.0, 3.5]
    url = made["url"]
    said = httpx.post(f"{url}/invocations", json={"dataframe_split": table.to_dict("split")})
    assert said.json() == {"predictions": [2.0, 3.5]}
    csv = httpx.post(f"{url}/invocations", content="x\n4\n", headers={"content-type": "text/csv"})
    assert csv.json() == {"predictions": [5.0]}
    assert httpx.get(f"{url}/ping").status_code == 200
    assert httpx.get(f"{url}/version").text == mlflow.__version__
    assert httpx.get(f"{url}/nothing").status_code == 404
    assert httpx.post(f"{url}/invocations", json={"wrong": 1}).status_code == 400
    streamed = httpx.post(f"{url}/invocations", json={"inputs": {"x": 1}, "stream": True})
    steps = [json.loads(line[6:]) for line in streamed.text.splitlines() if line]
    assert steps == [{"step": 1}, {"step": 2}, {"step": 3}]

    client.delete_deployment("one")
    assert client.list_deployments() == []
    with pytest.raises(MlflowException, match="no deployment 'one'"):
        client.get_deployment("one")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_update_drops_no_request_and_a_failed_one_changes_nothing(
    client: Any, add: Callable[[int], str]
) -> None:
    uris = [add(1), add(10), add(-1)]
    url = client.create_deployment("two", uris[0], config=SMALL)["url"]
    answers: list[tuple[int, Any]] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=120) as http:
            while not stop.is_set():
                said = http.post(f"{url}/invocations", json={"dataframe_records": [{"x": 0}]})
                answers.append((said.status_code, said.text))
                time.sleep(0.02)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        updated = client.update_deployment("two", uris[1], config={"max_ongoing_requests": "4"})
        count = len(answers)
        with pytest.raises(MlflowException, match=r"does not load.*models:/adder/2 as before"):
            client.update_deployment("two", uris[2])
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert updated["model_uri"] == uris[1]
    assert updated["config"] == {"num_cpus": 0.1, "max_ongoing_requests": 4}
    assert {status for status, _ in answers} == {200}
    assert {text for _, text in answers[count + 3 :]} == {'{"predictions": [10.0]}'}
    assert {text for _, text in answers[:1]} == {'{"predictions": [1.0]}'}
    assert client.get_deployment("two")["model_uri"] == uris[1]
    assert client.get_deployment("two")["status"] == "RUNNING"
    client.delete_deployment("two")


@pytest.mark.slow
def test_a_failed_creation_leaves_nothing(client: Any, add: Callable[[int], str]) -> None:
    with pytest.raises(MlflowException, match="does not load"):
        client.create_deployment("three", add(-1), config=SMALL)
    assert client.list_deployments() == []
    with pytest.raises(MlflowException, match="not healthy after 3 s"):
        client.create_deployment("three", add(1), config={"num_cpus": 999, "timeout_s": 3})
    assert client.list_deployments() == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_endpoint_spreads_its_traffic(client: Any, add: Callable[[int], str]) -> None:
    client.create_endpoint("both")
    for name, number in (("a", 1), ("b", 2)):
        made = client.create_deployment(name, add(number), config=SMALL, endpoint="both")
        assert made["url"] is None
    assert client.get_endpoint("both")["traffic"] == {"a": 100, "b": 0}
    client.update_endpoint("both", {"traffic": '{"a": 50, "b": 50}'})
    url = client.get_endpoint("both")["url"]
    payload = {"dataframe_records": [{"x": 0}]}
    seen = [httpx.post(f"{url}/invocations", json=payload, timeout=60).text for _ in range(30)]
    assert set(seen) == {'{"predictions": [1.0]}', '{"predictions": [2.0]}'}
    client.delete_deployment("b")
    assert client.list_endpoints()[0]["traffic"] == {"a": 50}
    answer = client.predict(endpoint="both", inputs=payload)
    assert answer["predictions"] == [1.0]
    client.delete_endpoint("both")
    client.delete_deployment("a")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"replicas": 2}, "replicas: unknown key, did you mean 'num_replicas'"),
        ({"min_replicas": 1}, "belong together"),
        ({"num_cpus": "-1"}, "num_cpus"),
    ],
)
def test_options_are_checked(client: Any, store: str, config: dict[str, Any], said: str) -> None:
    with pytest.raises(MlflowException, match=said):
        client.create_deployment("four", "models:/adder/1", config=config)


def test_what_may_move_is_pinned(add: Callable[[int], str]) -> None:
    add(1)
    add(2)
    mlflow.MlflowClient().set_registered_model_alias("adder", "champion", "1")
    pinned = {
        "models:/adder@champion": "models:/adder/1",
        "models:/adder/latest": "models:/adder/2",
        "models:/adder/1": "models:/adder/1",
        "runs:/abc/adder": "runs:/abc/adder",
    }
    assert {uri: deployments._pinned(uri) for uri in pinned} == pinned


def test_help_names_every_option() -> None:
    text = target_help()
    assert "max_replicas" in text
    assert "route_prefix" in text


def test_the_commands_that_are_written_down_are_mlflows() -> None:
    from mlflow.deployments.cli import commands

    text = shipped("mlflow_projects/README.md").read_text() + str(deployments.__doc__)
    text = re.sub(r"\\\n\s*", "", text)
    written = re.findall(r"^ *mlflow deployments (\S+) (.*?)(?:#.*)?$", text, re.MULTILINE)
    assert len(written) >= 5
    for verb, options in written:
        assert commands.commands[verb].make_context(verb, shlex.split(options))


@pytest.mark.slow
def test_run_local_serves_from_the_command_line(
    add: Callable[[int], str], store: str, tmp_path: Path
) -> None:
    uri = add(5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "deployments", "run-local", "-t", "ray-serve"]
    command += ["--name", "local", "-m", uri, "-C", f"port={port}"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=env | {"MLFLOW_TRACKING_URI": store}
    )
    assert process.stdout is not None
    try:
        assert f"http://127.0.0.1:{port}/local" in process.stdout.readline()
        said = httpx.post(
            f"http://127.0.0.1:{port}/local/invocations", json={"dataframe_records": [{"x": 1}]}
        )
        assert said.json() == {"predictions": [6.0]}
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
