"""From the network's probabilities to the fiducial points of known beats."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.delineation.network import NETWORK_RATE_HZ, WAVES
from ecg_agent_ray.ecg.delineation.points import Delineation
from ecg_agent_ray.ecg.filters import fill_gaps, moving_average

__all__ = ["beat_boundaries", "delineate", "wave_stretches"]

Array = npt.NDArray[np.float64]

_HALF = 0.5
# a shorter dip below one half does not end a wave
_BRIDGED_S = 0.020
# a stretch counts as a wave from this summed probability on (a clear wave's duration)
_LEAST_S = {"p": 0.020, "qrs": 0.020, "t": 0.032}
_QRS_REACH_S = 0.10
_OVERLAP_S = 0.03
_LATEST_T_ONSET_S = 0.70
_LONGEST_PR_S = 0.45
# where a beat has several P candidates (blocked P waves), the one nearer to QRS wins near ties
_P_NEARNESS = 0.02
# a lead shows P waves if so many of its beats have one
_P_SHARE = 0.5
_PEAK_SMOOTHING_S = 0.012


def wave_stretches(probability: npt.NDArray[np.floating], least: float) -> Array:
    """Where ``probability`` (samples,) of one wave is over one half: rows of start, end, area.

    Start and end are where it crosses one half between two samples, in samples; the area is the sum
    inside. Stretches of an area below ``least`` samples are left out.
    """
    inside = np.concatenate(([0], probability > _HALF, [0]))
    edges = np.flatnonzero(np.diff(inside))
    starts, ends = edges[::2], edges[1::2]
    if starts.size == 0:
        return np.empty((0, 3))
    apart = np.flatnonzero(starts[1:] - ends[:-1] >= round(_BRIDGED_S * NETWORK_RATE_HZ))
    starts = starts[np.concatenate(([0], apart + 1))]
    ends = ends[np.concatenate((apart, [ends.size - 1]))]
    total = np.concatenate(([0.0], np.cumsum(probability, dtype=np.float64)))
    area = total[ends] - total[starts]
    first = _crossing(probability, starts, starts - 1)
    last = _crossing(probability, ends - 1, ends)
    return np.stack([first, last, area], axis=1)[area >= least]


def _crossing(
    probability: npt.NDArray[np.floating],
    inner: npt.NDArray[np.intp],
    outer: npt.NDArray[np.intp],
) -> Array:
    """Where between two neighbouring samples one half is crossed; the inner at a record's end."""
    beyond = (outer < 0) | (outer >= probability.size)
    outer = np.where(beyond, inner, outer)
    p_inner = probability[inner].astype(np.float64)
    p_outer = probability[outer].astype(np.float64)
    share = np.where(beyond, 0.0, (p_inner - _HALF) / np.maximum(p_inner - p_outer, 1e-9))
    return np.asarray(inner + (outer - inner) * share, dtype=np.float64)


def beat_boundaries(
    probabilities: npt.NDArray[np.floating], beats: npt.NDArray[np.floating]
) -> dict[str, Array]:
    """Onset and offset of P, QRS and T of each beat, NaN where the lead shows none.

    Parameters
    ----------
    probabilities : (4, samples) at 250 Hz, as of ``wave_probabilities``
    beats : (beats,), a place in each QRS, in samples at 250 Hz
    """
    n, rate = len(beats), NETWORK_RATE_HZ
    found = {
        name: wave_stretches(probabilities[WAVES.index(name)], least * rate)
        for name, least in _LEAST_S.items()
    }
    points = {f"{w}_{end}": np.full(n, np.nan) for w in found for end in ("onset", "offset")}
    _set(points, "qrs", [_nearest(found["qrs"], beat) for beat in beats])
    onset = np.where(np.isnan(points["qrs_onset"]), beats, points["qrs_onset"])
    offset = np.where(np.isnan(points["qrs_offset"]), beats, points["qrs_offset"])
    margin = _OVERLAP_S * rate
    following = np.append(onset[1:], float(probabilities.shape[-1]))
    t_rows = []
    for end, limit in zip(offset, following, strict=True):
        t = found["t"]
        latest = min(end + _LATEST_T_ONSET_S * rate, limit)
        t_rows.append(
            t[(t[:, 0] >= end - margin) & (t[:, 0] < latest) & (t[:, 1] <= limit + margin)]
        )
    _set(points, "t", [_largest(rows) for rows in t_rows])
    before = np.concatenate(([-margin], np.fmax(points["t_offset"], offset)[:-1]))
    p_rows = []
    for start, earliest in zip(onset, before, strict=True):
        p = found["p"]
        earliest = max(earliest - margin, start - _LONGEST_PR_S * rate)
        rows = p[(p[:, 0] >= earliest) & (p[:, 1] <= start + margin)]
        rows[:, 2] += _P_NEARNESS * rows[:, 0]
        p_rows.append(rows)
    _set(points, "p", [_largest(rows) for rows in p_rows])
    return points


def _set(points: dict[str, Array], wave: str, rows: list[Array]) -> None:
    for beat, row in enumerate(rows):
        if row.size:
            points[f"{wave}_onset"][beat], points[f"{wave}_offset"][beat] = row[:2]


def _nearest(stretches: Array, beat: float) -> Array:
    if len(stretches) == 0:
        return np.empty(0)
    distance = np.maximum(np.maximum(stretches[:, 0] - beat, beat - stretches[:, 1]), 0.0)
    best = np.lexsort((-stretches[:, 2], distance))[0]
    near = distance[best] <= _QRS_REACH_S * NETWORK_RATE_HZ
    return stretches[best] if near else np.empty(0)


def _largest(stretches: Array) -> Array:
    return stretches[np.argmax(stretches[:, 2])] if len(stretches) else np.empty(0)


def delineate(
    signal: npt.NDArray[np.floating],
    probabilities: npt.NDArray[np.floating],
    beats: npt.NDArray[np.intp],
    rate: float,
) -> Delineation:
    """Fiducials of ``beats`` by the network.

    Parameters
    ----------
    signal : (samples,) at ``rate`` Hz, for the places of the peaks
    probabilities : (4, samples) at 250 Hz, as of ``wave_probabilities``
    beats : (beats,) sample indices at ``rate`` Hz
    """
    ratio = rate / NETWORK_RATE_HZ
    boundaries = beat_boundaries(probabilities, np.asarray(beats) / ratio)
    points = {name: np.minimum(b * ratio, signal.size - 1) for name, b in boundaries.items()}
    smooth = moving_average(fill_gaps(signal), round(_PEAK_SMOOTHING_S * rate))
    for wave, peak in (("p", "p_peak"), ("qrs", "r_peak"), ("t", "t_peak")):
        pick = _tallest if wave == "qrs" else _furthest
        pairs = zip(points[f"{wave}_onset"], points[f"{wave}_offset"], strict=True)
        points[peak] = np.array([_peak(smooth, *pair, pick) for pair in pairs], dtype=np.float64)
    share = float(np.isfinite(points["p_onset"]).mean()) if len(beats) else 0.0
    return Delineation(points, p_present=share >= _P_SHARE)


def _peak(signal: Array, onset: float, offset: float, pick: Callable[[Array], int]) -> float:
    if not np.isfinite(onset):
        return float("nan")
    first = math.ceil(onset)
    inside = signal[first : max(math.floor(offset), first) + 1]
    return first + pick(inside) if inside.size else first


def _tallest(wave: Array) -> int:
    """The tallest upright deflection, or the deepest where that is more than 1.5 times as deep."""
    level = wave - wave[0]
    return int(level.argmin() if -level.min() > 1.5 * level.max() else level.argmax())


def _furthest(wave: Array) -> int:
    """Where the wave is furthest from the straight line between its ends."""
    line = np.arange(wave.size) * ((wave[-1] - wave[0]) / max(wave.size - 1, 1)) + wave[0]
    return int(np.abs(wave - line).argmax())
