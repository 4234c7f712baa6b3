"""From the network's probabilities to the fiducial points of known beats."""

from __future__ import annotations

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
_BLOCK = 256


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
    rate = NETWORK_RATE_HZ
    found = {
        name: wave_stretches(probabilities[WAVES.index(name)], least * rate)
        for name, least in _LEAST_S.items()
    }
    places = np.asarray(beats, dtype=np.float64)
    points = _nearest_qrs(found["qrs"], places)
    onset = np.where(np.isnan(points["qrs_onset"]), places, points["qrs_onset"])
    offset = np.where(np.isnan(points["qrs_offset"]), places, points["qrs_offset"])
    margin = _OVERLAP_S * rate
    following = np.append(onset[1:], float(probabilities.shape[-1]))
    latest = np.minimum(offset + _LATEST_T_ONSET_S * rate, following)
    area = found["t"][:, 2]
    points |= _largest("t", found["t"], area, offset - margin, latest, following + margin)
    before = np.concatenate(([-margin], np.fmax(points["t_offset"], offset)[:-1]))
    earliest = np.maximum(before - margin, onset - _LONGEST_PR_S * rate)
    score = found["p"][:, 2] + _P_NEARNESS * found["p"][:, 0]
    return points | _largest("p", found["p"], score, earliest, onset + margin, onset + margin)


def _nearest_qrs(stretches: Array, beats: Array) -> dict[str, Array]:
    """The stretch that each beat lies in or next to; of two as near, the larger."""
    bounds = np.full((len(beats), 2), np.nan)
    if len(stretches):
        begin, end, area = stretches.T
        last = np.clip(np.searchsorted(begin, beats, side="right") - 1, 0, None)
        sides = np.stack([last, np.minimum(last + 1, len(stretches) - 1)])
        distance = np.maximum(np.maximum(begin[sides] - beats, beats - end[sides]), 0.0)
        earlier, later = distance
        second = (later < earlier) | ((later == earlier) & (area[sides[1]] > area[sides[0]]))
        chosen = np.where(second, sides[1], sides[0])
        near = np.asarray(distance.min(axis=0) <= _QRS_REACH_S * NETWORK_RATE_HZ)
        bounds[near] = stretches[chosen[near], :2]
    return {"qrs_onset": bounds[:, 0], "qrs_offset": bounds[:, 1]}


def _largest(
    wave: str, stretches: Array, score: Array, first: Array, last: Array, until: Array
) -> dict[str, Array]:
    """Onset and offset of each beat's stretch of the highest score, among those that begin between
    ``first`` and ``last`` and end by ``until``; NaN where there is none."""
    bounds = np.full((len(first), 2), np.nan)
    begin, end = stretches[:, :1].T, stretches[:, 1:2].T
    # in blocks, since all beats times all stretches of half an hour would fill the memory
    for start in range(0, len(first) if len(stretches) else 0, _BLOCK):
        block = slice(start, start + _BLOCK)
        allowed = np.asarray(begin >= first[block, None])
        allowed &= (begin < last[block, None]) & (end <= until[block, None])
        best = np.where(allowed, score, -np.inf).argmax(axis=1)
        some = np.any(allowed, axis=1, keepdims=True)
        bounds[block] = np.where(some, stretches[best, :2], np.nan)
    return {f"{wave}_onset": bounds[:, 0], f"{wave}_offset": bounds[:, 1]}


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
        height = _above_onset if wave == "qrs" else _above_chord
        points[peak] = _peaks(smooth, points[f"{wave}_onset"], points[f"{wave}_offset"], height)
    share = float(np.isfinite(points["p_onset"]).mean()) if len(beats) else 0.0
    return Delineation(points, p_present=share >= _P_SHARE)


def _peaks(
    signal: Array,
    onset: Array,
    offset: Array,
    height: Callable[[Array, npt.NDArray[np.intp]], Array],
) -> Array:
    """Where between ``onset`` and ``offset`` of each beat ``height`` is greatest; NaN for NaN."""
    seen = np.isfinite(onset)
    result = np.full(len(onset), np.nan)
    if not seen.any():
        return result
    first = np.ceil(onset[seen]).astype(np.intp)
    last = np.maximum(np.floor(offset[seen]).astype(np.intp), first).clip(max=signal.size - 1)
    columns = np.arange((last - first).max() + 1)
    waves = signal[np.minimum(first[:, None] + columns, last[:, None])]
    result[seen] = first + height(waves, last - first).argmax(axis=1)
    return result


def _above_onset(waves: Array, ends: npt.NDArray[np.intp]) -> Array:
    """Rows upright, or turned over where the deepest is more than 1.5 times the tallest."""
    level = waves - waves[:, :1]
    deep = -level.min(axis=1) > 1.5 * level.max(axis=1)
    return np.where(deep[:, None], -level, level)


def _above_chord(waves: Array, ends: npt.NDArray[np.intp]) -> Array:
    """Distance from the straight line between the first column and the last, ``ends``."""
    first, last = waves[:, :1], waves[:, -1:]
    share = np.minimum(np.arange(waves.shape[1]) / np.maximum(ends, 1)[:, None], 1.0)
    return np.asarray(np.abs(waves - first - (last - first) * share))
