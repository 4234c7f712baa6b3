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

from ecg_agent_ray.ecg.filters import moving_average

__all__ = ["PWave", "QrsWave", "TWave", "p_waves", "qrs_waves", "t_waves"]

FloatRows = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

# shares of the steepest slope, and how long the slope must stay below them
_QRS_ONSET_SHARE, _QRS_OFFSET_SHARE = 0.075, 0.10
_QUIET_ONSET_S, _QUIET_OFFSET_S = 0.012, 0.014
_QRS_SEARCH_S = (0.14, 0.17)
_SLOPE_SMOOTHING_S = 0.008


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
    noise = np.percentile(slope, 20, axis=1, keepdims=True)
    high = slope > 0.3 * steepest
    columns = np.arange(rows.shape[1])
    inside = (columns >= first) & (columns <= last)
    start = np.argmax(high & inside, axis=1)
    end = rows.shape[1] - 1 - np.argmax((high & inside)[:, ::-1], axis=1)
    quiet = slope < np.maximum(_QRS_ONSET_SHARE * steepest, 1.5 * noise)
    onset = _last_quiet(quiet, start, first, round(_QUIET_ONSET_S * rate))
    quiet = slope < np.maximum(_QRS_OFFSET_SHARE * steepest, 1.5 * noise)
    flipped = _last_quiet(
        quiet[:, ::-1],
        rows.shape[1] - 1 - end,
        rows.shape[1] - 1 - min(last + round(0.06 * rate), rows.shape[1] - 1),
        round(_QUIET_OFFSET_S * rate),
    )
    offset = rows.shape[1] - 1 - flipped
    return QrsWave(onset, _r_peak(rows, onset, offset), offset)


def _last_quiet(quiet: npt.NDArray[np.bool_], start: Index, first: int, run: int) -> Index:
    """The last column before ``start`` that ends ``run`` quiet ones, else ``first``."""
    run = max(run, 1)
    total = np.cumsum(quiet, axis=1)
    total = np.concatenate([np.zeros((len(quiet), 1), dtype=total.dtype), total], axis=1)
    columns = np.arange(quiet.shape[1])
    low = np.maximum(columns + 1 - run, 0)
    settled = np.asarray((total[:, columns + 1] - total[:, low]) >= run)
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


def t_waves(rows: FloatRows, qrs: QrsWave, limit: Index, rate: float) -> TWave:
    """T of each row between the end of QRS and ``limit`` (a column; where T must have ended).

    ``rows`` keep up to about 15 Hz. The peak is the largest deflection from the line that joins the
    ends of the window.
    """
    n, width = rows.shape
    columns = np.arange(width)[np.newaxis]
    start = np.minimum(qrs.offset + round(0.05 * rate), width - 1)
    stop = np.clip(limit, 0, width - 1)
    usable = stop - start > round(0.08 * rate)
    inside = (columns >= start[:, None]) & (columns <= stop[:, None])
    index = np.arange(n)
    ends = rows[index, stop]
    line = ends[:, None]
    level = np.where(inside, rows - line, 0.0)
    peak = _dominant(level, qrs.offset, stop, rate)
    sign = np.sign(level[index, peak])
    upright = (rows - line) * sign[:, None]
    offset = _trapezium(upright, peak, stop, rate)
    back = _trapezium(upright[:, ::-1], width - 1 - peak, width - 1 - qrs.offset, rate)
    onset = np.maximum(width - 1 - back, qrs.offset)
    height = np.abs(level[index, peak])
    usable &= (height > 0) & (peak > start) & (offset > peak)
    return TWave(*(np.where(usable, found, -1) for found in (onset, peak, offset)))


def _dominant(level: FloatRows, start: Index, stop: Index, rate: float) -> Index:
    """The turning point of greatest prominence-like size: interior extremes before window edges."""
    size = np.abs(level)
    turning = np.zeros(size.shape, dtype=bool)
    turning[:, 1:-1] = (size[:, 1:-1] >= size[:, :-2]) & (size[:, 1:-1] > size[:, 2:])
    turning &= size > 0
    candidates = np.where(turning, size, 0.0)
    # a late hump (U wave, next P) must be clearly larger than an earlier one to be called T
    span = np.maximum(stop - start, 1)[:, None]
    position = (np.arange(size.shape[1])[np.newaxis] - start[:, None]) / span
    weight = np.where(position > 0.75, 0.5, 1.0)
    return np.asarray(np.argmax(candidates * weight, axis=1), dtype=np.intp)


def _trapezium(upright: FloatRows, peak: Index, stop: Index, rate: float) -> Index:
    """Where a wave that peaks at ``peak`` ends, at latest ``stop``.

    From the steepest descent (m) to a reference (r) behind it, the end is the column i whose
    trapezium (y_m - y_i) (2 r - i - m) / 2 is largest.
    """
    n, width = upright.shape
    columns = np.arange(width)[np.newaxis]
    index = np.arange(n)
    falling = -np.gradient(upright, axis=1)
    reach = np.minimum(stop, peak + round(0.20 * rate))
    behind = (columns > peak[:, None]) & (columns <= reach[:, None])
    steepest = np.argmax(np.where(behind, falling, -np.inf), axis=1)
    reference = np.minimum(stop, steepest + round(0.20 * rate))
    area = (upright[index, steepest][:, None] - upright) * (
        2 * reference[:, None] - columns - steepest[:, None]
    )
    area = np.where((columns >= steepest[:, None]) & (columns <= reference[:, None]), area, -np.inf)
    return np.asarray(np.argmax(area, axis=1), dtype=np.intp)


def p_waves(rows: FloatRows, qrs: QrsWave, earliest: Index, rate: float) -> PWave:
    """P of each row between ``earliest`` (a column) and QRS onset; -1 where there is no room.

    ``rows`` keep up to about 20 Hz. Whether what was found is a P wave is for the caller, who sees
    all the beats.
    """
    n, width = rows.shape
    columns = np.arange(width)[np.newaxis]
    index = np.arange(n)
    stop = np.maximum(qrs.onset - round(0.008 * rate), 0)
    start = np.clip(earliest, 0, width - 1)
    usable = stop - start > round(0.06 * rate)
    inside = (columns >= start[:, None]) & (columns <= stop[:, None])
    y0, y1 = rows[index, start], rows[index, stop]
    share = (columns - start[:, None]) / np.maximum(stop - start, 1)[:, None]
    level = np.where(inside, rows - (y0[:, None] * (1 - share) + y1[:, None] * share), 0.0)
    turning = np.zeros(level.shape, dtype=bool)
    size = np.abs(level)
    turning[:, 1:-1] = (size[:, 1:-1] >= size[:, :-2]) & (size[:, 1:-1] > size[:, 2:])
    # upright P waves are the rule: an inverted one must be clearly larger
    candidates = np.where(turning & inside, np.where(level > 0, size, 0.6 * size), 0.0)
    peak = np.argmax(candidates, axis=1)
    height = level[index, peak]
    usable &= candidates[index, peak] > 0
    upright = rows * np.sign(height)[:, None]
    reach = round(0.11 * rate)
    offset = _trapezium_short(upright, peak, np.minimum(stop, peak + reach), rate)
    back = _trapezium_short(
        upright[:, ::-1],
        width - 1 - peak,
        np.minimum(width - 1 - start, width - 1 - peak + reach),
        rate,
    )
    onset = width - 1 - back
    onset, peak, offset = (np.where(usable, found, -1) for found in (onset, peak, offset))
    return PWave(onset, peak, offset, np.where(usable, height, 0.0))


def _trapezium_short(upright: FloatRows, peak: Index, stop: Index, rate: float) -> Index:
    """`_trapezium` over the narrower reach of a P wave."""
    n, width = upright.shape
    columns = np.arange(width)[np.newaxis]
    index = np.arange(n)
    falling = -np.gradient(upright, axis=1)
    reach = np.minimum(stop, peak + round(0.07 * rate))
    behind = (columns > peak[:, None]) & (columns <= reach[:, None])
    steepest = np.argmax(np.where(behind, falling, -np.inf), axis=1)
    area = (upright[index, steepest][:, None] - upright) * (
        2 * stop[:, None] - columns - steepest[:, None]
    )
    area = np.where((columns >= steepest[:, None]) & (columns <= stop[:, None]), area, -np.inf)
    return np.asarray(np.argmax(area, axis=1), dtype=np.intp)
