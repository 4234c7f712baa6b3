"""The agent as a Ray Serve application with an HTTP API and a page.

``build`` is the import path of ``serve_configs/*.yaml``; :func:`running_service` starts the same
application in a local Ray. Names are loaded on first use, so that importing this package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "ServiceConfig": "config",
    "TokenFile": "auth",
    "build": "graph",
    "build_app": "graph",
    "create_app": "app",
    "load_service_config": "config",
    "running_service": "service",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
