"""A client's messages back to the turns the model wrote and read.

A client holds only what it was shown: the user's and the assistant's words, and the steps if it
asked for them. The model has also seen its own thoughts and the tools' outputs. They are taken from
memory where this process wrote them (which also keeps the key/value cache valid), else made anew:
steps as the client sends them, or, without any, by running again the tools whose output an answer
speaks of; thoughts as one fixed sentence per action. So any replica can answer any turn.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ecg_agent_ray.agent.claims import number_claims, statement_claims
from ecg_agent_ray.agent.events import Step, ToolResult
from ecg_agent_ray.agent.toolbox import TOOL_OF_ACTION, Toolbox
from ecg_agent_ray.dialogue import Action, Turn, render_turn
from ecg_agent_ray.errors import InputError

__all__ = ["History", "TurnMemory", "read_messages", "rebuild", "rendered"]

_THOUGHTS: Mapping[Action, str] = {
    Action.CALL_MEASUREMENT: "The user asks for measured values, so I call the measurement tool.",
    Action.CALL_CLASSIFICATION: "The user asks for findings, so I call the classification tool.",
    Action.CALL_EXPLANATION: "The user asks where or why, so I call the explanation tool.",
    Action.RESPONSE: "I have the tool output, so I answer from it.",
    Action.RESPONSE_FOLLOWUP: "This needs no tool, so I answer directly.",
}


@dataclass(frozen=True, slots=True)
class Said:
    """One message as a client sends it: ``role`` is user or assistant."""

    role: str
    content: str


@dataclass(slots=True)
class History:
    """What the model is given: the dialogue's turns, and the tools' earlier results.

    ``question`` is the last user message, ``turn`` its index among the user messages.
    """

    turns: list[Turn] = field(default_factory=list)
    results: list[ToolResult] = field(default_factory=list)
    question: str = ""
    turn: int = 0


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Said]:
    """Check OpenAI-shaped messages and keep what counts.

    System and developer messages are left out: the agent's own rules stand. Raises
    :class:`InputError` for an unknown role, a part that is no text, or a last message that is not
    the user's.
    """
    said: list[Said] = []
    for number, message in enumerate(messages):
        role = message.get("role")
        if role in ("system", "developer"):
            continue
        if role not in ("user", "assistant"):
            raise InputError(f"message {number} has role {role!r}; use user or assistant")
        said.append(Said(str(role), _text(message.get("content"), number)))
    if not said or said[-1].role != "user":
        raise InputError("the last message has to be the user's")
    return said


def _text(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    ):
        return "".join(str(part.get("text", "")) for part in content)
    raise InputError(
        f"message {number} has content that is no text", hint="upload an ECG to /v1/ecgs instead"
    )


class TurnMemory:
    """Turns this process wrote, by the conversation they ended. Bounded and thread-safe.

    Parameters
    ----------
    entries
        Conversations kept; the least recently used goes first.
    """

    def __init__(self, entries: int = 256) -> None:
        self._entries = entries
        self._turns: OrderedDict[str, tuple[Turn, ...]] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def _key(said: Sequence[Said], ecg: str) -> str:
        body = json.dumps([ecg, *((item.role, item.content) for item in said)])
        return hashlib.sha256(body.encode()).hexdigest()

    def remember(self, said: Sequence[Said], ecg: str, turns: Sequence[Turn]) -> None:
        """``turns`` ended the conversation ``said``, whose last item is the assistant's answer."""
        with self._lock:
            key = self._key(said, ecg)
            self._turns[key] = tuple(turns)
            self._turns.move_to_end(key)
            while len(self._turns) > self._entries:
                self._turns.popitem(last=False)

    def recall(self, said: Sequence[Said], ecg: str) -> tuple[Turn, ...] | None:
        with self._lock:
            key = self._key(said, ecg)
            if key in self._turns:
                self._turns.move_to_end(key)
            return self._turns.get(key)


def rebuild(
    said: Sequence[Said],
    steps: Sequence[Step] | None,
    toolbox: Toolbox | None,
    memory: TurnMemory,
) -> History:
    """The dialogue as the model knows it, up to and with the last user message.

    ``steps`` are earlier tool calls, each with the ``turn`` it was made in (one without is taken
    as of the first turn); None means that the client keeps none.
    """
    ecg = str(getattr(toolbox, "key", "")) if toolbox is not None else ""
    given = None if steps is None else [_result(step) for step in steps]
    history = History(turn=-1)
    for position, item in enumerate(said):
        if item.role == "user":
            history.turn += 1
            history.question = item.content
            history.turns.append(Turn.user(item.content))
            continue
        turns = memory.recall(said[: position + 1], ecg) if ecg else None
        if turns is None or not _consistent(turns, given, history.turn):
            results = (
                _recomputed(item.content, history, toolbox)
                if given is None
                else [result for result in given if result.turn == history.turn]
            )
            turns = _remade(item.content, results)
        history.results += [
            ToolResult(TOOL_OF_ACTION[action], action, turn.tool_output, turn=history.turn)
            for turn in turns
            if (action := turn.assistant_action).is_tool_call
        ]
        history.turns += turns
    return history


def rendered(turn: Turn) -> dict[str, str]:
    """A turn as the message that an open model reads. A user turn's ``action`` is not shown."""
    content = render_turn(turn) if turn.role == "assistant" else turn.content or ""
    return {"role": turn.role, "content": content}


def _result(step: Step) -> ToolResult:
    try:
        action = Action(str(step["action"]))
        return ToolResult(
            tool=TOOL_OF_ACTION[action],
            action=action,
            output=step["tool_output"],
            turn=max(0, int(step.get("turn", 0))),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"a step of the request cannot be read: {error}",
            hint="send steps as the service gave them",
        ) from error


def _consistent(turns: Sequence[Turn], given: list[ToolResult] | None, turn: int) -> bool:
    """Whether remembered turns made the calls that the client says were made."""
    if given is None:
        return True
    made = [(item.assistant_action, item.tool_output) for item in turns if item.is_tool_call]
    return made == [(result.action, result.output) for result in given if result.turn == turn]


def _recomputed(answer: str, history: History, toolbox: Toolbox | None) -> list[ToolResult]:
    """The results that ``answer`` speaks of and the dialogue does not hold yet."""
    if toolbox is None:
        return []
    needed: list[Action] = []
    claims = number_claims(answer)
    if any(claim.dimension in ("rate", "time", "any") for claim in claims):
        needed.append(Action.CALL_MEASUREMENT)
    if statement_claims(answer) or any(claim.dimension == "percent" for claim in claims):
        needed.append(Action.CALL_CLASSIFICATION)
    known = {result.action for result in history.results}
    return [
        toolbox.call(action, question=history.question, previous=history.results)
        for action in needed
        if action not in known
    ]


def _remade(answer: str, results: Sequence[ToolResult]) -> tuple[Turn, ...]:
    calls = [
        Turn.call(result.action, _THOUGHTS[result.action], result.output) for result in results
    ]
    action = Action.RESPONSE if calls else Action.RESPONSE_FOLLOWUP
    return (*calls, Turn.answer(action, _THOUGHTS[action], answer))
