"""What one user turn gives: a stream of events, the last of which holds the whole turn.

Thoughts and raw model text are in no event but :class:`FinalEvent`'s ``turns``, which is for
evaluation and logs and which :meth:`FinalEvent.to_dict` leaves out unless asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ecg_agent_ray.agent.engine import Usage
from ecg_agent_ray.dialogue import Action, Turn

__all__ = [
    "ContentDelta",
    "Event",
    "FinalEvent",
    "GroundingReport",
    "StatusEvent",
    "Step",
    "ToolCallEvent",
    "ToolOutputEvent",
    "ToolResult",
]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """Output of one tool call.

    Attributes
    ----------
    tool
        ``"measurement"``, ``"classification"`` or ``"explanation"``.
    action
        The action that called it.
    output
        The dialogue form, as the model reads it: an ECG-MTD ``tool_output``. After a failure an
        object or text that says what failed, which the model can speak about.
    detail
        The command line's JSON of the same result, richer than ``output``; None after a failure.
    ms
        Wall time of the call in milliseconds; 0.0 when an earlier result was reused.
    error
        Why there is no result, else None.
    turn
        0-based index of the user message it served.
    """

    tool: str
    action: Action
    output: Any
    detail: Mapping[str, Any] | None = None
    ms: float = 0.0
    error: str | None = None
    turn: int = 0

    def to_step(self) -> dict[str, Any]:
        """The HTTP API's step; a client sends these back in ``ecg_agent.steps``."""
        return {
            "action": str(self.action),
            "tool": self.tool,
            "tool_output": self.output,
            "ms": round(self.ms, 1),
            "turn": self.turn,
        }


Step = Mapping[str, Any]
"""``{"action", "tool", "tool_output", "ms", "turn"}`` as :meth:`ToolResult.to_step` gives it."""


@dataclass(slots=True)
class GroundingReport:
    """What the number check changed before the user saw the answer.

    ``repaired`` sentences were generated again (or re-rounded), ``dropped`` ones left out;
    ``violations`` says why, one line each.
    """

    repaired: int = 0
    dropped: int = 0
    violations: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"repaired": self.repaired, "dropped": self.dropped}


@dataclass(frozen=True, slots=True)
class StatusEvent:
    status: Literal["thinking", "calling_tool", "answering"]
    type: Literal["status"] = "status"

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.type, "status": self.status}


@dataclass(frozen=True, slots=True)
class ToolCallEvent:
    action: Action
    tool: str
    type: Literal["tool_call"] = "tool_call"

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.type, "action": str(self.action), "tool": self.tool}


@dataclass(frozen=True, slots=True)
class ToolOutputEvent:
    result: ToolResult
    reused: bool = False
    """True when the model asked the same call again and got the result it already had."""
    type: Literal["tool_output"] = "tool_output"

    def to_dict(self) -> dict[str, Any]:
        """The step as it happens; ``detail`` is for who shows it, and need not be sent back."""
        body = {"type": self.type, **self.result.to_step(), "reused": self.reused}
        if self.result.detail is not None:
            body["detail"] = dict(self.result.detail)
        return body


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """A piece of the answer, already checked. The pieces joined are ``FinalEvent.content``."""

    text: str
    type: Literal["content"] = "content"

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.type, "text": self.text}


@dataclass(frozen=True, slots=True)
class FinalEvent:
    """The turn as a whole.

    ``timings`` are seconds from the start of the turn: ``first_action_s`` (the first action's name
    was known), ``first_content_s`` (the first checked text was sent), ``total_s``, and ``tools_s``
    spent in tools. ``values_added`` are the quantities (``heart_rate``, …) that the user asked for,
    a tool measured and the model left out, so that a plain sentence gives them. ``turns`` are the
    assistant turns in order, thoughts included.
    """

    content: str
    action: Action
    steps: tuple[ToolResult, ...] = ()
    grounding: GroundingReport = field(default_factory=GroundingReport)
    safety_advice_added: bool = False
    values_added: tuple[str, ...] = ()
    finish_reason: str = "stop"
    usage: Usage = field(default_factory=Usage)
    timings: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    type: Literal["final"] = "final"

    def to_dict(self, *, include_turns: bool = False) -> dict[str, Any]:
        """JSON form; ``include_turns`` adds the turns with their thoughts."""
        body: dict[str, Any] = {
            "type": self.type,
            "content": self.content,
            "action": str(self.action),
            "steps": [step.to_step() for step in self.steps],
            "grounding": self.grounding.to_dict(),
            "safety_advice_added": self.safety_advice_added,
            "values_added": list(self.values_added),
            "finish_reason": self.finish_reason,
            "usage": self.usage.to_dict(),
            "timings": {name: round(value, 4) for name, value in self.timings.items()},
        }
        if include_turns:
            body["turns"] = [turn.model_dump(mode="json", exclude_none=True) for turn in self.turns]
        return body


Event = StatusEvent | ToolCallEvent | ToolOutputEvent | ContentDelta | FinalEvent
