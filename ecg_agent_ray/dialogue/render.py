r"""Assistant turns as the text that a language model writes and reads, and back.

The form is ``Action: …\nThought: …\nContent: …`` for an answer and ``…\nTool_Output: <JSON>`` for a
tool call; a pending call ends after its thought. :func:`parse_turn` undoes :func:`render_turn`
exactly, because of two rules:

* Content is last and taken as it is, so it may hold line breaks and words like ``Action:``.
* A thought ends at the first line that starts with ``Content:`` or ``Tool_Output:``. A thought that
  holds such a line cannot be told from the next field; rendering it is refused.

A tool output is written as JSON. A text output (the explanation tool's line) is written bare where
it reads back as the same text, and as a JSON string otherwise.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from pydantic import ValidationError

from ecg_agent_ray.dialogue.turns import Dialogue, Turn
from ecg_agent_ray.errors import DialogueError

__all__ = ["dialogue_messages", "parse_turn", "render_turn"]

_FIELD_IN_THOUGHT = re.compile(r"\n(Content|Tool_Output):")
_HEAD = re.compile(r"\s*Action:[ \t]*(?P<action>\S*)[ \t]*\nThought:(?P<rest>.*)\Z", re.DOTALL)


def render_turn(turn: Turn) -> str:
    r"""Write an assistant turn as the model's text.

    Raises :class:`DialogueError` for a user turn, for a thought with a line that starts with
    ``Content:`` or ``Tool_Output:``, and for a tool output that JSON cannot hold.
    """
    action = turn.assistant_action
    thought = turn.thought or ""
    if found := _FIELD_IN_THOUGHT.search("\n" + thought):
        raise DialogueError(
            f"a thought may not hold a line starting with {found.group(1)!r}, since it would be "
            "read as the next field",
            hint="put it on one line or reword it",
        )
    head = f"Action: {action}\nThought: {thought}"
    if turn.is_pending:
        return head
    if action.is_tool_call:
        return f"{head}\nTool_Output: {render_tool_output(turn.tool_output)}"
    return f"{head}\nContent: {turn.content}"


def parse_turn(text: str) -> Turn:
    """Read an assistant turn from the model's text; the inverse of :func:`render_turn`.

    Also read: leading white space, and a tool output printed as a Python list or dict. Raises
    :class:`DialogueError` saying what is missing.
    """
    head = _HEAD.match(text)
    if head is None:
        raise DialogueError(
            f"no assistant turn: expected 'Action: …' and then 'Thought: …', got {text[:80]!r}"
        )
    rest = head["rest"].removeprefix(" ")
    fields: dict[str, Any] = {"role": "assistant", "action": head["action"]}
    # a line break before the rest lets a field follow an empty thought
    parts = _FIELD_IN_THOUGHT.split(rest, maxsplit=1)
    fields["thought"] = parts[0]
    if len(parts) == 3:
        body = parts[2].removeprefix(" ")
        if parts[1] == "Content":
            fields["content"] = body
        else:
            fields["tool_output"] = parse_tool_output(body)
    try:
        return Turn.model_validate(fields)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise DialogueError(f"no assistant turn: {message}") from error


def dialogue_messages(dialogue: Dialogue, system: str | None = None) -> list[dict[str, str]]:
    """The dialogue in OpenAI's message form, each assistant turn a message of its own.

    Nothing of a user turn but its content is passed on: its ``action``, where a data set has one,
    would give the answer away.
    """
    messages = [] if system is None else [{"role": "system", "content": system}]
    for turn in dialogue.turns:
        text = render_turn(turn) if turn.role == "assistant" else turn.content or ""
        messages.append({"role": turn.role, "content": text})
    return messages


def render_tool_output(output: Any) -> str:
    """A tool output as text: JSON, or the text itself where that is unambiguous."""
    if isinstance(output, str) and parse_tool_output(output) == output:
        return output
    _check_keys(output)
    try:
        return json.dumps(output, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DialogueError(f"tool output cannot be written as JSON: {error}") from error


def parse_tool_output(text: str) -> Any:
    """Read a tool output: JSON, else a Python list or dict display, else the text as it is."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        pass
    if text.lstrip()[:1] in ("[", "{"):
        value = _python_literal(text.strip())
        if isinstance(value, list | dict):
            return value
    return text


def _python_literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():  # a stray backslash is no concern of the user's
            warnings.simplefilter("ignore", SyntaxWarning)
            value = ast.literal_eval(text)
        return json.loads(json.dumps(value, allow_nan=False))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _check_keys(value: Any) -> None:
    """JSON would turn a number used as a key into text without a word."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise DialogueError(f"tool output has the key {key!r}; JSON keys are text")
            _check_keys(item)
    elif isinstance(value, list):
        for item in value:
            _check_keys(item)
