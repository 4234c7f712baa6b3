"""The evaluation job's options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ecg_agent_ray.agent.load import load_agent
from ecg_agent_ray.dialogue import LeadConfiguration
from ecg_agent_ray.evaluation.run import Extras, evaluate_agent, score_predictions

__all__ = ["EvaluationConfig", "run"]


class EvaluationConfig(BaseModel):
    """Options of ``jobs/evaluate_agent.py``; the same as of ``ecg-agent evaluate agent``."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    dialogues: Path | None = Field(
        default=None, description="JSONL or Parquet of ECG-MTD rows; not needed with predictions."
    )
    model: str = Field(default="builtin:", description="Agent, as load_agent takes it.")
    history: Literal["without_gt", "with_gt"] = "without_gt"
    tools: str | list[str] = Field(
        default="live", description="live, recorded, or CSV files with tool outputs."
    )
    ecg_dir: Path | None = Field(default=None, description="Recordings, for live tools.")
    classifier: str | None = Field(
        default=None, description="Of the live tools; null takes the agent's."
    )
    lead_configuration: LeadConfiguration | None = Field(
        default=None, description="null takes the agent's."
    )
    output: Path = Field(description="Folder for predictions.jsonl and metrics.json.")
    limit: int | None = Field(default=None, ge=1, description="Only the first dialogues.")
    max_tokens: int = Field(default=256, ge=32, description="Of one assistant turn.")
    in_flight: int = Field(
        default=8,
        ge=1,
        description="Dialogues held at a time; 1 gives the same text in every run.",
    )
    engine: str | None = Field(
        default=None,
        description="What runs local weights: auto (also null), transformers or openvino.",
    )
    predictions: Path | None = Field(
        default=None, description="Score this file instead of generating."
    )
    judges: list[str] = Field(
        default=[], description="Endpoints that rate the answers, openai:BASE_URL#MODEL."
    )
    baseline: Path | None = Field(
        default=None, description="Predictions of another model on the same dialogues."
    )
    track: bool = Field(default=False, description="Log metrics and the report to MLflow.")
    device: str | None = None
    dtype: str | None = None

    @model_validator(mode="after")
    def _has_input(self) -> EvaluationConfig:
        if self.predictions is None and self.dialogues is None:
            raise ValueError("give dialogues to generate, or predictions to score")
        return self


def run(config: EvaluationConfig) -> dict[str, Any]:
    """Evaluate as configured; returns the metrics."""
    extras = Extras(judges=config.judges, baseline=config.baseline, track=config.track)
    if config.predictions is not None or config.dialogues is None:
        return score_predictions(config.predictions or Path(), config.output, extras=extras)
    agent = load_agent(
        config.model,
        lead_configuration=config.lead_configuration,
        engine=config.engine,
        device=config.device,
        dtype=config.dtype,
    )
    return evaluate_agent(
        config.dialogues,
        agent,
        config.tools,
        output=config.output,
        history=config.history,
        ecg_dir=config.ecg_dir,
        classifier=config.classifier,
        limit=config.limit,
        max_tokens=config.max_tokens,
        in_flight=config.in_flight,
        extras=extras,
    )
