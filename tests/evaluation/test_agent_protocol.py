"""What the model is shown in either protocol, and files that go on where they stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ecg_agent_ray.agent import Agent, Generation, GenerationRequest
from ecg_agent_ray.dialogue import Action, Dialogue, write_dialogues
from ecg_agent_ray.errors import ConfigError, InputError
from ecg_agent_ray.evaluation import (
    evaluate_agent,
    read_predictions,
    score_predictions,
    tool_source,
)

MEASURED = {
    "heart_rate": "72.35",
    "pr_interval": "160",
    "qrs_duration": "92",
    "qtc_interval": "412.55",
}
TURNS = [
    {"role": "user", "content": "Heart rate?", "action": "secret_hint"},
    {
        "role": "assistant",
        "action": "call_measurement_tool",
        "thought": "Measure.",
        "tool_output": MEASURED,
    },
    {"role": "assistant", "action": "response", "thought": "Say.", "content": "It is 72 bpm."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "action": "system_bye", "thought": "End.", "content": "Goodbye!"},
]
MEASURE = "Action: call_measurement_tool\nThought: M.\n"
CLASSIFY = "Action: call_classification_tool\nThought: C.\n"
SAY = "Action: response\nThought: S.\nContent: It is 72 bpm."
BYE = "Action: system_bye\nThought: B.\nContent: Bye!"


def dialogue(name: str = "00001") -> Dialogue:
    return Dialogue.from_row({"dialogue": TURNS, "ecg_files": [name], "metadata": {}})


class ReplayEngine:
    """Writes what it was given and keeps what it was shown."""

    name = "replay"

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.shown: list[list[str]] = []

    def fits(self, messages: Sequence[Any], request: GenerationRequest) -> bool:
        return True

    def generate(self, messages: Sequence[Any], request: GenerationRequest) -> Generation:
        self.shown.append([message["content"] for message in messages[1:]])

        def pieces() -> Iterator[str]:
            yield self.texts.pop(0)

        return Generation(pieces())


def run(tmp_path: Path, history: Any, *texts: str) -> tuple[dict[str, Any], ReplayEngine]:
    engine = ReplayEngine(*texts)
    metrics = evaluate_agent(
        [dialogue()], Agent(engine), "recorded", output=tmp_path, history=history
    )
    return metrics, engine


@pytest.mark.parametrize("history", ["without_gt", "with_gt"])
def test_a_perfect_model(tmp_path: Path, history: str) -> None:
    metrics, engine = run(tmp_path, history, MEASURE, SAY, BYE)
    assert metrics["next_action_accuracy"] == 1.0
    assert metrics["asked_value_stated"] == 1.0
    assert metrics["faithfulness"] == 1.0
    assert "secret_hint" not in str(engine.shown)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_without_gt_the_model_lives_with_its_own_history(tmp_path: Path) -> None:
    metrics, engine = run(tmp_path, "without_gt", CLASSIFY, SAY, BYE)
    assert "C." in engine.shown[1][-1]
    assert all("Measure." not in text for text in engine.shown[2])
    assert "Thought: S." in engine.shown[2][2]
    assert metrics["next_action_accuracy"] == 2 / 3
    assert metrics["tool_precision"] == 0.0


def test_with_gt_a_missed_call_changes_no_later_history(tmp_path: Path) -> None:
    metrics, engine = run(tmp_path, "with_gt", SAY, SAY, BYE)
    assert [len(shown) for shown in engine.shown] == [1, 2, 4]
    assert "Measure." in engine.shown[1][1]
    assert "Thought: Say." in engine.shown[2][2]
    assert metrics["next_action_accuracy"] == 2 / 3


def test_with_gt_an_extra_call_changes_no_later_history(tmp_path: Path) -> None:
    metrics, engine = run(tmp_path, "with_gt", MEASURE, CLASSIFY, SAY, BYE)
    assert [len(shown) for shown in engine.shown] == [1, 2, 3, 4]
    assert "Thought: Say." in engine.shown[3][2]
    assert metrics["extra_turns"] == 1
    assert metrics["next_action_accuracy"] == 3 / 4


def test_predictions_have_the_papers_schema(tmp_path: Path) -> None:
    run(tmp_path, "without_gt", MEASURE, SAY, BYE)
    (record,) = read_predictions(tmp_path / "predictions.jsonl")
    assert {
        "sample_id",
        "ecg_file",
        "source_category",
        "turns",
        "generated_dialogue",
        "ground_truth_dialogue",
        "summary",
    } <= set(record)
    assert record["ecg_file"] == "00001"
    assert record["summary"]["num_gt_assistant_turns"] == 3
    assert record["generated_dialogue"][1]["tool_output"] == MEASURED
    again = score_predictions(tmp_path / "predictions.jsonl", tmp_path / "again")
    assert again["next_action_accuracy"] == 1.0


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    three = [dialogue(str(number)) for number in range(3)]
    first = ReplayEngine(MEASURE, SAY, BYE)
    evaluate_agent(three[:1], Agent(first), "recorded", output=tmp_path)
    path = tmp_path / "predictions.jsonl"
    path.write_text(path.read_text() + '{"sample_id": 1, "cut')
    rest = ReplayEngine(*[MEASURE, SAY, BYE] * 2)
    done: list[int] = []
    metrics = evaluate_agent(three, Agent(rest), "recorded", output=tmp_path, progress=done.append)
    assert rest.texts == []
    assert done == [0, 1, 2]
    assert metrics["n_dialogues"] == 3
    assert [item["sample_id"] for item in read_predictions(path)] == [0, 1, 2]
    with pytest.raises(ConfigError, match="begun with"):
        evaluate_agent(three, Agent(rest), "recorded", output=tmp_path, history="with_gt")


def test_a_dialogue_without_its_ecg_counts_as_missing(tmp_path: Path) -> None:
    metrics = evaluate_agent(
        [dialogue("nowhere")],
        Agent(ReplayEngine()),
        tool_source("live", ecg_dir=tmp_path, classifier=object()),
        output=tmp_path / "out",
    )
    assert metrics["missing_turns"] == 3
    (record,) = read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert "nowhere" in record["error"]


def test_outputs_from_csvs(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        "ecg_file_path,PR_Interval_ms,QTc_ms,QRS_Duration_ms,Heart_Rate\n"
        "records/00001.mat,160.2,412.5512,92,72.349\nrecords/00002.mat,,412.5,92,72\n"
    )
    (tmp_path / "c.csv").write_text(
        'ecg_file_path,top_classes\n00001,"SR (98.23%), NORM (86.88%)"\n00002,None > 50%\n'
    )
    tools = tool_source([str(tmp_path / "m.csv"), str(tmp_path / "c.csv")])

    def output(name: str, action: Action) -> Any:
        return tools(dialogue(name)).call(action, question="", previous=()).output

    assert output("00001", Action.CALL_MEASUREMENT) == {**MEASURED, "heart_rate": "72.35"}
    assert output("00001.hea", Action.CALL_CLASSIFICATION) == ["SR (98.23%)", "NORM (86.88%)"]
    assert output("00002", Action.CALL_MEASUREMENT)["pr_interval"] is None
    assert output("00002", Action.CALL_CLASSIFICATION) == []
    assert "error" in output("00003", Action.CALL_MEASUREMENT)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError):
        tool_source([str(tmp_path / "x.csv")])


def test_live_tools_find_recordings_by_stem(shared_data: Path) -> None:
    source = tool_source("live", ecg_dir=shared_data / "ptbxl", classifier=object())
    result = source(dialogue("00421_hr")).call(Action.CALL_MEASUREMENT, question="", previous=())
    assert 30 < float(result.output["heart_rate"]) < 200
    assert result.detail is not None


def test_live_tools_need_a_folder() -> None:
    with pytest.raises(InputError, match="ecg-dir"):
        tool_source("live")


def test_the_job_scores_predictions(tmp_path: Path) -> None:
    run(tmp_path, "without_gt", MEASURE, SAY, BYE)
    job = Path(__file__).resolve().parents[2] / "jobs" / "evaluate_agent.py"
    done = subprocess.run(
        [
            sys.executable,
            str(job),
            f"predictions={tmp_path / 'predictions.jsonl'}",
            f"output={tmp_path / 'scored'}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_dialogues"] == 1
    write_dialogues(tmp_path / "d.jsonl", [dialogue()])
    failed = subprocess.run(
        [sys.executable, str(job), f"dialogues={tmp_path / 'd.jsonl'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 2
    assert "output" in failed.stderr


class SlowEngine:
    """Answers after a while, and counts how many wait at a time."""

    name = "slow"

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0

    def fits(self, messages: Sequence[Any], request: GenerationRequest) -> bool:
        return True

    def generate(self, messages: Sequence[Any], request: GenerationRequest) -> Generation:
        def pieces() -> Iterator[str]:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.05)
            with self.lock:
                self.now -= 1
            yield SAY

        return Generation(pieces())


def test_several_dialogues_are_in_flight(tmp_path: Path) -> None:
    engine = SlowEngine()
    written = [dialogue(f"{number:05}") for number in range(6)]
    done: list[int] = []
    evaluate_agent(
        written,
        Agent(engine),
        "recorded",
        output=tmp_path,
        in_flight=3,
        progress=done.append,
    )
    assert engine.most == 3
    assert sorted(done) == list(range(6))
    records = read_predictions(tmp_path / "predictions.jsonl")
    assert sorted(record["sample_id"] for record in records) == list(range(6))
    again = evaluate_agent(written, Agent(engine), "recorded", output=tmp_path, in_flight=3)
    assert len(read_predictions(tmp_path / "predictions.jsonl")) == 6
    assert again["n_dialogues"] == 6
    with pytest.raises(ConfigError, match="in flight"):
        evaluate_agent(written, Agent(engine), "recorded", output=tmp_path, in_flight=0)
