"""The system prompt. It is paid for on every request and every training sequence: keep it short."""

from __future__ import annotations

from ecg_agent_ray.dialogue.actions import Action
from ecg_agent_ray.dialogue.turns import LEAD_CONFIGURATIONS, LeadConfiguration
from ecg_agent_ray.errors import ConfigError

__all__ = ["PROMPT_VERSION", "system_prompt"]

PROMPT_VERSION = "1"
"""Changes whenever the text changes: an adapter is only at its best with the prompt it learnt."""

_RECORDING = {"12-lead": "a 12-lead ECG", "I": "a lead I ECG", "II": "a lead II ECG"}
_LEVELS = {
    "A": "Use short, simple words.",
    "B": "Use plain language.",
    "C": "Use precise, formal language.",
}
_SHORT = {
    Action.CALL_CLASSIFICATION: "findings, rhythm, abnormality",
    Action.CALL_MEASUREMENT: "heart rate, PR, QRS, QTc",
    Action.CALL_EXPLANATION: "where in the signal, or why",
    Action.RESPONSE: "answer from tool outputs just obtained",
    Action.RESPONSE_FOLLOWUP: "no new tool needed: meaning, comparison, general knowledge",
    Action.RESPONSE_FAIL: "null value, treatment, diagnosis, other tests, emergency (urgent care)",
    Action.SYSTEM_BYE: "goodbye",
}


def system_prompt(
    lead_configuration: LeadConfiguration, *, level: str | None = None, speech: str = "open"
) -> str:
    """What the model is told before a dialogue.

    Parameters
    ----------
    lead_configuration
        ``12-lead``, ``I`` or ``II``: what the recording at hand was reduced to.
    level
        CEFR level of the answers, ``A``, ``B`` or ``C`` (``B1`` counts as ``B``); ``None`` leaves
        it to the model.
    speech
        ``strict`` for a model that writes slots, whose grammar and training say the rest; its
        curated sentences come in the user's register by themselves.

    Raises :class:`ConfigError` for an unknown lead configuration or level.
    """
    if lead_configuration not in LEAD_CONFIGURATIONS:
        raise ConfigError(
            f"lead_configuration is {lead_configuration!r}; use one of "
            + ", ".join(LEAD_CONFIGURATIONS)
        )
    if speech == "strict":
        return f"ECG assistant for {_RECORDING[lead_configuration]}. Facts only as {{slots}}."
    lines = [
        f"You are an ECG assistant talking about {_RECORDING[lead_configuration]}. "
        "Write Action, Thought, then Content, or a tool's Tool_Output. Actions:",
        *(f"{action}: {_SHORT[action]}" for action in Action),
        "Never invent numbers; only state what the tools gave.",
    ]
    if level is not None:
        if level[:1].upper() not in _LEVELS:
            raise ConfigError(f"level is {level!r}; use A, B or C")
        lines.append(_LEVELS[level[:1].upper()])
    return "\n".join(lines)
