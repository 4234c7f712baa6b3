"""What the HTTP app needs of the rest of the graph, free of Ray.

The app is given a :class:`Backend`; in the graph it is made of deployment handles
(:class:`ecg_agent_ray.serving.handles.HandleBackend`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from ecg_agent_ray.serving.store import EcgMeta

__all__ = ["Backend"]


class Backend(Protocol):
    """The parts behind the HTTP API.

    Every method raises :class:`~ecg_agent_ray.errors.ServiceError` when its part is overloaded,
    absent or too slow, and the part's own error where the request was at fault.
    """

    async def add_ecg(
        self, files: Sequence[tuple[str, bytes]], owner: str, ecg_id: str | None = None
    ) -> EcgMeta:
        """Parse an upload and keep it."""
        ...

    async def add_sample(self, record_id: str, owner: str) -> EcgMeta:
        """Keep a copy of a shipped sample record."""
        ...

    async def signal(self, ecg_id: str, options: Mapping[str, Any]) -> bytes:
        """JSON of a stretch of the signal."""
        ...

    async def plot(self, ecg_id: str, options: Mapping[str, Any]) -> bytes:
        """SVG on ECG paper."""
        ...

    async def tool(self, name: str, ecg_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """``measurement``, ``classification`` or ``explanation``: the CLI's JSON as ``detail``, its
        dialogue form as ``output``, and for a canary's share the comparison as ``canary``."""
        ...

    def chat(self, turn: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Events of one user turn, see :mod:`ecg_agent_ray.agent.events`; the last is ``final``."""
        ...

    async def status(self) -> dict[str, dict[str, Any]]:
        """Per part ``{"ready": bool, "problem": str | None, …}``; never raises."""
        ...
