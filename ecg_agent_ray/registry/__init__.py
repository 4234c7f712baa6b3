"""Models in MLflow's registry: publishing, finding, promoting, rolling back.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "CHALLENGER": "store",
    "CHAMPION": "store",
    "PREVIOUS_CHAMPION": "store",
    "Diff": "inspection",
    "Gate": "gates",
    "GateReport": "gates",
    "GateRule": "gates",
    "ModelVersion": "store",
    "Promotion": "promotion",
    "attach_evaluation": "publish",
    "diff": "inspection",
    "export": "inspection",
    "list_models": "inspection",
    "load_gate": "gates",
    "log_agent": "publish",
    "log_classifier": "publish",
    "model_name": "store",
    "promote": "promotion",
    "register_directory": "publish",
    "resolve": "uris",
    "rollback": "promotion",
    "show": "inspection",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
