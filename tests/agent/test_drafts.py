"""Guesses come from the longest run that is known, of earlier answers or of the prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from ecg_agent_ray.agent import GenerationRequest, TransformersEngine
from ecg_agent_ray.agent.drafts import (
    DRAFTS_NAME,
    DraftMemory,
    PromptDrafts,
    choose_drafts,
    read_drafts,
    write_drafts,
)
from ecg_agent_ray.cli import app
from ecg_agent_ray.dialogue import system_prompt

SYSTEM = {"role": "system", "content": system_prompt("12-lead")}


def test_what_was_written_is_guessed() -> None:
    memory = DraftMemory(length=4)
    memory.learn([1, 2, 3, 4, 5, 6, 7, 8], start=2)
    assert memory.guess([9, 2, 3]) == [4, 5, 6, 7]
    assert memory.guess([1, 2]) == [3, 4, 5, 6]
    assert memory.guess([2, 1]) == []


def test_a_longer_run_decides() -> None:
    memory = DraftMemory(length=1)
    memory.learn([1, 2, 3, 4], start=0)
    for _ in range(3):
        memory.learn([9, 2, 3, 5], start=0)
    assert memory.guess([2, 3]) == [5]
    assert memory.guess([1, 2, 3]) == [4]


def test_the_more_frequent_stays() -> None:
    memory = DraftMemory(length=1)
    for last in (4, 4, 4, 5):
        memory.learn([2, 3, last], start=2)
    assert memory.guess([2, 3]) == [4]


def test_the_prompt_is_copied_from() -> None:
    memory = DraftMemory(length=3)
    assert memory.guess([0, 7, 8], PromptDrafts([5, 7, 8, 1, 2, 3, 4])) == [1, 2, 3]


def test_memory_is_bounded() -> None:
    memory = DraftMemory(entries=10)
    memory.learn(list(range(100)), start=0)
    assert len(memory._next) == 10


def test_messages_beside_the_weights(tmp_path: Path) -> None:
    assert read_drafts(None) == read_drafts(tmp_path) == []
    (tmp_path / DRAFTS_NAME).write_text("Action: a\\nThought: b\\n\n\nAction: c\n")
    assert read_drafts(tmp_path) == ["Action: a\nThought: b\n", "Action: c"]


def test_frequent_messages_with_something_new_are_chosen(tmp_path: Path) -> None:
    common = "Thought: I measure.\nContent: Your heart rate is 72 bpm."
    alike = common.replace("72", "81")
    other = "Thought: I look.\nContent: The rhythm is regular, nothing else was found."
    assert choose_drafts([other, common, common, alike], most=5) == [common, other]
    assert choose_drafts([other, common, common], most=1) == [common]
    write_drafts(tmp_path / DRAFTS_NAME, [common, "Thought: b\n"])
    assert read_drafts(tmp_path) == [common, "Thought: b\n"]


def test_the_command_writes_an_agents_file(tmp_path: Path) -> None:
    row = {
        "dialogue": [
            {"role": "user", "content": "Rate?"},
            {"role": "assistant", "action": "call_measurement_tool", "thought": "I measure.",
             "tool_output": {"heart_rate": "72"}},
            {"role": "assistant", "action": "response", "thought": "So.", "content": "72 bpm."},
        ],
        "ecg_files": [],
        "metadata": {},
        "source_category": "made up",
    }  # fmt: skip
    source, target = tmp_path / "d.jsonl", tmp_path / DRAFTS_NAME
    encoded = {k: v if k == "source_category" else json.dumps(v) for k, v in row.items()}
    source.write_text(json.dumps(encoded) + "\n")
    command = ["data", "dialogues", "drafts", str(source), "--output", str(target)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert read_drafts(tmp_path) == [
        "Action: call_measurement_tool\nThought: I measure.\n",
        "Action: response\nThought: So.\nContent: 72 bpm.",
    ]


def test_first_drafts_save_forwards_and_change_nothing(
    tiny_tokenizer: Any, make_tiny_model: Callable[..., Any]
) -> None:
    messages = [SYSTEM, {"role": "user", "content": "What is my heart rate?"}]
    request = GenerationRequest(max_tokens=64)
    bare = TransformersEngine(make_tiny_model(), tokenizer=tiny_tokenizer)
    first = bare.generate(messages, request)
    text = first.text()
    helped = TransformersEngine(make_tiny_model(), tokenizer=tiny_tokenizer, drafts=[text])
    for _ in range(2):
        again = helped.generate(messages, request)
        assert again.text() == text
        assert again.usage.forwards < first.usage.forwards
        helped.clear_cache()
