"""The agent's three tools as plain objects: a `Recording` in, an output with ``to_dict()`` out.

``to_dict()`` is the command line's JSON, ``to_dialogue()`` the ``tool_output`` of a dialogue turn.
Names load on first use, so that measuring never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ecg_agent_ray.tools.classification import Classification, classify
    from ecg_agent_ray.tools.explanation import Explanation, explain
    from ecg_agent_ray.tools.measurement import Measurement, measure

__all__ = [
    "Classification",
    "Explanation",
    "Measurement",
    "ToolOutput",
    "classify",
    "explain",
    "measure",
]

_HOMES = {
    "Classification": "classification",
    "classify": "classification",
    "Explanation": "explanation",
    "explain": "explanation",
    "Measurement": "measurement",
    "measure": "measurement",
}


class ToolOutput(Protocol):
    """What every tool gives."""

    def to_dict(self) -> dict[str, Any]: ...

    def to_dialogue(self) -> Any: ...


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
