"""Does an answer state only what the tools gave? The writer runs this on every answer it writes.

It knows the writer's own style only: a number with a unit, a measured value named before its
number, a statement under its code or a known name. It is no judge of free text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

from ecg_agent_ray.dialogue.actions import Action
from ecg_agent_ray.dialogue.synthesis.facts import parse_region
from ecg_agent_ray.errors import DialogueError
from ecg_agent_ray.facts.quantities import QUANTITIES, measured, rounded
from ecg_agent_ray.facts.statements import find_statements

__all__ = ["check_answer"]

_NUMBER = re.compile(r"(?:(\d+(?:\.\d+)?) to )?(\d+(?:\.\d+)?) ?(bpm|ms|%|s|Hz)(?!\w)")
_NAMES = {item.name.lower(): key for key, item in QUANTITIES.items()}
_NAME = re.compile("|".join(_NAMES), re.IGNORECASE)
_LIMITS = {"bpm": {"60", "100"}, "ms": {"120", "200", "450", "460"}}


def check_answer(
    answer: str, outputs: Iterable[tuple[Action, Any]], *, heard: str = "", general: bool = False
) -> None:
    """Raise :class:`DialogueError` where ``answer`` contradicts or exceeds the tool outputs.

    ``outputs`` are the tool calls so far; ``heard`` is what the user said, whose numbers and
    statements may be repeated; ``general`` marks an answer from general knowledge, which may name
    any statement.
    """
    outputs = [item for item in outputs if not _is_error(item[1])]
    allowed = _allowed_numbers(outputs)
    spoken = set(re.findall(r"\d+(?:\.\d+)?", heard))
    for match in _NUMBER.finditer(answer):
        unit = match.group(3)
        known = allowed[unit] | _LIMITS.get(unit, set()) | spoken
        for number in filter(None, match.groups()[:2]):
            if number not in known:
                raise DialogueError(f"{number} {unit} is in no tool output: {answer!r}")
    _check_named(answer, outputs, spoken)
    if not general:
        given = {code for output in outputs for code in _codes(output)}
        extra = set(find_statements(answer)) - given - set(find_statements(heard))
        if extra:
            raise DialogueError(f"{', '.join(sorted(extra))} is in no tool output: {answer!r}")


def _is_error(output: Any) -> bool:
    return isinstance(output, dict) and "error" in output


def _allowed_numbers(outputs: list[tuple[Action, Any]]) -> dict[str, set[str]]:
    allowed: dict[str, set[str]] = {"bpm": set(), "ms": set(), "%": set(), "s": set(), "Hz": set()}
    for action, output in outputs:
        if action is Action.CALL_MEASUREMENT:
            for key, value in measured(output).items():
                if value is not None:
                    allowed[QUANTITIES[key].unit].add(str(value))
        elif action is Action.CALL_CLASSIFICATION:
            allowed["%"] |= {str(rounded(text.rsplit("(", 1)[1][:-2])) for text in output}
        elif region := parse_region(output):
            allowed["%"].add(str(region.percent))
            allowed["s"] |= set(re.findall(r"[\d.]+", region.when))
            allowed["Hz"] |= set(re.findall(r"[\d.]+", region.freq))
    return allowed


def _check_named(answer: str, outputs: list[tuple[Action, Any]], spoken: set[str]) -> None:
    """A number right after a value's name, in the same sentence, is that value or a limit."""
    values: dict[str, int | None] = {}
    for action, output in outputs:
        if action is Action.CALL_MEASUREMENT:
            values = measured(output)
    for sentence in re.split(r"(?<=[.;!?:])\s", answer):
        names = list(_NAME.finditer(sentence))
        for name, following in zip_longest(names, names[1:]):
            key = _NAMES[name.group(0).lower()]
            end = following.start() if following else len(sentence)
            for match in _NUMBER.finditer(sentence, name.end(), end):
                unit = match.group(3)
                stated = {number for number in match.groups()[:2] if number}
                wrong = stated - {str(values.get(key))} - _LIMITS.get(unit, set()) - spoken
                if unit in _LIMITS and wrong:
                    raise DialogueError(
                        f"the {name.group(0)} is {values.get(key)}, not {match.group(0)}: "
                        f"{answer!r}"
                    )


def _codes(output: tuple[Action, Any]) -> list[str]:
    action, value = output
    if action is Action.CALL_CLASSIFICATION:
        return [text.rsplit(" (", 1)[0] for text in value]
    if action is Action.CALL_EXPLANATION:
        return [value.split(" (", 1)[0]]
    return []
