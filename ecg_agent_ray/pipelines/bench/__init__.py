"""Speed, one module for each thing that is timed; every comparison runs in one process and run."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "bench_agent": "agent",
    "bench_measurement": "measurement",
    "bench_training": "training",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
