"""How good an agent and its tools are: the paper's protocol, metrics, files to score again."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Extras": "run",
    "agent_scorers": "scorers",
    "align_turns": "alignment",
    "compare": "comparison",
    "evaluate_agent": "run",
    "evaluate_classifier": "classifier",
    "evaluate_explanation": "explanation",
    "evaluate_measurement": "measurement",
    "genai_rows": "scorers",
    "predict": "protocol",
    "read_predictions": "protocol",
    "score": "metrics",
    "score_predictions": "run",
    "tool_source": "tool_sources",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
