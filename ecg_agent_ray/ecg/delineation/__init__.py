"""Delineation: beats and the boundaries of their waves, by a small network and classically.

No torch: the network runs in ONNX Runtime. The two methods know nothing of each other, so that one
checks the other.
"""

from __future__ import annotations

from ecg_agent_ray.ecg.delineation.beats import find_beats
from ecg_agent_ray.ecg.delineation.classical import ClassicalLead
from ecg_agent_ray.ecg.delineation.decode import delineate
from ecg_agent_ray.ecg.delineation.network import wave_probabilities
from ecg_agent_ray.ecg.delineation.points import FIDUCIALS, WORKING_RATE_HZ, Delineation

__all__ = [
    "FIDUCIALS",
    "WORKING_RATE_HZ",
    "ClassicalLead",
    "Delineation",
    "delineate",
    "find_beats",
    "wave_probabilities",
]
