"""Dialogues in slots: the shipped ones, and what the checker finds."""

from __future__ import annotations

import random

import pytest

from ecg_agent_ray.dialogue import Action, Dialogue, Turn, read_dialogues, stats, validate
from ecg_agent_ray.errors import DialogueError


def dialogue(content: str, question: str = "How fast is my heart?", **measured: object) -> Dialogue:
    output = {"heart_rate": "62", "pr_interval": "160", "qrs_duration": "90", "qtc_interval": "410"}
    return Dialogue(
        turns=[
            Turn.user(question),
            Turn.call(Action.CALL_MEASUREMENT, "The rate is asked for.", output | measured),
            Turn.answer(Action.RESPONSE, "Give it.", content),
        ],
        ecg_files=["00001_hr"],
        metadata={"lead_configuration": "12-lead"},
    )


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_the_shipped_dialogues_have_no_fault(part: str) -> None:
    dialogues = read_dialogues(f"builtin:{part}")
    sample = random.Random(0).sample(dialogues, 120)
    faults = [str(p) for p in validate(sample) if p.severity == "error"]
    assert faults == []


def test_the_parts_share_no_author_and_no_dialogue() -> None:
    parts = [read_dialogues(f"builtin:{part}") for part in ("train", "held_out")]
    authors = [{d.metadata["author"] for d in part} for part in parts]
    assert not authors[0] & authors[1]
    ids = [d.metadata["dialogue_id"] for part in parts for d in part]
    assert len(set(ids)) == len(ids)
    counts = stats([d for part in parts for d in part])
    assert counts.n_dialogues >= 1400
    assert counts.distinct_user_utterances > 0.97 * counts.n_user_turns


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(DialogueError, match="builtin:train"):
        read_dialogues("builtin:nothing")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("Your pulse is {heart_rate}.", None),
        ("Your pulse is {heart_rate.vs:80}.", "named no 80"),
        ("Your pulse is {heart_rate}, nothing else matters.", "left out"),
        ("Your pulse is {pulse}. {heart_rate}.", "not a slot"),
        ("{pr_interval.missing}. {heart_rate}.", "no text here"),
    ],
)
def test_faults_of_an_answer(content: str, fault: str | None) -> None:
    found = [p.message for p in validate([dialogue(content)]) if p.code == "slot"]
    assert any(fault in message for message in found) if fault else not found
