"""Agents from where they are kept.

``builtin:``              the agent that the package carries
a folder                  ``ecg_agent.json`` with a PEFT adapter, or with merged weights
``openai:BASE_URL#MODEL`` any OpenAI-compatible endpoint
``base:REFERENCE``        a base model without adapter, for comparison

``models:/…`` is turned into a folder by the registry, which lies above this package.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, resolve_base_model
from ecg_agent_ray.agent.drafts import read_drafts
from ecg_agent_ray.agent.engine import Engine, GenerationRequest
from ecg_agent_ray.agent.loop import Agent
from ecg_agent_ray.agent.speech import Speech
from ecg_agent_ray.dialogue import PROMPT_VERSION, LeadConfiguration
from ecg_agent_ray.errors import ConfigError, ModelNotFoundError, WeightsUnavailableError

__all__ = [
    "BUILTIN_AGENT",
    "ENGINES",
    "MANIFEST_NAME",
    "AgentManifest",
    "agent_weights",
    "load_agent",
    "read_manifest",
    "write_manifest",
]

_log = logging.getLogger(__name__)

MANIFEST_NAME = "ecg_agent.json"
BUILTIN_AGENT = Path(__file__).resolve().parent.parent / "_data" / "agent"

ENGINES = ("transformers", "openvino")
"""What can run local weights; the second is for a device's CPU. ``auto`` chooses."""
_WORTH_CONVERTING = range(500_000_000, 4_000_000_000)
"""Bytes of weights for which ``auto`` takes OpenVINO: below, torch answers within a second and the
minute of conversion is not worth it; above, the conversion needs more memory than a device has."""


class AgentManifest(BaseModel):
    """``ecg_agent.json``: what the weights in a folder need to be an agent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    base_model: str = Field(
        default=LAPTOP_BASE_MODEL,
        description="What an adapter was trained on; see base_model. Unused with merged weights.",
    )
    fallback: str | None = Field(
        default=None,
        description="Folder of another agent, seen from this one's, which takes its place where "
        "the base model's weights are not available.",
    )
    lead_configuration: LeadConfiguration = "12-lead"
    prompt_version: str = PROMPT_VERSION
    classifier: str | None = Field(
        default=None, description="URI of the classifier it was made for; null is the shipped one."
    )
    speech: Speech = Field(
        default="open", description="strict: trained on slots; decided by training, not by users."
    )


def read_manifest(folder: str | Path) -> AgentManifest:
    """The manifest of an agent's folder.

    Raises :class:`ModelNotFoundError` without one, :class:`ConfigError` for a malformed one.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise ModelNotFoundError(f"{folder} holds no {MANIFEST_NAME}, so it is no agent")
    try:
        return AgentManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        problems = tuple(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
            for item in error.errors(include_url=False)
        )
        raise ConfigError(f"{path} is malformed", problems=problems) from error


def load_agent(
    source: str | Path = "builtin:",
    *,
    lead_configuration: LeadConfiguration | None = None,
    level: str | None = None,
    engine: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **options: Any,
) -> Agent:
    """An agent ready to run.

    Parameters
    ----------
    source
        Where it is kept; see the module's text.
    lead_configuration
        Overrides the manifest's.
    level
        CEFR level of the answers.
    engine
        What runs local weights, one of :data:`ENGINES`; None and ``auto`` take openvino on a CPU
        for models of half a billion weights or more, if it is installed, else transformers.
    device, dtype
        For local weights; None chooses.
    **options
        Passed on to :class:`Agent` (``max_tokens``, ``grounding``, …).

    Raises
    ------
    ModelNotFoundError
        There is no such folder, base model or builtin agent.
    ConfigError
        The manifest is malformed, or the source is of a kind this function does not resolve.
    CheckpointError
        The adapter does not fit its base model.
    MissingDependencyError
        The engine is not installed.
    """
    text = str(source)
    if engine == "auto":
        engine = None
    if engine not in (None, *ENGINES):
        raise ConfigError(f"no engine {engine!r}", hint=f"use auto or one of {', '.join(ENGINES)}")
    if text.startswith("models:/"):
        raise ConfigError(
            f"{text} has to be resolved to a folder first", hint="use registry.resolve"
        )
    if text.startswith("openai:"):
        from ecg_agent_ray.agent.openai_engine import OpenAIEngine

        base_url, _, model = text.removeprefix("openai:").partition("#")
        if engine is not None:
            raise ConfigError(f"{text} is an endpoint and brings its own engine")
        endpoint = OpenAIEngine(base_url, model)
        return Agent(endpoint, lead_configuration or "12-lead", level=level, name=text, **options)
    manifest, folder = _manifest(text)
    if manifest.prompt_version != PROMPT_VERSION:
        _log.warning(
            "%s was trained with prompt version %s; this package has %s",
            text,
            manifest.prompt_version,
            PROMPT_VERSION,
        )
    agent = Agent(
        _local_engine(manifest, folder, text, engine, device, dtype),
        lead_configuration or manifest.lead_configuration,
        level=level,
        classifier=manifest.classifier,
        speech=manifest.speech,
        name=text,
        **options,
    )
    agent.engine.warm([agent.system], [GenerationRequest()])
    return agent


def _manifest(source: str) -> tuple[AgentManifest, Path | None]:
    """What an agent with local weights needs, and its folder where it has one."""
    if source.startswith("base:"):
        return AgentManifest(base_model=source.removeprefix("base:")), None
    folder = BUILTIN_AGENT if source == "builtin:" else Path(source).expanduser()
    manifest = read_manifest(folder)
    if manifest.fallback is None:
        return manifest, folder
    try:
        resolve_base_model(manifest.base_model)
    except WeightsUnavailableError as error:
        other = folder / manifest.fallback
        _log.warning("%s; the agent in %s takes the place of %s", error, other.resolve(), source)
        return read_manifest(other), other
    return manifest, folder


def agent_weights(source: str | Path = "builtin:") -> tuple[str, Path | None]:
    """The base model's reference and the adapter's folder, None where the weights are merged.

    Raises :class:`ConfigError` for an endpoint, whose weights are elsewhere, and as
    :func:`load_agent` does.
    """
    text = str(source)
    if text.startswith("openai:"):
        raise ConfigError(f"{text} is an endpoint; its weights are not here")
    return _weights(*_manifest(text))


def _weights(manifest: AgentManifest, folder: Path | None) -> tuple[str, Path | None]:
    if folder is not None and not (folder / "adapter_config.json").is_file():
        return str(folder.resolve()), None  # merged: the folder is the model
    return manifest.base_model, folder


def _local_engine(
    manifest: AgentManifest,
    folder: Path | None,
    name: str,
    engine: str | None,
    device: str | None,
    dtype: str | None,
) -> Engine:
    base_model, adapter = _weights(manifest, folder)
    drafts = read_drafts(folder)
    if engine is None:
        engine = _chosen_engine(base_model, device, dtype)
    if engine == "openvino":
        from ecg_agent_ray.agent.openvino_engine import OpenVINOEngine

        if device not in (None, "cpu"):
            raise ConfigError(f"the engine openvino runs on the CPU, not on {device}")
        return OpenVINOEngine(base_model, adapter, dtype=dtype, drafts=drafts, name=name)
    from ecg_agent_ray.agent.transformers_engine import TransformersEngine

    return TransformersEngine(
        base_model, adapter, device=device, dtype=dtype, drafts=drafts, name=name
    )


def _chosen_engine(base_model: str, device: str | None, dtype: str | None) -> str:
    """The faster engine for this model here; whoever names a dtype means torch's."""
    installed = all(importlib.util.find_spec(name) for name in ("openvino", "nncf"))
    if not installed or dtype is not None or device not in (None, "cpu"):
        return "transformers"
    import torch
    from transformers import AutoConfig

    from ecg_agent_ray.agent.openvino_model import can_convert

    folder = Path(resolve_base_model(base_model))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if (device is None and torch.cuda.is_available()) or size not in _WORTH_CONVERTING:
        return "transformers"
    return "openvino" if can_convert(AutoConfig.from_pretrained(folder)) else "transformers"


def write_manifest(folder: str | Path, manifest: AgentManifest) -> Path:
    """Write ``ecg_agent.json`` into ``folder``, which exists."""
    path = Path(folder) / MANIFEST_NAME
    path.write_text(json.dumps(manifest.model_dump(), indent=2) + "\n", encoding="utf-8")
    return path
