"""What is noted of each generated turn, and what a benchmark says of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TurnTime", "ratio_of_medians", "summarised"]


@dataclass(frozen=True, slots=True)
class TurnTime:
    """One assistant turn.

    Attributes
    ----------
    seconds
        From the messages to the end of the turn.
    action_s
        To the end of the action's name, which for a tool turn is the tool's; None if it never came.
    answer_s
        To the first words of the answer; None for a tool turn.
    to_tool_output_s
        As ``seconds``, but a tool turn ends where its tool's output would begin.
    action
        The action taken, None where the text is no turn.
    tokens
        Tokens of the turn.
    """

    seconds: float
    action_s: float | None
    answer_s: float | None
    to_tool_output_s: float
    action: str | None
    tokens: int


def summarised(turns: Sequence[TurnTime], wanted: Sequence[str]) -> dict[str, Any]:
    """Medians in seconds, and how many of the ``wanted`` actions were taken."""
    right = sum(turn.action == action for turn, action in zip(turns, wanted, strict=True))
    return {
        "turn_s": _median([turn.seconds for turn in turns]),
        "turn_s_quartiles": [
            round(float(np.percentile([turn.seconds for turn in turns], q)), 4) for q in (25, 75)
        ],
        "turn_to_tool_output_s": _median([turn.to_tool_output_s for turn in turns]),
        "tool_name_s": _median(
            [turn.action_s for turn in turns if (turn.action or "").startswith("call_")]
        ),
        "first_answer_token_s": _median([turn.answer_s for turn in turns]),
        "tokens_per_turn": _median([turn.tokens for turn in turns]),
        "next_action_accuracy": round(right / len(turns), 4),
        "unreadable": sum(turn.action is None for turn in turns),
        "turns": len(turns),
    }


def ratio_of_medians(slow: dict[str, Any], fast: dict[str, Any]) -> dict[str, float | None]:
    """How many times as long ``slow`` takes, for each of the times of :func:`summarised`."""
    names = ("turn_s", "turn_to_tool_output_s", "tool_name_s", "first_answer_token_s")
    return {
        name: round(slow[name] / fast[name], 2) if slow[name] and fast[name] else None
        for name in names
    }


def _median(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return round(float(np.median(present)), 4) if present else None
