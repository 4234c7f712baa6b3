"""The benchmark of turns: every engine and the published loop write every turn of the dialogues."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ecg_agent_ray.agent.load import AgentManifest, write_manifest
from ecg_agent_ray.cli import app
from ecg_agent_ray.dialogue import Action, Dialogue, Turn, write_dialogues
from ecg_agent_ray.pipelines.bench.turn_times import TurnTime, summarised

DIALOGUE = Dialogue(
    turns=[
        Turn.user("What is my heart rate?"),
        Turn.call(Action.CALL_MEASUREMENT, "I measure.", {"heart_rate": "72.35"}),
        Turn.answer(Action.RESPONSE, "I have it.", "Your heart rate is 72 bpm."),
        Turn.user("Thank you, bye."),
        Turn.answer(Action.SYSTEM_BYE, "The user says goodbye.", "Goodbye."),
    ],
    ecg_files=["one"],
    source_category="test",
)


@pytest.fixture
def tiny_agent(tmp_path: Path, tiny_tokenizer: Any, make_tiny_model: Callable[..., Any]) -> Path:
    folder = tmp_path / "agent"
    make_tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    write_manifest(folder, AgentManifest())
    return folder


def test_every_turn_is_written_by_all(tmp_path: Path, tiny_agent: Path) -> None:
    dialogues = write_dialogues(tmp_path / "dialogues.jsonl", [DIALOGUE])
    command = ["bench", "agent", "--dialogues", str(dialogues), "--model", str(tiny_agent)]
    command += ["--engine", "transformers", "--output", str(tmp_path / "bench.json"), "--json"]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    told = json.loads((tmp_path / "bench.json").read_text())
    assert json.loads(run.stdout) == told
    paper, ours = told["engines"]["paper_loop"], told["engines"]["transformers"]
    assert told["n_turns"] == paper["turns"] == ours["turns"] == 3
    assert ours["unreadable"] == 0
    assert paper["tokens_per_turn"] == 512  # random weights seldom write the end token
    assert paper["dtype"] in ("float32", "bfloat16")
    assert told["batch"]["in_flight"] == 8
    assert told["batch"]["dialogues_per_s"] > 0
    ratio = paper["turn_s"] / ours["turn_s"]
    assert told["speedup"]["transformers"]["turn_s"] == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "abacus"], "abacus"),
        (["--model", "openai:http://localhost:9/v1#m"], "endpoint"),
        (["--dialogues", "/nowhere.jsonl"], "nowhere"),
    ],
)
def test_what_cannot_be_timed_is_said(
    tmp_path: Path, tiny_agent: Path, options: list[str], message: str
) -> None:
    dialogues = write_dialogues(tmp_path / "dialogues.jsonl", [DIALOGUE])
    command = ["bench", "agent", "--dialogues", str(dialogues), "--model", str(tiny_agent)]
    run = CliRunner().invoke(app, [*command, *options])
    assert run.exit_code != 0
    assert message in run.output or message in str(run.exception)


def test_medians_and_right_actions() -> None:
    turns = [
        TurnTime(1.0, 0.2, None, 0.5, "call_measurement_tool", 20),
        TurnTime(3.0, 0.4, 0.8, 3.0, "response", 40),
        TurnTime(2.0, None, None, 2.0, None, 60),
    ]
    told = summarised(turns, ["call_measurement_tool", "response_fail", "response"])
    assert told["turn_s"] == 2.0
    assert told["turn_to_tool_output_s"] == 2.0
    assert told["tool_name_s"] == 0.2
    assert told["first_answer_token_s"] == 0.8
    assert told["next_action_accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    assert told["unreadable"] == 1
