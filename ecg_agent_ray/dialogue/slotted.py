"""Checks of dialogues whose answers are in slots: what would a user read of them?

A slot has to be one that the tool outputs at that point give, a comparison has to be with a number
that the user named, and the guard has to show all of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ecg_agent_ray.dialogue.turns import Dialogue, Turn
from ecg_agent_ray.facts import (
    SLOT,
    FactSheet,
    StrictGuard,
    fill,
    named_numbers,
    parse_slot,
)

__all__ = ["holds_slots", "slot_faults"]

_DIGIT = re.compile(r"\d")


def holds_slots(dialogue: Dialogue) -> bool:
    """Whether an answer of the dialogue holds a slot."""
    return any(
        SLOT.search(turn.content or "") for turn in dialogue.turns if turn.role == "assistant"
    )


def slot_faults(dialogue: Dialogue) -> Iterator[tuple[int, str]]:
    """Turn and fault, in order; ``metadata["beside"]`` is what the tools know beyond outputs."""
    outputs: list[Any] = []
    asked: list[str] = []
    beside = dialogue.metadata.get("beside")
    for position, turn in enumerate(dialogue.turns):
        if turn.role == "user":
            asked.append(turn.content or "")
            continue
        if _DIGIT.search(turn.thought or ""):
            yield position, "the thought holds a numeral"
        if turn.is_tool_call:
            outputs.append(turn.tool_output)
        else:
            sheet = FactSheet.read(outputs, beside)
            for fault in _answer_faults(turn, sheet, asked):
                yield position, fault


def _answer_faults(turn: Turn, sheet: FactSheet, asked: Sequence[str]) -> Iterator[str]:
    content = turn.content or ""
    for text in SLOT.findall(content):
        slot = parse_slot(text)
        if slot is None:
            yield f"{{{text}}} is not a slot"
        elif fill(text, sheet) is None:
            yield f"{{{text}}} has no text here"
        elif slot.part == "vs" and slot.number not in named_numbers(asked):
            yield f"the user named no {slot.number}"
    guard = StrictGuard(sheet, question=asked[-1] if asked else "")
    guard.shown(content)
    yield from (f"left out: {clause!r}" for clause in guard.left_out)
