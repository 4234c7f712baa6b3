"""Several sources with repeats, weights and shares of first actions: drawn the same every time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, load_tokenizer
from ecg_agent_ray.agent.chat_format import IGNORE_INDEX, ChatFormat
from ecg_agent_ray.dialogue import Action, Dialogue, Turn, write_dialogues
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_data import TrainingData, dialogue_plan, training_data


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(load_tokenizer(LAPTOP_BASE_MODEL))


def dialogue(number: int) -> Dialogue:
    return Dialogue(
        turns=[
            Turn.user(f"What is my heart rate, number {number}?"),
            Turn.call(Action.CALL_MEASUREMENT, "A value is asked for.", {"heart_rate": "70"}),
            Turn.answer(Action.RESPONSE, "I have it.", "Your heart rate is 70 bpm."),
            Turn.user("Goodbye."),
            Turn.answer(Action.SYSTEM_BYE, "They leave.", "Take care."),
        ],
        ecg_files=["a.hea"],
        metadata={"lead_configuration": "12-lead"},
    )


def config(tmp_path: Path, *overrides: str) -> LLMFinetuneConfig:
    write_dialogues(tmp_path / "a.jsonl", [dialogue(n) for n in range(20)])
    write_dialogues(tmp_path / "b.jsonl", [dialogue(100 + n) for n in range(10)])
    return load_config(
        LLMFinetuneConfig, None, [f"train={tmp_path / 'a.jsonl'}", "seed=3", *overrides]
    )


def mixed(tmp_path: Path, a: str = "", b: str = "") -> list[str]:
    return [f"train=[{{path: {tmp_path / 'a.jsonl'}{a}}}, {{path: {tmp_path / 'b.jsonl'}{b}}}]"]


def data(tmp_path: Path, chat: ChatFormat, *overrides: str) -> TrainingData:
    return training_data(chat, config(tmp_path, *overrides))


def test_one_path_is_each_dialogue_once(tmp_path: Path, chat: ChatFormat) -> None:
    found = data(tmp_path, chat)
    assert [sample.dialogue for sample in found.samples(0)] == list(range(20))
    assert {(sample.end, sample.weight) for sample in found.samples(0)} == {(None, 1.0)}


def test_sources_are_repeated_and_drawn_anew_in_each_epoch(
    tmp_path: Path, chat: ChatFormat
) -> None:
    job = mixed(tmp_path, ", repeat: 0.3", ", repeat: 2.5, weight: 4")
    found = data(tmp_path, chat, *job)
    uses = Counter(sample.dialogue for sample in found.samples(0))
    assert sum(n for index, n in uses.items() if index < 20) == 6
    assert sorted(n for index, n in uses.items() if index >= 20) == [2] * 5 + [3] * 5
    assert {sample.weight for sample in found.samples(0) if sample.dialogue >= 20} == {4.0}
    assert found.samples(1) != found.samples(0)
    assert data(tmp_path, chat, *job).samples(1) == found.samples(1)
    assert data(tmp_path, chat, *job, "seed=4").samples(0) != found.samples(0)


def test_a_first_action_ends_its_row_and_only_actions_are_targets(
    tmp_path: Path, chat: ChatFormat
) -> None:
    job = config(tmp_path, *mixed(tmp_path, ", first_actions: 1"), "batch.packing=false")
    found = training_data(chat, job)
    cut = {sample.dialogue: sample.end for sample in found.samples(0) if sample.end}
    assert len(cut) == 20
    rows = {row.pieces[0].dialogue: row for row in dialogue_plan(found, job).epoch(0)}
    endings: Counter[str] = Counter()
    for index, end in cut.items():
        row = rows[index]
        assert row.input_ids == found.dialogues[index].input_ids[:end]
        targets = [label for label in row.labels if label != IGNORE_INDEX]
        said = chat.tokenizer.decode(targets).split("Action: ")[1:]
        assert said[0] == "call_measurement_tool"
        # the answer after the tool is no first action, yet named on the way to the second turn
        assert said[1:] in ([], ["response", "system_bye"])
        endings[said[-1]] += 1
    assert len(endings) == 2
    assert all(rows[index].n_targets > 40 for index in range(20, 30))


def test_a_weight_counts_in_the_loss_and_in_its_mean(tmp_path: Path, chat: ChatFormat) -> None:
    job = config(tmp_path, *mixed(tmp_path, b=", weight: 0.5"), "batch.packing=false")
    rows = dialogue_plan(training_data(chat, job), job).epoch(0)
    for row in rows:
        expected = 0.5 if row.pieces[0].dialogue >= 20 else 1.0
        actions = sum(row.is_action[index] for index in row.targets)
        assert row.total_weight(3.0) == pytest.approx(expected * (row.n_targets + 2 * actions))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="first_actions"):
        config(tmp_path, *mixed(tmp_path, ", first_actions: 2"))
    with pytest.raises(ConfigError, match="train"):
        config(tmp_path, "train=[]")
