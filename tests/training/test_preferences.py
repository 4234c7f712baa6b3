"""Pairs from a real engine's own answers: drawn once, judged by rewards, best against worst."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, load_tokenizer
from ecg_agent_ray.agent.loop import Agent
from ecg_agent_ray.agent.transformers_engine import TransformersEngine
from ecg_agent_ray.dialogue import Action, Dialogue, Turn, parse_turn, render_turn
from ecg_agent_ray.training.llm_pairs import read_pairs, write_pairs
from ecg_agent_ray.training.preferences import (
    Sampled,
    Sampling,
    Situation,
    brevity,
    dialogue_situations,
    preference_pairs,
    right_action,
    sample_answers,
)


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    """A random model: the grammar alone makes its texts assistant turns."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(LAPTOP_BASE_MODEL)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return TransformersEngine(LlamaForCausalLM(shape), tokenizer=tokenizer, device="cpu")


def dialogues() -> list[Dialogue]:
    return [
        Dialogue(
            turns=[
                Turn.user("What is my heart rate?"),
                Turn.call(Action.CALL_MEASUREMENT, "A value is asked for.", {"heart_rate": rate}),
                Turn.answer(Action.RESPONSE, "I have it.", f"Your heart rate is {rate} bpm."),
                Turn.user("Goodbye."),
                Turn.answer(Action.SYSTEM_BYE, "They leave.", "Take care."),
            ],
            ecg_files=["a.hea"],
            metadata={"lead_configuration": "II"},
        )
        for rate in ("70", "80")
    ]


def test_every_assistant_turn_is_a_situation(engine: TransformersEngine) -> None:
    found = list(
        dialogue_situations(
            Agent(engine, "II"), dialogues(), facts=lambda _, place: {"place": place}
        )
    )
    assert [one.facts["place"] for one in found] == [1, 2, 4, 1, 2, 4]
    # the question is the same in both dialogues, what follows it is not
    assert len({one.key for one in found}) == 5
    call, answer, bye = found[:3]
    assert [message["role"] for message in call.messages] == ["system", "user"]
    assert call.reference == "Action: call_measurement_tool\nThought: A value is asked for."
    assert Action.CALL_MEASUREMENT in call.actions
    assert Action.CALL_MEASUREMENT not in answer.actions
    assert Action.CALL_MEASUREMENT in bye.actions
    assert '"heart_rate": "70"' in answer.messages[-1]["content"]


def test_answers_are_drawn_once_and_the_same_again(
    tmp_path: Path, engine: TransformersEngine
) -> None:
    situations = list(dialogue_situations(Agent(engine, "II"), dialogues()))[:3]
    sampling = Sampling(per_situation=3, max_tokens=24)
    path = tmp_path / "samples.jsonl"
    found = list(sample_answers(engine, situations, path, sampling))
    assert all(1 < len(one.answers) <= 3 for one in found)
    for one in found:
        assert {parse_turn(text).assistant_action for text in one.answers} <= {
            *one.situation.actions
        }
    lines = path.read_text().splitlines(keepends=True)
    # killed within the second line
    path.write_text(lines[0] + lines[1][:50])
    again = list(sample_answers(engine, situations, path, sampling))
    assert again == found
    assert [line for line in path.read_text().splitlines(keepends=True) if line in lines] == lines


def answered(*answers: str, reference: str | None = None) -> Sampled:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    situation = Situation(key="k", messages=messages, reference=reference, facts={"rate": "70"})
    return Sampled(situation=situation, answers=list(answers))


RIGHT = render_turn(Turn.answer(Action.RESPONSE, "I have it.", "It is 70 bpm."))
OTHER = render_turn(Turn.answer(Action.RESPONSE, "I have it.", "It is 90 bpm."))
WRONG = render_turn(Turn.answer(Action.RESPONSE_FAIL, "No.", "I cannot tell."))
LONG = render_turn(Turn.answer(Action.RESPONSE, "I have it.", "It is 70 bpm. " * 20))


def states_rate(turn: Turn, situation: Situation) -> float:
    return float(situation.facts["rate"] in (turn.content or ""))


def test_the_best_answer_is_paired_with_the_worst(tmp_path: Path) -> None:
    rewards = {"action": right_action, "fact": states_rate, "brevity": brevity(10)}
    sampled = [answered(OTHER, WRONG, RIGHT, LONG, reference=RIGHT)]
    (pair,) = preference_pairs(sampled, rewards)
    assert (pair.chosen, pair.rejected) == (RIGHT, WRONG)
    assert pair.rewards is not None
    assert pair.rewards["rejected"] == {"action": 0.0, "fact": 0.0, "brevity": 1.0}
    pairs = preference_pairs(sampled, rewards, per_situation=3, margin=0.2)
    assert [one.rejected for one in pairs] == [WRONG, OTHER, LONG]
    assert read_pairs(write_pairs(tmp_path / "p.jsonl", pairs)) == pairs
    only_action = preference_pairs(sampled, rewards, weights={"fact": 0, "brevity": 0})
    assert [one.rejected for one in only_action] == [WRONG]


def test_the_reference_is_chosen_where_no_answer_is_good() -> None:
    rewards = {"action": right_action}
    sampled = [answered("no turn at all", WRONG, reference=RIGHT)]
    (pair,) = preference_pairs(sampled, rewards)
    assert (pair.chosen, pair.rejected) == (RIGHT, "no turn at all")
    assert preference_pairs(sampled, rewards, with_reference=False) == []
    assert preference_pairs([answered(RIGHT, OTHER, reference=RIGHT)], rewards) == []
