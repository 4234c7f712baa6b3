"""The agent: engines that generate, the turn loop, the tools it calls, the check of its numbers.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Agent": "loop",
    "ChatFormat": "chat_format",
    "ContentDelta": "events",
    "Engine": "engine",
    "Event": "events",
    "FinalEvent": "events",
    "Generation": "engine",
    "GenerationRequest": "engine",
    "GroundingReport": "events",
    "LocalToolbox": "toolbox",
    "OpenAIEngine": "openai_engine",
    "OpenVINOEngine": "openvino_engine",
    "StatusEvent": "events",
    "ToolCallEvent": "events",
    "ToolOutputEvent": "events",
    "ToolResult": "events",
    "Toolbox": "toolbox",
    "TransformersEngine": "transformers_engine",
    "Usage": "engine",
    "Violation": "grounding",
    "check_grounding": "grounding",
    "StrictView": "speech",
    "load_agent": "load",
    "resolve_base_model": "base_model",
    "shown": "speech",
    "urgent": "speech",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
