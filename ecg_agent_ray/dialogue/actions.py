"""The seven things an assistant turn can do."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Action"]


class Action(StrEnum):
    """An assistant turn's action; ``when`` is the rule for choosing it.

    The values are the words that the model writes and that dialogue files hold.
    """

    CALL_CLASSIFICATION = "call_classification_tool"
    CALL_MEASUREMENT = "call_measurement_tool"
    CALL_EXPLANATION = "call_explanation_tool"
    RESPONSE = "response"
    RESPONSE_FOLLOWUP = "response_followup"
    RESPONSE_FAIL = "response_fail"
    SYSTEM_BYE = "system_bye"

    @property
    def is_tool_call(self) -> bool:
        """True for the three actions that end in a tool output instead of text for the user."""
        return self.value.startswith("call_")

    @property
    def when(self) -> str:
        """When to choose this action, in words for a person or a prompt."""
        return _WHEN[self]


_WHEN = {
    Action.CALL_CLASSIFICATION: "findings, rhythm or abnormality are asked for",
    Action.CALL_MEASUREMENT: "heart rate, PR, QRS or QTc are asked for",
    Action.CALL_EXPLANATION: "where in the signal, or why the classifier says so",
    Action.RESPONSE: "answer from the tool outputs just obtained",
    Action.RESPONSE_FOLLOWUP: (
        "no new tool call is needed: meaning of a term or value, comparison, general knowledge, "
        "small talk"
    ),
    Action.RESPONSE_FAIL: (
        "cannot be met with these tools or data: value is null, treatment or dosing, definite "
        "diagnosis, other tests; in an emergency advise urgent care"
    ),
    Action.SYSTEM_BYE: "the user says goodbye",
}
