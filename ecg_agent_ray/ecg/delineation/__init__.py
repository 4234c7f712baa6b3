"""Delineation: beats and the boundaries of their waves, in numpy and scipy alone."""

from __future__ import annotations

from ecg_agent_ray.ecg.delineation.beats import find_beats
from ecg_agent_ray.ecg.delineation.classical import (
    FIDUCIALS,
    WORKING_RATE_HZ,
    Delineation,
    delineate,
)

__all__ = ["FIDUCIALS", "WORKING_RATE_HZ", "Delineation", "delineate", "find_beats"]
