"""What delineating a lead gives, by whichever method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["FIDUCIALS", "WORKING_RATE_HZ", "Delineation"]

FIDUCIALS = (
    "p_onset",
    "p_peak",
    "p_offset",
    "qrs_onset",
    "r_peak",
    "qrs_offset",
    "t_onset",
    "t_peak",
    "t_offset",
)
WORKING_RATE_HZ = 500.0


@dataclass(frozen=True)
class Delineation:
    """Fiducials of one lead: ``points[name]`` are sample positions (float) of every beat, NaN where
    the beat has none; ``p_present`` says whether so many beats have a P wave that the lead does."""

    points: dict[str, npt.NDArray[np.float64]]
    p_present: bool
