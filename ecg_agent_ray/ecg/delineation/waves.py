"""Onsets, peaks and offsets of P, QRS and T, for all beats of a lead at once.

Every function takes beats as rows of a matrix cut around the beat's anchor, so that a recording is
a handful of array operations. Indices are columns of that matrix; -1 stands for "there is none".
Boundaries of QRS are where the slope falls to a share of the complex's own steepest slope; those
of P and T come from the trapezium method (Vazquez-Seisdedos et al. 2011, BioMedical Engineering
OnLine 10:43), which needs no threshold and bears noise well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.filters import moving_average, quantile

__all__ = ["PWave", "QrsWave", "TWave", "p_waves", "qrs_waves", "t_waves"]

FloatRows = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

# shares of the steepest slope, and how long the slope must stay below them
_QRS_ONSET_SHARES, _QRS_OFFSET_SHARES = (0.03, 0.07), (0.055, 0.11)
_QRS_CREEP_S = 0.022
_QUIET_ONSET_S, _QUIET_OFFSET_S = 0.012, 0.014
_QRS_SEARCH_S = (0.14, 0.17)
_SLOPE_SMOOTHING_S = 0.014
# T peaks about 0.32 s / sqrt(RR) after QRS onset; P peaks about 0.11 s before it
_T_PLACE, _T_SPREAD, _T_SCALE_S = 0.32, 0.10, 0.09
_P_PLACE_S, _P_SPREAD_S, _P_SCALE_S = 0.11, 0.11, 0.045
_SLOWEST_RR_S = 1.5
_T_REACH_S, _T_REFERENCE_S = 0.15, 0.10
_P_REACH_S, _P_SLOPE_S, _P_OFFSET_REACH_S = 0.068, 0.06, 0.06


@dataclass(frozen=True)
class QrsWave:
    onset: Index
    peak: Index
    offset: Index


@dataclass(frozen=True)
class TWave:
    onset: Index
    peak: Index
    offset: Index


@dataclass(frozen=True)
class PWave:
    onset: Index
    peak: Index
    offset: Index
    height: FloatRows


def qrs_waves(rows: FloatRows, anchor: int, rate: float) -> QrsWave:
    """QRS of each row; ``rows`` keep up to about 50 Hz, ``anchor`` is the column of the beat."""
    slope = moving_average(np.abs(np.gradient(rows, axis=1)), round(_SLOPE_SMOOTHING_S * rate))
    before, after = (round(s * rate) for s in _QRS_SEARCH_S)
    first, last = max(anchor - before, 1), min(anchor + after, rows.shape[1] - 2)
    core = slice(max(anchor - before // 2, 0), anchor + after // 2)
    steepest = slope[:, core].max(axis=1, keepdims=True)
    noise = quantile(slope, 0.2)
    high = slope > 0.3 * steepest
    columns = np.arange(rows.shape[1])
    inside = (columns >= first) & (columns <= last)
    start = np.argmax(high & inside, axis=1)
    end = rows.shape[1] - 1 - np.argmax((high & inside)[:, ::-1], axis=1)
    onsets, offsets = [], []
    for onset_share, offset_share in zip(_QRS_ONSET_SHARES, _QRS_OFFSET_SHARES, strict=True):
        quiet = slope < np.maximum(onset_share * steepest, 1.5 * noise)
        onsets.append(_last_quiet(quiet, start, first, round(_QUIET_ONSET_S * rate)))
        quiet = slope < np.maximum(offset_share * steepest, 1.5 * noise)
        turned = rows.shape[1] - 1
        flipped = _last_quiet(
            quiet[:, ::-1],
            turned - end,
            turned - min(last + round(0.06 * rate), turned),
            round(_QUIET_OFFSET_S * rate),
        )
        offsets.append(turned - flipped)
    # where the finer share reaches much further out, it followed the slope of P, ST or T
    limit = round(_QRS_CREEP_S * rate)
    onset = np.where(onsets[1] - onsets[0] > limit, onsets[1], onsets[0])
    offset = np.where(offsets[0] - offsets[1] > limit, offsets[1], offsets[0])
    return QrsWave(onset, _r_peak(rows, onset, offset), offset)


def _last_quiet(quiet: npt.NDArray[np.bool_], start: Index, first: int, run: int) -> Index:
    """The last column before ``start`` that ends ``run`` quiet ones, else ``first``."""
    run = max(run, 1)
    total: npt.NDArray[np.intp] = np.cumsum(quiet, axis=1, dtype=np.intp)
    total[:, run:] -= total[:, :-run].copy()
    settled = np.asarray(total >= run)
    columns = np.arange(quiet.shape[1])
    settled &= (columns >= first) & (columns[np.newaxis] <= start[:, np.newaxis])
    found = quiet.shape[1] - 1 - np.argmax(settled[:, ::-1], axis=1)
    return np.asarray(np.where(settled.any(axis=1), found, first), dtype=np.intp)


def _r_peak(rows: FloatRows, onset: Index, offset: Index) -> Index:
    """The tallest upright deflection, or the deepest where that is more than 1.5 times as deep."""
    columns = np.arange(rows.shape[1])
    inside = (columns >= onset[:, None]) & (columns <= offset[:, None])
    base = np.take_along_axis(rows, onset[:, None], axis=1)
    level = np.where(inside, rows - base, 0.0)
    top, bottom = level.argmax(axis=1), level.argmin(axis=1)
    index = np.arange(len(rows))
    deep = -level[index, bottom] > 1.5 * level[index, top]
    return np.asarray(np.where(deep, bottom, top), dtype=np.intp)


def t_waves(
    rows: FloatRows, qrs: QrsWave, limit: Index, rr_s: npt.NDArray[np.float64], rate: float
) -> TWave:
    """T of each row between the end of QRS and ``limit`` (a column; where T must have ended).

    ``rows`` keep up to about 16 Hz, ``rr_s`` is the interval to the next beat in seconds.
    """
    width = rows.shape[1]
    start = np.minimum(qrs.offset + round(0.04 * rate), width - 1)
    stop = np.clip(limit, 0, width - 1)
    place = (np.arange(width)[np.newaxis] - qrs.onset[:, None]) / rate
    # below 40 beats a minute QT grows no longer as the root of RR says
    pace = np.sqrt(np.minimum(rr_s, _SLOWEST_RR_S))
    prior = _bell(place / pace[:, None], _T_PLACE, _T_SPREAD)
    scale = np.clip(pace, 0.6, 1.2) * _T_SCALE_S * rate
    peak, size = _bump(rows, start, stop, scale, prior)
    upright = rows * np.sign(size)[:, None]
    end = np.minimum(stop, peak + round(_T_REACH_S * rate))
    offset = _trapezium(upright, peak, end, stop, round(_T_REFERENCE_S * rate))
    begin = np.maximum(start, peak - round(_T_REACH_S * rate))
    onset = (
        width
        - 1
        - _trapezium(
            upright[:, ::-1],
            width - 1 - peak,
            width - 1 - begin,
            width - 1 - start,
            round(_T_REFERENCE_S * rate),
        )
    )
    usable = (stop - start > round(0.08 * rate)) & (size != 0) & (offset > peak)
    onset, peak, offset = (np.where(usable, found, -1) for found in (onset, peak, offset))
    return TWave(onset, peak, offset)


def _bell(values: FloatRows, centre: float, spread: float) -> FloatRows:
    return np.asarray(np.exp(-0.5 * ((values - centre) / spread) ** 2), dtype=np.float64)


def _bump(
    rows: FloatRows, start: Index, stop: Index, scale: npt.NDArray[np.float64], prior: FloatRows
) -> tuple[Index, npt.NDArray[np.float64]]:
    """The most wave-like place of each window: column and signed size.

    Size is the height above the chord between the points ``scale`` samples to either side, which a
    sloping or displaced ST segment does not raise; ``prior`` weighs the places.
    """
    n, width = rows.shape
    columns = np.arange(width)[np.newaxis]
    reach = np.round(scale).astype(np.intp)[:, None]
    left = np.clip(columns - reach, start[:, None], None).clip(0, width - 1)
    right = np.clip(columns + reach, None, stop[:, None]).clip(0, width - 1)
    y_left = np.take_along_axis(rows, np.broadcast_to(left, rows.shape), axis=1)
    y_right = np.take_along_axis(rows, np.broadcast_to(right, rows.shape), axis=1)
    share = (columns - left) / np.maximum(right - left, 1)
    height = rows - (y_left * (1 - share) + y_right * share)
    inside = (columns > start[:, None]) & (columns < stop[:, None])
    score = np.where(inside, np.abs(height) * prior, 0.0)
    index = np.arange(n)
    place = np.argmax(score, axis=1)
    size = np.where(score[index, place] > 0, height[index, place], 0.0)
    # the wave's own summit lies close by
    near = np.abs(columns - place[:, None]) <= reach // 2
    upright = np.where(near & inside, rows * np.sign(size)[:, None], -np.inf)
    summit = np.where(np.isfinite(upright).any(axis=1), np.argmax(upright, axis=1), place)
    return np.asarray(summit, dtype=np.intp), size


def _trapezium(
    upright: FloatRows, peak: Index, slope_stop: Index, stop: Index, reach: int
) -> Index:
    """Where a wave that peaks at ``peak`` ends, at latest ``stop``.

    From the steepest descent (m), sought up to ``slope_stop``, to a reference (r) ``reach`` columns
    behind it, the end is the column i whose trapezium (y_m - y_i) (2 r - i - m) / 2 is largest.
    """
    n, width = upright.shape
    columns = np.arange(width)[np.newaxis]
    index = np.arange(n)
    falling = -np.gradient(upright, axis=1)
    behind = (columns > peak[:, None]) & (columns <= slope_stop[:, None])
    steepest = np.argmax(np.where(behind, falling, -np.inf), axis=1)
    reference = np.minimum(stop, steepest + reach)
    area = (upright[index, steepest][:, None] - upright) * (
        2 * reference[:, None] - columns - steepest[:, None]
    )
    within = (columns >= steepest[:, None]) & (columns <= reference[:, None])
    return np.asarray(np.argmax(np.where(within, area, -np.inf), axis=1), dtype=np.intp)


def p_waves(rows: FloatRows, qrs: QrsWave, earliest: Index, rate: float) -> PWave:
    """P of each row between ``earliest`` (a column) and QRS onset; -1 where there is no room.

    ``rows`` keep up to about 22 Hz. Whether what was found is a P wave is for the caller, who sees
    all the beats.
    """
    width = rows.shape[1]
    stop = np.maximum(qrs.onset - round(0.004 * rate), 0)
    start = np.clip(earliest, 0, width - 1)
    ahead = (qrs.onset[:, None] - np.arange(width)[np.newaxis]) / rate
    prior = _bell(ahead, _P_PLACE_S, _P_SPREAD_S)
    scale = np.full(len(rows), _P_SCALE_S * rate)
    peak, size = _bump(rows, start, stop, scale, prior)
    upright = rows * np.sign(size)[:, None]
    slope_reach, reach = round(_P_SLOPE_S * rate), round(_P_REACH_S * rate)
    offset = _trapezium(
        upright, peak, np.minimum(stop, peak + slope_reach), stop, round(_P_OFFSET_REACH_S * rate)
    )
    onset = (
        width
        - 1
        - _trapezium(
            upright[:, ::-1],
            width - 1 - peak,
            width - 1 - np.maximum(start, peak - slope_reach),
            width - 1 - start,
            reach,
        )
    )
    usable = (stop - start > round(0.06 * rate)) & (size != 0)
    onset, peak, offset = (np.where(usable, found, -1) for found in (onset, peak, offset))
    return PWave(onset, peak, offset, np.where(usable, size, 0.0))
