"""Which measured values a user asks for, and whether an answer gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ecg_agent_ray.agent.claims import number_claims
from ecg_agent_ray.agent.grounding import Evidence
from ecg_agent_ray.facts.quantities import QUANTITIES, rounded

__all__ = ["all_measured", "asked_quantities", "unstated_values", "value_sentence"]

_ASKED = {
    "heart_rate": r"heart\s?rate|pulse|\bbpm\b|\bHR\b|how fast",
    "pr_interval": r"\bP-?[RQ]\b",
    "qrs_duration": r"\bQRS\b",
    "qtc_interval": r"\bQTc?\b",
}
_ASKED_ALL = re.compile(r"\b(?:measurements?|intervals|values|numbers|measure)\b", re.IGNORECASE)

# what else a question with such a name in it can be about: other quantities of the signal, other
# recordings, decisions
_BEYOND = re.compile(
    r"variab\w*|dispersion|axis|waves?|segments?|heights?|amplitudes?|millivolts?|recovery|zones?"
    r"|\bST\b|\bRR\b|respirat\w*|breath\w*|pressure|oxygen|saturation|output"
    r"|yesterday|last|before|previous|earlier|ago|since|compar\w*|trend|chang\w*|old"
    r"|tomorrow|next|will|should|medic\w*|drugs?|pills?|tablets?|dose|doctor",
    re.IGNORECASE,
)


def asked_quantities(question: str) -> tuple[str, ...]:
    """The measured values a user names; all four for a plain request for measurements."""
    return _named(question) or (tuple(_ASKED) if _ASKED_ALL.search(question) else ())


def all_measured(question: str, tool_outputs: Sequence[Any]) -> bool | None:
    """Whether the outputs hold each measured value that the question names.

    None where in doubt: a question that names none, or speaks of another quantity, another
    recording or a decision, is none for values alone; and a tool that failed measured nothing.
    """
    named = _named(question)
    measured = [output for output in tool_outputs if _is_measurement(output)]
    if not named or not measured or _BEYOND.search(question):
        return None
    values = Evidence.collect(measured).values
    return all(key in values for key in named)


def _named(question: str) -> tuple[str, ...]:
    return tuple(key for key, words in _ASKED.items() if re.search(words, question, re.IGNORECASE))


def _is_measurement(output: Any) -> bool:
    return isinstance(output, Mapping) and all(key in output for key in _ASKED)


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
