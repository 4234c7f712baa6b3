"""What a user reads around and instead of the model's own sentences.

The loop sends these parts as they are due; evaluation joins them. So both show the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecg_agent_ray.agent.asked import asked_quantities, unstated_values
from ecg_agent_ray.facts import (
    ALL_QUANTITIES,
    NOT_IN_KNOWLEDGE,
    FactSheet,
    Level,
    fill,
    knowledge,
    urgent_entry,
    urgent_lines,
)

__all__ = ["opening", "standing_in", "unstated"]


def opening(question: str, sheet: FactSheet, known: FactSheet, level: Level) -> str:
    """What is said first: what to do in the emergency that the user tells of, and the urgent line
    of dangerous facts that are new in this turn; empty without any."""
    entry = urgent_entry(question)
    said = [knowledge()[entry].texts[level]] if entry else []
    return " ".join([*said, *urgent_lines(sheet, known)])


def standing_in(
    question: str, sheet: FactSheet, *, fresh: bool, failure: str | None, level: Level
) -> str:
    """What is said where nothing of the model's text may be: the asked facts, else all facts.

    Parameters
    ----------
    question
        The user's message.
    sheet
        The facts of the dialogue so far.
    fresh
        Whether a tool was called in this turn.
    failure
        Why the last tool of this turn gave nothing.
    level
        Register of curated sentences.
    """
    asked = [
        _value_in_words(key, sheet) for key in asked_quantities(question) if key in sheet.values
    ]
    if asked:
        return " ".join(asked)
    if failure:
        return f"The tool gave nothing for this recording: {failure.rstrip('.')}."
    if fresh and (all_facts := fill("summary", sheet)):
        return f"{all_facts}."
    return knowledge()[NOT_IN_KNOWLEDGE].texts[level]


def unstated(question: str, fresh_outputs: Sequence[Any], sent: str) -> dict[str, str]:
    """Values that were asked for, measured in this turn and left out of the answer."""
    return unstated_values(question, fresh_outputs, sent) or {}


def _value_in_words(key: str, sheet: FactSheet) -> str:
    value = fill(key, sheet)
    if value is None:
        clause = str(fill(f"{key}.missing", sheet))
    else:
        clause = f"the {ALL_QUANTITIES[key].name} is {value}"
    return f"{clause[0].upper()}{clause[1:]}."
