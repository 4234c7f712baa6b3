"""Metrics on hand-made dialogues whose values can be counted by eye."""

from __future__ import annotations

from typing import Any

import pytest

from ecg_agent_ray.agent.asked import asked_quantities
from ecg_agent_ray.evaluation.alignment import align_turns, aligned_records
from ecg_agent_ray.evaluation.metrics import score

MEASURED = {
    "heart_rate": "72.35",
    "pr_interval": None,
    "qrs_duration": "92",
    "qtc_interval": "412.55",
}
USER = {"role": "user", "content": "What is my heart rate?", "action": "ask_measurement"}


def call(name: str, output: Any) -> dict[str, Any]:
    action = f"call_{name}_tool"
    return {"role": "assistant", "action": action, "thought": "t", "tool_output": output}


def say(content: str, action: str = "response") -> dict[str, Any]:
    return {"role": "assistant", "action": action, "thought": "t", "content": content}


def record(
    reference: list[dict[str, Any]], generated: list[dict[str, Any]], history: str = "without_gt"
) -> dict[str, Any]:
    return {
        "sample_id": 0,
        "ground_truth_dialogue": reference,
        "generated_dialogue": generated,
        "summary": {"history": history},
    }


REFERENCE = [USER, call("measurement", MEASURED), say("Your heart rate is 72 bpm.")]


def test_all_right() -> None:
    metrics = score([record(REFERENCE, REFERENCE)])
    for name in (
        "next_action_accuracy",
        "tool_precision",
        "tool_recall",
        "faithfulness",
        "asked_value_stated",
    ):
        assert metrics[name] == 1.0
        assert metrics["intervals"][name] == [1.0, 1.0]
    assert (metrics["n_dialogues"], metrics["n_turns"]) == (1, 2)
    assert metrics["per_action"]["response"] == {
        "total": 1,
        "correct": 1,
        "accuracy": 1.0,
        "extra": 0,
    }


def test_a_missed_call_is_a_missing_turn() -> None:
    metrics = score([record(REFERENCE, [USER, say("Your heart rate is 80 bpm.")])])
    assert metrics["next_action_accuracy"] == 0.5
    assert metrics["missing_turns"] == 1
    assert metrics["tool_recall"] == 0.0
    assert metrics["tool_precision"] is None
    assert metrics["faithfulness"] == 0.0
    assert metrics["asked_value_stated"] is None


def test_an_extra_call_costs_one_error_and_shifts_nothing() -> None:
    extra = [USER, call("classification", ["SR (98.23%)"]), *REFERENCE[1:]]
    bye = [{"role": "user", "content": "Bye"}, say("Goodbye!", "system_bye")]
    metrics = score([record(REFERENCE + bye, extra + bye)])
    assert metrics["next_action_accuracy"] == 3 / 4
    assert metrics["extra_turns"] == 1
    assert metrics["tool_precision"] == 0.5
    assert metrics["per_action"]["call_classification_tool"] == {
        "total": 0,
        "correct": 0,
        "accuracy": None,
        "extra": 1,
    }
    assert metrics["per_action"]["system_bye"]["accuracy"] == 1.0


def test_a_dialogue_that_failed_counts_as_missing_turns() -> None:
    metrics = score([record(REFERENCE, [])])
    assert metrics["next_action_accuracy"] == 0.0
    assert metrics["missing_turns"] == 2


def test_stated_value_may_be_rounded_and_has_to_be_of_the_asked_quantity() -> None:
    def stated(answer: str) -> float:
        generated = [USER, call("measurement", MEASURED), say(answer)]
        return float(score([record(REFERENCE, generated)])["asked_value_stated"])

    assert stated("It is 72.4 bpm.") == 1.0
    assert stated("Your QRS is 92 ms.") == 0.0
    assert stated("I measured it.") == 0.0


def test_a_null_value_is_not_asked_back() -> None:
    asked = {"role": "user", "content": "What is my PR interval?"}
    generated = [asked, call("measurement", MEASURED), say("It could not be measured.")]
    assert score([record(generated, generated)])["asked_value_stated"] is None


def test_with_gt_answers_are_held_against_the_reference_outputs() -> None:
    generated = [USER, say("Hm.", "response_followup"), say("Your heart rate is 72 bpm.")]
    metrics = score([record(REFERENCE, generated, "with_gt")])
    assert metrics["next_action_accuracy"] == 0.5
    assert metrics["faithfulness"] == 1.0
    assert metrics["asked_value_stated"] == 1.0
    assert score([record(REFERENCE, generated)])["faithfulness"] == 0.0


def test_intervals_hold_the_value_and_repeat() -> None:
    records = [record(REFERENCE, REFERENCE if i % 3 else [USER]) for i in range(30)]
    metrics = score(records)
    low, high = metrics["intervals"]["next_action_accuracy"]
    assert low < metrics["next_action_accuracy"] < high
    assert score(records)["intervals"] == metrics["intervals"]


def test_no_predictions() -> None:
    metrics = score([])
    assert metrics["next_action_accuracy"] is None
    assert metrics["n_dialogues"] == 0


@pytest.mark.parametrize(
    ("reference", "generated", "pairs"),
    [
        ([], [], []),
        (["a"], ["a"], [(0, 0)]),
        (["a"], ["b"], [(0, 0)]),
        (["c", "a"], ["a"], [(0, None), (1, 0)]),
        (["a"], ["c", "a"], [(None, 0), (0, 1)]),
        (["c", "a"], ["d", "a"], [(0, 0), (1, 1)]),
        (["a", "b", "c"], ["b"], [(0, None), (1, 0), (2, None)]),
    ],
)
def test_alignment(
    reference: list[str], generated: list[str], pairs: list[tuple[int | None, int | None]]
) -> None:
    assert align_turns(reference, generated) == pairs


def test_records_have_the_papers_keys() -> None:
    (first, second) = aligned_records(REFERENCE, [USER, say("Your heart rate is 72 bpm.")])
    assert first["gt_tool_output"] == MEASURED
    assert first["gen_action"] is None
    assert not first["action_correct"]
    assert second["action_correct"]
    assert second["response_exact_match"]
    assert second["user_content"] == USER["content"]


def test_asked_quantities() -> None:
    assert asked_quantities("How fast is my heart?") == ("heart_rate",)
    assert asked_quantities("PR and QTc please") == ("pr_interval", "qtc_interval")
    assert len(asked_quantities("Can you give me all the measurements?")) == 4
    assert asked_quantities("Is my rhythm normal?") == ()
