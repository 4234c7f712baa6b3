"""The measurements of neurokit2: its best delineator called well, and the published agent's way.

How ``paper`` differs from the definitions of `measurement`, kept as it was published:

- PR runs from P onset to the R wave's onset as the wavelet delineator gives it, QRS from the Q peak
  to the S peak (not from onset to offset), QT from the Q peak to T offset;
- QTc divides by the RR interval of the same index, which is the one *behind* the beat, not before;
- values outside PR 80-400, QRS 80-240 and QTc 300-600 ms are dropped before the median, so narrow
  QRS complexes go missing and long intervals are cut off;
- a recording of fewer than seven beats gives nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.delineation import FIDUCIALS
from ecg_agent_ray.ecg.filters import fill_gaps
from ecg_agent_ray.errors import MissingDependencyError
from ecg_agent_ray.tools.measurement import BeatTable

__all__ = ["neurokit_table", "paper_values"]

_PAPER_RANGES_MS = {"pr_ms": (80, 400), "qrs_ms": (80, 240), "qtc_bazett_ms": (300, 600)}
_PAPER_FEWEST_BEATS = 7
_FEWEST_BEATS = 3
_WAVES = {
    "p_onset": "ECG_P_Onsets",
    "p_peak": "ECG_P_Peaks",
    "p_offset": "ECG_P_Offsets",
    "qrs_onset": "ECG_R_Onsets",
    "qrs_offset": "ECG_R_Offsets",
    "t_onset": "ECG_T_Onsets",
    "t_peak": "ECG_T_Peaks",
    "t_offset": "ECG_T_Offsets",
}


@contextmanager
def _neurokit() -> Iterator[Any]:
    try:
        import neurokit2
    except ImportError as error:
        raise MissingDependencyError(
            f"neurokit2 cannot be imported: {error}", hint="pip install 'neurokit2>=0.2.10'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield neurokit2


def neurokit_table(lead: npt.NDArray[np.float32], rate: float) -> BeatTable:
    """Beats of one lead (samples,) by neurokit2's ``prominence`` method (Emrich et al. 2024)."""
    peaks, waves, failure = _delineated(lead, rate, "prominence")
    if failure:
        return BeatTable(dict.fromkeys(FIDUCIALS, np.empty(0)), rate, np.empty(0), [failure])
    points = {name: _column(waves, key, len(peaks)) for name, key in _WAVES.items()}
    points["r_peak"] = peaks
    rr = np.concatenate(([np.nan], np.diff(peaks))) * 1000.0 / rate
    notes = [] if np.isfinite(points["p_onset"]).any() else ["no PR: no P wave was found"]
    return BeatTable(points, rate, rr, notes)


def paper_values(
    lead: npt.NDArray[np.float32], rate: float
) -> tuple[dict[str, float | None], list[str], int, BeatTable | None]:
    """The published agent's values of a lead, notes on what is missing, beats and their table."""
    peaks, waves, failure = _delineated(lead, rate, "dwt")
    if failure or len(peaks) < _PAPER_FEWEST_BEATS:
        few = f"{len(peaks)} beats were found, the paper's method needs {_PAPER_FEWEST_BEATS}"
        return {}, [failure or few], len(peaks), None
    columns = {name: _column(waves, key, len(peaks)) for name, key in _WAVES.items()}
    q_peak, s_peak = (_column(waves, f"ECG_{wave}_Peaks", len(peaks)) for wave in "QS")
    to_ms = 1000.0 / rate
    rr = np.diff(peaks) * to_ms
    qt = (columns["t_offset"] - q_peak) * to_ms
    single = {
        "pr_ms": (columns["qrs_onset"] - columns["p_onset"]) * to_ms,
        "qrs_ms": (s_peak - q_peak) * to_ms,
        "qtc_bazett_ms": qt[: rr.size] / np.sqrt(rr / 1000.0),
    }
    values: dict[str, float | None] = {
        "rr_ms": float(np.median(rr)),
        "heart_rate_bpm": 60000.0 / float(np.median(rr)),
        "qt_ms": _median(qt),
        "p_duration_ms": _median((columns["p_offset"] - columns["p_onset"]) * to_ms),
    }
    notes = []
    for name, (low, high) in _PAPER_RANGES_MS.items():
        kept = single[name][(single[name] >= low) & (single[name] <= high)]
        values[name] = _median(kept)
        if values[name] is None:
            notes.append(f"no {name[:-3]}: no beat lies within {low} to {high} ms")
    points = columns | {"r_peak": peaks, "qrs_onset": q_peak, "qrs_offset": s_peak}
    rr_before = np.concatenate(([np.nan], rr))
    return values, notes, len(peaks), BeatTable(points, rate, rr_before)


def _delineated(
    lead: npt.NDArray[np.float32], rate: float, method: str
) -> tuple[npt.NDArray[np.float64], dict[str, Any], str]:
    """R peaks, neurokit2's waves, and why there are none where there are none."""
    filled = fill_gaps(lead)
    hz = round(rate)
    with _neurokit() as nk:
        try:
            clean = nk.ecg_clean(filled, sampling_rate=hz)
            _, info = nk.ecg_peaks(clean, sampling_rate=hz)
            peaks = np.asarray(info["ECG_R_Peaks"], dtype=np.float64)
            if len(peaks) < _FEWEST_BEATS:
                return peaks, {}, f"neurokit2 found {len(peaks)} beats, too few to delineate"
            whole = peaks.astype(int)
            _, waves = nk.ecg_delineate(clean, whole, sampling_rate=hz, method=method)
        except Exception as error:  # neurokit2 lets IndexError, ValueError and others through
            return np.empty(0), {}, f"neurokit2 failed: {type(error).__name__}: {error}"
    return peaks, waves, ""


def _column(waves: dict[str, Any], key: str, n_beats: int) -> npt.NDArray[np.float64]:
    column = np.asarray(waves.get(key, []), dtype=np.float64)[:n_beats]
    return np.pad(column, (0, n_beats - column.size), constant_values=np.nan)


def _median(values: npt.NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else None
