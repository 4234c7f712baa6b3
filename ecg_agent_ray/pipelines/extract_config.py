"""The options of an extraction; the same for the command line, the job and Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.config import StrictConfig

__all__ = ["ExtractConfig", "Tool", "make_config"]

Tool = Literal["measurements", "classification", "explanation"]

_OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "measurements": ("lead", "method"),
    "classification": ("leads", "model"),
    "explanation": ("leads", "model", "label", "lead"),
}
_READING = ("sampling_rate", "unit", "gain", "lead_names")
_BATCH = {"measurements": 16, "classification": 16, "explanation": 1}


class ExtractConfig(StrictConfig):
    """Run one tool over every recording below a folder."""

    tool: Tool
    ecg_dir: Path = Field(description="Recordings, anywhere below it.")
    output_dir: Path = Field(description="Takes the tables; a killed run is continued from here.")
    lead: str = Field(
        default="auto",
        description="measurements: a lead's name, auto or global; explanation: the lead whose "
        "spectrogram is explained, auto takes II (I for configuration I).",
    )
    method: Literal["default", "paper", "neurokit"] = "default"
    leads: Literal["12-lead", "I", "II"] = Field(
        default="12-lead", description="Lead configuration that the classifier sees."
    )
    model: str = Field(
        default="builtin:", description="models:/NAME@ALIAS, a checkpoint or classifier folder."
    )
    label: str | None = Field(
        default=None, description="Statement to explain; null takes each record's most probable."
    )
    sampling_rate: float | None = Field(
        default=None, gt=0, description="Hz, of recordings whose files do not tell theirs."
    )
    unit: str | None = Field(
        default=None, description="mV, uV, V or adc, where the files do not tell."
    )
    gain: float | None = Field(default=None, gt=0, description="Counts per mV, for unit adc.")
    lead_names: list[str] | None = Field(
        default=None, description="Of the files' channels, in their order."
    )
    resume: bool = Field(
        default=True, description="Continue what output_dir holds; false starts anew."
    )
    strict: bool = Field(default=False, description="End with 1 if any recording failed.")
    workers: int | None = Field(
        default=None, ge=1, description="Processes, one CPU each; null takes all CPUs."
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Recordings a worker gets at a time; null by tool."
    )
    track: bool = Field(default=False, description="Log options and counts to MLflow.")

    @model_validator(mode="after")
    def _options_belong_to_the_tool(self) -> Self:
        own = _OPTIONS_OF[self.tool]
        for name in ("lead", "method", "leads", "model", "label"):
            if name not in own and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} says nothing to {self.tool}, which takes {', '.join(own)}"
                )
        if self.lead.lower() == "global" and self.method != "default":
            raise ValueError(f"method {self.method} measures one lead, not global")
        if self.lead.lower() == "global" and self.tool == "explanation":
            raise ValueError("an explanation is of one lead, not global")
        return self

    @property
    def records_a_batch(self) -> int:
        return self.batch_size or _BATCH[self.tool]

    def identity(self) -> dict[str, Any]:
        """What must be the same for rows of two runs to belong into one table."""
        own = {name: getattr(self, name) for name in _OPTIONS_OF[self.tool]}
        return {"tool": self.tool, "ecg_dir": str(self.ecg_dir.resolve()), **own, **self.reading}

    @property
    def reading(self) -> dict[str, Any]:
        """Keywords of :func:`ecg_agent_ray.ecg.read` that were given."""
        values = {name: getattr(self, name) for name in _READING}
        return {name: value for name, value in values.items() if value is not None}


def make_config(**values: Any) -> ExtractConfig:
    """An :class:`ExtractConfig`; raises :class:`ConfigError` with every problem."""
    try:
        return ExtractConfig.model_validate(values)
    except ValidationError as error:
        problems = tuple(
            ": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"]]))
            for item in error.errors()
        )
        raise ConfigError("bad options", problems=problems) from error
