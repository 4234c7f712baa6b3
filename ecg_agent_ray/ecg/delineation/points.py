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
    """Fiducials of one lead: ``points[name]`` are sample positions (float, at ``rate`` Hz) of every
    beat, NaN where the beat has none. ``anchors`` are the beats as aligned with each other: the
    same place in each complex, so that their distances are the RR intervals. ``p_evidence`` is
    the method's own measure of whether the beats have P waves, 0 to 1."""

    points: dict[str, npt.NDArray[np.float64]]
    anchors: npt.NDArray[np.intp]
    rate: float
    p_present: bool
    p_evidence: float
