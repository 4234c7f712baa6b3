"""Turns and dialogues in the form that the ECG-MTD data sets publish.

A user turn is ``{"role": "user", "content", optional "action"}``; an assistant turn is ``{"role":
"assistant", "action", "thought", "content" | "tool_output"}``. A row holds ``dialogue``,
``ecg_files`` and ``metadata`` as JSON strings and ``source_category`` as text. Keys that this
module does not know are kept and written back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ecg_agent_ray.dialogue.actions import Action
from ecg_agent_ray.errors import DialogueError

__all__ = ["LEAD_CONFIGURATIONS", "Dialogue", "LeadConfiguration", "Turn"]

LeadConfiguration = Literal["12-lead", "I", "II"]
LEAD_CONFIGURATIONS: tuple[LeadConfiguration, ...] = ("12-lead", "I", "II")

_JSON_FIELDS = ("dialogue", "ecg_files", "metadata")


class Turn(BaseModel):
    """One message of a dialogue. Immutable; unknown keys survive a round trip.

    An assistant turn that calls a tool has ``tool_output`` once the tool has run; until then the
    field is unset (see :attr:`is_pending`). The shapes of ``tool_output`` are those of ECG-MTD:
    classification a list of ``"SR (98.23%)"``, measurement a dict of ``heart_rate, pr_interval,
    qrs_duration, qtc_interval`` (bpm, ms, ms, ms; ``None`` where it cannot be had), explanation
    one line of text.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Literal["user", "assistant"]
    action: str | None = Field(
        default=None,
        description="Assistant: one of the seven. User: whatever the data set noted; never shown.",
    )
    thought: str | None = None
    content: str | None = None
    tool_output: Any = None

    @model_validator(mode="before")
    @classmethod
    def _assistant_action(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("role") == "assistant":
            try:
                return {**data, "action": Action(str(data.get("action")))}
            except ValueError:
                raise ValueError(
                    f"action is {data.get('action')!r}; an assistant turn's action is one of "
                    + ", ".join(Action)
                ) from None
        return data

    @model_validator(mode="after")
    def _complete(self) -> Turn:
        if self.role == "user":
            if self.content is None:
                raise ValueError("a user turn needs content")
            return self
        if self.thought is None:
            raise ValueError("an assistant turn needs a thought")
        calls_tool = Action(str(self.action)).is_tool_call
        if calls_tool and self.content is not None:
            raise ValueError(f"{self.action} ends in tool_output, not in content")
        if not calls_tool and self.content is None:
            raise ValueError(f"{self.action} needs content")
        if not calls_tool and self.tool_output is not None:
            raise ValueError(f"{self.action} has content, not tool_output")
        return self

    @classmethod
    def user(cls, content: str) -> Turn:
        return cls(role="user", content=content)

    @classmethod
    def answer(cls, action: Action, thought: str, content: str) -> Turn:
        """An assistant turn that speaks to the user."""
        return cls(role="assistant", action=action, thought=thought, content=content)

    @classmethod
    def call(cls, action: Action, thought: str, tool_output: Any) -> Turn:
        """An assistant turn that called a tool, with what the tool gave."""
        return cls(role="assistant", action=action, thought=thought, tool_output=tool_output)

    @property
    def assistant_action(self) -> Action:
        """The action of an assistant turn; raises :class:`DialogueError` for a user turn."""
        if self.role != "assistant":
            raise DialogueError("a user turn has no action of the assistant")
        return Action(str(self.action))

    @property
    def is_tool_call(self) -> bool:
        return self.role == "assistant" and self.assistant_action.is_tool_call

    @property
    def is_pending(self) -> bool:
        """A tool call whose tool has not run yet."""
        return self.is_tool_call and "tool_output" not in self.model_fields_set

    def to_dict(self) -> dict[str, Any]:
        """The turn's JSON object: the keys it came with, no defaults added."""
        data = self.model_dump(exclude_unset=True)
        if self.role == "assistant":
            data["action"] = str(data["action"])
        return data


class Dialogue(BaseModel):
    """A dialogue about one recording, and the row it is stored as.

    ``metadata`` holds ``ecg_id, cefr_level, action_sequence_prompted`` in the published data sets
    and always ``lead_configuration`` here.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    turns: list[Turn]
    ecg_files: list[str] = Field(default_factory=list)
    metadata: dict[str, Any] = Field(default_factory=dict)
    source_category: str = Field(default="", description="The topic, as text.")

    @property
    def lead_configuration(self) -> LeadConfiguration:
        """``12-lead``, ``I`` or ``II``; 12-lead where nothing is said."""
        value = self.metadata.get("lead_configuration", "12-lead")
        for known in LEAD_CONFIGURATIONS:
            if value == known:
                return known
        raise DialogueError(
            f"lead_configuration is {value!r}; it is one of {', '.join(LEAD_CONFIGURATIONS)}"
        )

    @property
    def cefr_level(self) -> str | None:
        value = self.metadata.get("cefr_level")
        return None if value is None else str(value)

    @property
    def record_id(self) -> str | None:
        """Stem of the first ECG file."""
        return PurePosixPath(self.ecg_files[0]).stem if self.ecg_files else None

    @property
    def actions(self) -> list[Action]:
        """The assistant's actions in order."""
        return [turn.assistant_action for turn in self.turns if turn.role == "assistant"]

    def tool_outputs(self) -> Iterator[tuple[Action, Any]]:
        """Each tool call that has run, with its output, in order."""
        for turn in self.turns:
            if turn.is_tool_call and not turn.is_pending:
                yield turn.assistant_action, turn.tool_output

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], *, lead_configuration: LeadConfiguration = "12-lead"
    ) -> Dialogue:
        """Read one row of an ECG-MTD file.

        ``dialogue``, ``ecg_files`` and ``metadata`` may be JSON text or decoded already.
        ``lead_configuration`` is what to note where neither the metadata nor the row says it.
        Raises :class:`DialogueError` naming the field or turn that is wrong.
        """
        data = dict(row)
        decoded = {name: _decoded(data.pop(name, None), name) for name in _JSON_FIELDS}
        metadata = decoded["metadata"] if decoded["metadata"] is not None else {}
        if not isinstance(metadata, dict):
            raise DialogueError(f"metadata is {type(metadata).__name__}, not an object")
        for name, default in (("cefr_level", None), ("lead_configuration", lead_configuration)):
            value = data.get(name) if data.get(name) is not None else default
            if name not in metadata and value is not None:
                metadata = {**metadata, name: value}
        files = decoded["ecg_files"]
        files = [files] if isinstance(files, str) else files
        try:
            return cls(
                turns=_read_turns(decoded["dialogue"]),
                ecg_files=files or [],
                metadata=metadata,
                source_category=data.pop("source_category", None) or "",
                **data,
            )
        except ValidationError as error:
            raise DialogueError(_sentences(error)) from error

    def to_row(self) -> dict[str, Any]:
        """The row to store; :meth:`from_row` reads it back to an equal dialogue."""
        turns = [turn.to_dict() for turn in self.turns]
        return {
            "dialogue": _encoded(turns, "dialogue"),
            "ecg_files": _encoded(self.ecg_files, "ecg_files"),
            "metadata": _encoded(self.metadata, "metadata"),
            "source_category": self.source_category,
            **(self.model_extra or {}),
        }


def _encoded(value: Any, name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DialogueError(f"{name} cannot be written as JSON: {error}") from error


def _decoded(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        if name == "ecg_files" and not value.lstrip().startswith("["):
            return value  # some files hold the bare name
        raise DialogueError(f"{name} is no JSON: {error}") from error


def _read_turns(value: Any) -> list[Turn]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DialogueError("dialogue is empty or no list of turns")
    turns = []
    for number, item in enumerate(value):
        try:
            turns.append(Turn.model_validate(item))
        except ValidationError as error:
            raise DialogueError(f"turn {number}: {_sentences(error)}") from error
    return turns


def _sentences(error: ValidationError) -> str:
    """Pydantic's report as one line without its links."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {message}" if where else message)
    return "; ".join(parts)
