"""The job, serving, project and manifest files, in a checkout or in an installed package."""

from __future__ import annotations

from pathlib import Path

from ecg_agent_ray.errors import InputError

__all__ = ["shipped"]

_PACKAGE = Path(__file__).resolve().parent


def shipped(relative: str) -> Path:
    """Path of e.g. ``jobs/configs/demo_llm.yaml``; raises :class:`InputError` if there is none."""
    for root in (_PACKAGE / "_shipped", _PACKAGE.parent):
        if (root / relative).exists():
            return root / relative
    raise InputError(f"this installation carries no {relative}")
