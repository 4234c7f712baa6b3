"""Which measured values a user asks for, and whether an answer gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ecg_agent_ray.agent.claims import number_claims
from ecg_agent_ray.agent.grounding import Evidence
from ecg_agent_ray.dialogue.ranges import QUANTITIES, rounded

__all__ = ["asked_quantities", "unstated_values", "value_sentence"]

_ASKED = {
    "heart_rate": r"heart\s?rate|pulse|\bbpm\b|\bHR\b|how fast",
    "pr_interval": r"\bP-?[RQ]\b",
    "qrs_duration": r"\bQRS\b",
    "qtc_interval": r"\bQTc?\b",
}
_ASKED_ALL = re.compile(r"\b(?:measurements?|intervals|values|numbers|measure)\b", re.IGNORECASE)


def asked_quantities(question: str) -> tuple[str, ...]:
    """The measured values a user names; all four for a plain request for measurements."""
    named = tuple(key for key, words in _ASKED.items() if re.search(words, question, re.IGNORECASE))
    return named or (tuple(_ASKED) if _ASKED_ALL.search(question) else ())


def unstated_values(
    question: str, tool_outputs: Sequence[Any], answer: str
) -> dict[str, str] | None:
    """Asked values that the outputs hold and ``answer`` does not give, by quantity.

    None where the question asks for no value that is held.
    """
    values = Evidence.collect(tool_outputs).values
    wanted = [key for key in asked_quantities(question) if key in values]
    if not wanted:
        return None
    claims = [claim for claim in number_claims(answer) if claim.comparison == "equal"]
    return {
        key: values[key][-1]
        for key in wanted
        if not any(Evidence(values={key: values[key]}).bears_out(claim) for claim in claims)
    }


def value_sentence(values: Mapping[str, str]) -> str:
    """The values in a plain sentence, rounded as answers round them."""
    parts = [
        f"the {QUANTITIES[key].name} is {rounded(value)} {QUANTITIES[key].unit}"
        for key, value in values.items()
    ]
    *first, last = parts
    text = f"{', '.join(first)} and {last}" if first else last
    return f"{text[0].upper()}{text[1:]}."
