"""The agent's metrics as scorers of ``mlflow.genai.evaluate``.

    records = read_predictions("outputs/evaluation/predictions.jsonl")
    mlflow.genai.evaluate(data=genai_rows(records), scorers=agent_scorers())

A row is a dialogue: ``inputs`` its user turns, ``outputs`` the generated dialogue,
``expectations`` the reference. MLflow shows a ratio's mean over dialogues, while
:func:`ecg_agent_ray.evaluation.score` weighs each turn alike, so the two differ a little. The rows
hold the words of the dialogues, which go to MLflow with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ecg_agent_ray.evaluation.metrics import RATIOS, count_dialogue

__all__ = ["agent_scorers", "genai_rows"]


def genai_rows(predictions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for ``mlflow.genai.evaluate`` from records in the paper's schema."""
    return [
        {
            "inputs": {
                "sample_id": record.get("sample_id"),
                "history": record.get("summary", {}).get("history"),
                "user_turns": [
                    turn.get("content")
                    for turn in record["ground_truth_dialogue"]
                    if turn["role"] == "user"
                ],
            },
            "outputs": {"dialogue": list(record.get("generated_dialogue") or [])},
            "expectations": {"dialogue": list(record["ground_truth_dialogue"])},
        }
        for record in predictions
    ]


def agent_scorers() -> list[Any]:
    """One scorer for each of ``next_action_accuracy``, ``tool_precision``, ``tool_recall``,
    ``faithfulness`` and ``asked_value_stated``; a dialogue without cases gets no score."""
    from mlflow.genai.scorers import scorer

    return [scorer(_feedback(name), name=name) for name in RATIOS]


def _feedback(name: str) -> Any:
    def rate(inputs: dict[str, Any], outputs: dict[str, Any], expectations: dict[str, Any]) -> Any:
        tally = count_dialogue(
            {
                "ground_truth_dialogue": expectations["dialogue"],
                "generated_dialogue": outputs["dialogue"],
                "summary": {"history": inputs.get("history")},
            }
        )
        value = RATIOS[name](tally)
        return [] if value is None else value

    rate.__name__ = name
    return rate
