"""What every format's parser hands back, and the checks they share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.leads import STANDARD_LEADS
from ecg_agent_ray.ecg.recording import MAX_LEADS, MAX_VALUES
from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["Parsed", "check_size", "default_leads", "millivolts_per", "orient"]

_MILLIVOLTS = {"nv": 1e-6, "uv": 1e-3, "mv": 1.0, "cv": 10.0, "dv": 100.0, "v": 1e3}


@dataclass(frozen=True)
class Parsed:
    """A file's content before lead names are normalised: (leads, samples) in mV.

    ``sampling_rate`` is None where the file does not tell.
    """

    signal: npt.NDArray[np.float32]
    leads: Sequence[str]
    sampling_rate: float | None
    format: str
    record_id: str | None = field(default=None)


def millivolts_per(unit: str) -> float | None:
    """How many mV one ``unit`` is; None for what is no voltage (``mmHg``, ``NU``)."""
    cleaned = re.sub(r"[\s\[\]()]", "", unit).replace("µ", "u").replace("μ", "u").lower()
    cleaned = {"millivolt": "mv", "microvolt": "uv", "volt": "v"}.get(cleaned.rstrip("s"), cleaned)
    return _MILLIVOLTS.get(cleaned)


def check_size(n_leads: int, n_samples: int, what: str) -> None:
    """Raise before anything is allocated where a header claims more than a recording may hold."""
    if n_leads < 1 or n_samples < 1:
        raise CorruptRecordingError(f"{what} holds no samples ({n_leads} leads x {n_samples})")
    if n_leads > MAX_LEADS or n_leads * n_samples > MAX_VALUES:
        raise CorruptRecordingError(
            f"{what} claims {n_leads} leads x {n_samples} samples, more than one recording may hold"
        )


def orient(array: npt.NDArray[np.generic], what: str) -> npt.NDArray[np.generic]:
    """(leads, samples): the shorter side is the leads, since no ECG has more leads than samples."""
    squeezed = array.reshape([n for n in array.shape if n != 1] or [1])
    if squeezed.ndim == 1:
        squeezed = squeezed[np.newaxis]
    if squeezed.ndim != 2 or squeezed.dtype.kind not in "iufb":
        raise CorruptRecordingError(
            f"{what} holds a {array.dtype} array of shape {array.shape}, not (leads, samples)"
        )
    if squeezed.shape[0] > squeezed.shape[1]:
        squeezed = squeezed.T
    check_size(squeezed.shape[0], squeezed.shape[1], what)
    return squeezed


def default_leads(n_leads: int) -> list[str]:
    """Names where a file has none: the standard order for 12 rows, ``ECG`` for one, else numbers.

    Eight rows are what carts store: I, II, V1 to V6.
    """
    if n_leads == len(STANDARD_LEADS):
        return list(STANDARD_LEADS)
    if n_leads == 8:
        return ["I", "II", *STANDARD_LEADS[6:]]
    return ["ECG"] if n_leads == 1 else [f"ECG {i + 1}" for i in range(n_leads)]
