"""A lead's fiducial points by classical signal processing.

Beats that look alike are averaged with their neighbours before waves are sought: noise falls with
the root of their number, and what is not locked to the QRS, such as fibrillatory waves, averages
out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.delineation.waves import PWave, QrsWave, p_waves, qrs_waves, t_waves
from ecg_agent_ray.ecg.filters import band, fill_gaps

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["FIDUCIALS", "WORKING_RATE_HZ", "Delineation", "delineate"]

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
_BEFORE_S, _AFTER_S = 0.50, 1.05
_ALIKE = 0.90
_NEIGHBOURS = 12
_ALIGN_S = 0.04
_SHORTEST_RR_S = 0.2
_LONGEST_QTC_S = 0.64
_LONGEST_PR_S = 0.42
_P_MARGIN_S = 0.05
# a P wave is there where single beats follow their average so well, and it is so high; in an
# irregular rhythm, where fibrillatory waves imitate P waves, both must be clearer
_P_CORRELATION, _P_SMALLEST_MV, _P_SHARE_OF_QRS = 0.80, 0.0065, 0.010
_IRREGULAR, _P_CORRELATION_IRREGULAR, _P_SMALLEST_IRREGULAR_MV = 0.12, 0.87, 0.03
_CHAOTIC, _P_CORRELATION_CHAOTIC = 0.25, 0.97


Wave = TypeVar("Wave", PWave, QrsWave)


@dataclass(frozen=True)
class Delineation:
    """Fiducials of one lead: ``points[name]`` are sample positions (float, at the working rate) of
    every beat, NaN where the beat has none. ``anchors`` are the beats as aligned with each other:
    the same place in each complex, so that their distances are the RR intervals."""

    points: dict[str, npt.NDArray[np.float64]]
    anchors: npt.NDArray[np.intp]
    rate: float
    p_present: bool
    p_evidence: float

    def milliseconds(self, start: str, end: str) -> npt.NDArray[np.float64]:
        return (self.points[end] - self.points[start]) * 1000.0 / self.rate


def delineate(
    signal: npt.NDArray[np.floating], beats: npt.NDArray[np.intp], rate: float
) -> Delineation:
    """Fiducials of ``beats`` (sample indices) in one lead (samples,) at ``rate`` Hz (about 500)."""
    clean = fill_gaps(signal)
    level = band(clean, rate, 0.5, None)
    qrs_signal, t_signal, p_signal = (band(level, rate, None, hz) for hz in (45.0, 16.0, 22.0))
    anchors = _align(qrs_signal, beats, rate)
    before, after = round(_BEFORE_S * rate), round(_AFTER_S * rate)
    raw_qrs = _cut(qrs_signal, anchors, before, after)
    weights = _likeness(raw_qrs, before, rate)
    qrs_rows = _averaged(raw_qrs, weights)
    qrs = qrs_waves(qrs_rows, before, rate)
    rr_next, rr_before = _intervals(anchors, rate)
    t_limit = qrs.onset + np.minimum(
        _LONGEST_QTC_S * np.sqrt(rr_next) * rate, (rr_next - 0.06) * rate
    ).astype(np.intp)
    t = t_waves(
        _averaged(_cut(t_signal, anchors, before, after), weights), qrs, t_limit, rr_next, rate
    )
    raw_p = _cut(p_signal, anchors, before, after)
    p_rows = _averaged(raw_p, weights)
    earliest = _earliest_p(t.offset, anchors, before, rr_before, rate)
    p = p_waves(p_rows, qrs, earliest, rate)
    common = _dominant(raw_qrs, before, rate)
    evidence = _p_evidence(
        raw_p[common], p_rows[common], _only(p, common), _only(qrs, common), rate
    )
    height = float(np.median(np.abs(p.height[common])))
    span = float(np.median(np.ptp(qrs_rows[common], axis=1)))
    present = _is_p(evidence, height, span, _irregularity(anchors, common))
    columns = {
        "p_onset": np.where(present, p.onset, -1),
        "p_peak": np.where(present, p.peak, -1),
        "p_offset": np.where(present, p.offset, -1),
        "qrs_onset": qrs.onset,
        "r_peak": qrs.peak,
        "qrs_offset": qrs.offset,
        "t_onset": t.onset,
        "t_peak": t.peak,
        "t_offset": t.offset,
    }
    points = {}
    for name, column in columns.items():
        position = np.where(column >= 0, column - before + anchors, np.nan)
        outside = (position < 0) | (position > signal.shape[-1] - 1)
        points[name] = np.where(outside, np.nan, position)
    return Delineation(points, anchors, rate, present, evidence)


def _align(
    signal: npt.NDArray[np.float64], beats: npt.NDArray[np.intp], rate: float
) -> npt.NDArray[np.intp]:
    """Shift each beat (by at most 40 ms) to where it best matches the typical beat."""
    half, reach = round(0.10 * rate), round(_ALIGN_S * rate)
    rows = _cut(signal, beats, half + reach, half + reach)
    rows = rows - rows.mean(axis=1, keepdims=True)
    shift = np.full(len(beats), reach)
    template = np.median(rows[:, reach:-reach], axis=0)
    for _ in range(2):
        windows = np.lib.stride_tricks.sliding_window_view(rows, template.size, axis=1)
        norms = np.sqrt(np.einsum("bsw,bsw->bs", windows, windows)) + 1e-9
        score = windows @ (template - template.mean()) / norms
        shift = np.argmax(score, axis=1)
        template = np.median(windows[np.arange(len(rows)), shift], axis=0)
    moved = np.clip(beats + shift - reach, 0, signal.size - 1)
    # two close beats must not slide onto one
    clash = np.concatenate(([False], np.diff(moved) < _SHORTEST_RR_S * rate))
    clash[:-1] |= clash[1:]
    return np.asarray(np.where(clash, beats, moved), dtype=np.intp)


def _cut(
    signal: npt.NDArray[np.float64], anchors: npt.NDArray[np.intp], before: int, after: int
) -> npt.NDArray[np.float64]:
    """Rows of ``before + after + 1`` samples around each anchor, ends held."""
    padded = np.pad(signal, (before, after), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, before + after + 1)
    return windows[anchors].copy()


def _shapes(rows: npt.NDArray[np.float64], anchor: int, rate: float) -> npt.NDArray[np.float64]:
    """The QRS of each row, centred and of length one, so that a product of two is a correlation."""
    shape = rows[:, anchor - round(0.12 * rate) : anchor + round(0.16 * rate)]
    shape = shape - shape.mean(axis=1, keepdims=True)
    return np.asarray(shape / (np.linalg.norm(shape, axis=1, keepdims=True) + 1e-9))


def _likeness(rows: npt.NDArray[np.float64], anchor: int, rate: float) -> csr_array:
    """Row-stochastic weights (beats, beats): each beat with up to 12 nearby ones of its shape."""
    shape = _shapes(rows, anchor, rate)
    from scipy.sparse import csr_array

    n = len(rows)
    reach = 2 * _NEIGHBOURS
    rows_of, columns_of, values = [], [], []
    for i in range(n):
        low, high = max(0, i - reach), min(n, i + reach + 1)
        alike = np.flatnonzero(shape[low:high] @ shape[i] >= _ALIKE) + low
        nearest = alike[np.argsort(np.abs(alike - i), kind="stable")[:_NEIGHBOURS]]
        nearest = nearest if nearest.size else np.array([i])
        rows_of += [i] * nearest.size
        columns_of += nearest.tolist()
        values += [1.0 / nearest.size] * nearest.size
    return csr_array((values, (rows_of, columns_of)), shape=(n, n))


def _only(wave: Wave, rows: npt.NDArray[np.bool_]) -> Wave:
    """The wave of these rows."""
    return replace(wave, **{f.name: getattr(wave, f.name)[rows] for f in fields(wave)})


def _averaged(rows: npt.NDArray[np.float64], weights: csr_array) -> npt.NDArray[np.float64]:
    averaged: npt.NDArray[np.float64] = weights @ (rows - np.median(rows, axis=1, keepdims=True))
    return averaged


def _intervals(
    anchors: npt.NDArray[np.intp], rate: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Seconds to the next beat and from the one before; the record's median at its ends."""
    rr = np.diff(anchors) / rate
    typical = float(np.median(rr)) if rr.size else 1.0
    following = np.append(rr, typical)
    preceding = np.insert(rr, 0, typical)
    return np.maximum(following, 0.25), np.maximum(preceding, 0.25)


def _earliest_p(
    t_offset: npt.NDArray[np.intp],
    anchors: npt.NDArray[np.intp],
    before: int,
    rr_before: npt.NDArray[np.float64],
    rate: float,
) -> npt.NDArray[np.intp]:
    """The column from which a beat's P wave is sought: behind the T wave before it."""
    earliest = before - np.minimum(_LONGEST_PR_S + 0.06, 0.62 * rr_before) * rate
    t_end = np.where(t_offset >= 0, t_offset - before + anchors, -(10**9))
    previous = np.concatenate(([-(10**9)], t_end[:-1])) - anchors + before
    return np.maximum(np.maximum(earliest, previous + round(0.01 * rate)), 0).astype(np.intp)


def _p_evidence(
    raw: npt.NDArray[np.float64],
    averaged: npt.NDArray[np.float64],
    p: PWave,
    qrs: QrsWave,
    rate: float,
) -> float:
    """How well single beats follow their average around its P wave: median correlation.

    The window runs from 50 ms before the P wave's onset to 50 ms behind its offset, at most to QRS;
    a straight line is taken off, so that the slope of a T wave or of the baseline is no likeness.
    """
    margin = round(_P_MARGIN_S * rate)
    columns = np.arange(raw.shape[1], dtype=np.float64)[np.newaxis]
    begin = np.maximum(p.onset - margin, 0)[:, None]
    end = np.minimum(p.offset + margin, qrs.onset)[:, None]
    inside = (columns >= begin) & (columns <= end) & (p.peak >= 0)[:, None]
    one, mean = _detrended(raw, columns, inside), _detrended(averaged, columns, inside)
    norm = np.linalg.norm(one, axis=1) * np.linalg.norm(mean, axis=1)
    seen = norm > 1e-9
    if not seen.any():
        return 0.0
    return float(np.median(np.sum(one[seen] * mean[seen], axis=1) / norm[seen]))


def _detrended(
    rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Each row less its least-squares line inside the mask, 0 outside."""
    count = np.maximum(inside.sum(axis=1, keepdims=True), 1)
    x = np.where(inside, columns - (columns * inside).sum(axis=1, keepdims=True) / count, 0.0)
    y = np.where(inside, rows - (rows * inside).sum(axis=1, keepdims=True) / count, 0.0)
    slope = (x * y).sum(axis=1, keepdims=True) / np.maximum(
        (x * x).sum(axis=1, keepdims=True), 1e-9
    )
    return np.asarray(np.where(inside, y - slope * x, 0.0), dtype=np.float64)


def _is_p(evidence: float, height: float, qrs_span: float, irregularity: float) -> bool:
    needed, smallest = _P_CORRELATION, max(_P_SMALLEST_MV, _P_SHARE_OF_QRS * qrs_span)
    if irregularity > _IRREGULAR:
        needed, smallest = _P_CORRELATION_IRREGULAR, max(smallest, _P_SMALLEST_IRREGULAR_MV)
    if irregularity > _CHAOTIC:
        needed = _P_CORRELATION_CHAOTIC
    return evidence >= needed and height >= smallest


def _dominant(rows: npt.NDArray[np.float64], anchor: int, rate: float) -> npt.NDArray[np.bool_]:
    """Beats of the commonest shape: those like the beat that most others are like."""
    shape = _shapes(rows, anchor, rate)
    some = shape[:: max(1, len(shape) // 200)]
    like = some @ shape.T >= _ALIKE
    return np.asarray(like[np.argmax(like.sum(axis=1))])


def _irregularity(anchors: npt.NDArray[np.intp], dominant: npt.NDArray[np.bool_]) -> float:
    """Median change of RR from beat to beat as a share of the median RR.

    Only intervals between two beats of the common shape count, so that premature beats and the
    pauses behind them do not make a regular rhythm irregular.
    """
    rr = np.diff(anchors)[dominant[1:] & dominant[:-1]]
    if rr.size < 3:
        return 0.0
    return float(np.median(np.abs(np.diff(rr))) / np.median(rr))
