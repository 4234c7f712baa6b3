"""Request and response bodies of the HTTP API, as its OpenAPI document shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = [
    "ChatMessage",
    "ChatRequest",
    "ClassificationRequest",
    "EcgAgentOptions",
    "EcgBody",
    "ExplanationRequest",
    "LeadConfiguration",
    "MeasurementRequest",
    "StreamOptions",
]

LEAST_TOKENS = 64
LeadConfiguration = Literal["12-lead", "I", "II"]

_SAMPLE_ECG: dict[str, Any] = {
    "id": "ecg_0f3c9a5b7d2e4f60a1b2c3d4e5f60718",
    "record_id": "00001_hr",
    "format": "wfdb",
    "leads": ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"],
    "sampling_rate": 500.0,
    "duration_s": 10.0,
    "quality": {"I": {"status": "usable", "reason": None}},
}


class EcgBody(BaseModel):
    """A stored ECG. ``sampling_rate`` is in Hz."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SAMPLE_ECG]})

    id: str
    record_id: str
    format: str
    leads: list[str]
    sampling_rate: float
    duration_s: float
    quality: dict[str, dict[str, Any]] = Field(description="Per lead: status and reason.")


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MeasurementRequest(_Options):
    """Options of ``ecg-agent measure``."""

    lead: str = Field(
        default="auto", max_length=16, description="A lead's name, `auto` or `global`."
    )
    method: Literal["default", "paper", "neurokit"] = "default"
    beats: bool = Field(default=False, description="Add the fiducial points of every beat.")


class ClassificationRequest(_Options):
    """Options of ``ecg-agent classify``; the model is the one the service loaded."""

    threshold: float | Literal["model"] = Field(
        default=0.5, description="Probability above which a label is positive, or `model`."
    )
    leads: LeadConfiguration | None = Field(
        default=None, description="Lead configuration; null takes what the recording has."
    )

    @field_validator("threshold")
    @classmethod
    def _probability(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 <= value <= 1:
            raise ValueError("a threshold is between 0 and 1")
        return value


class ExplanationRequest(_Options):
    """Options of ``ecg-agent explain``."""

    label: str = Field(max_length=64, description="The classifier's label to explain.")
    leads: LeadConfiguration | None = Field(
        default=None, description="Lead configuration; null takes what the recording has."
    )


class ChatMessage(BaseModel):
    """One message in OpenAI's form; unknown keys (name, refusal, …) are ignored."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        """The words of the message; of a list of parts, its text parts joined."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        parts = [part.get("text") for part in self.content if part.get("type") == "text"]
        return "\n".join(part for part in parts if isinstance(part, str))

    def has_other_parts(self) -> bool:
        """Whether there is anything but text in it, such as an image."""
        return isinstance(self.content, list) and any(
            part.get("type") != "text" for part in self.content
        )


class EcgAgentOptions(_Options):
    """What the dialogue is about; the openai client passes it as ``extra_body``."""

    ecg_id: str | None = Field(default=None, max_length=64, description="Id of an uploaded ECG.")
    lead_configuration: LeadConfiguration | None = Field(
        default=None, description="Null takes what the recording has."
    )
    include_steps: bool = Field(
        default=False, description="Add the tool steps and the grounding report to the answer."
    )
    steps: list[dict[str, Any]] | None = Field(
        default=None,
        max_length=256,
        description="Steps of earlier turns as they were received, so that no tool runs twice; "
        "null if none were kept.",
    )


class StreamOptions(BaseModel):
    """OpenAI's stream options."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """OpenAI's chat completion request; its other fields are accepted and have no effect."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "model": "ecg-agent",
                    "messages": [{"role": "user", "content": "What is the heart rate?"}],
                    "ecg_agent": {"ecg_id": _SAMPLE_ECG["id"], "include_steps": True},
                }
            ]
        },
    )

    model: str = Field(max_length=128, description="An id of `GET /v1/models`.")
    messages: list[ChatMessage] = Field(
        min_length=1,
        description="The dialogue; the last message is the user's. System messages are accepted "
        "and not followed: the agent has its own instructions.",
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=1, ge=1, le=1, description="Only one answer is given.")
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0, the default, always gives the likeliest words."
    )
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Tokens of one message of the agent's, at most; below 64 is taken as 64.",
    )
    max_completion_tokens: int | None = Field(
        default=None, ge=1, le=4096, description="The newer name of `max_tokens`."
    )
    ecg_agent: EcgAgentOptions = EcgAgentOptions()

    def sampling(self) -> dict[str, Any]:
        """What was asked of the generation, as arguments of ``Agent.run``."""
        limit = self.max_completion_tokens or self.max_tokens
        asked = {
            # a message that also says its action and closes needs this much
            "max_tokens": None if limit is None else max(limit, LEAST_TOKENS),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        return {name: value for name, value in asked.items() if value is not None}
