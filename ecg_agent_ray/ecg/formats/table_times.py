"""Times of a table's rows (elapsed, of the day, ISO 8601, since an epoch) and their rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Timing", "seconds_of_texts", "timing_of", "unit_by_step"]

_CLOCK = re.compile(
    r"(?P<first>\d{1,4}):(?P<second>\d{2})(?::(?P<third>\d{2}))?(?:[.,](?P<fraction>\d+))?"
    r"\s*(?P<half>[AaPp]\.?[Mm])?"
)
_DATE = re.compile(r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})")
_DAY_S, _HALF_DAY_S = 86_400.0, 43_200.0
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0}
# between these a step fits one unit only, minutes included
_FASTEST_HZ, _SLOWEST_HZ = 2_900.0, 50.0
_COARSEST_S = 0.1
_FEWEST_ROWS = 3
_MOST_MISSING = 0.1


@dataclass(frozen=True)
class Timing:
    """``rate`` in Hz; ``rows`` is where each row belongs, None where none is missing."""

    rate: float
    rows: npt.NDArray[np.intp] | None


def seconds_of_texts(cells: Sequence[str]) -> npt.NDArray[np.float64]:
    """Seconds of clock times and dates with times; NaN for cells that are neither.

    Of a date only that it is another day counts, so that day and month need not be told apart.
    """
    times = np.full(len(cells), np.nan)
    days, before = 0.0, -1.0
    for i, cell in enumerate(cells):
        clock = _CLOCK.search(cell)
        if clock is None:
            continue
        seconds = _clock_seconds(clock)
        if seconds + days < before - _HALF_DAY_S:
            days += _DAY_S
        times[i] = before = seconds + days
    return times


def _clock_seconds(match: re.Match[str]) -> float:
    fraction = float(f"0.{match['fraction'] or 0}")
    first, second = int(match["first"]), int(match["second"])
    if match["third"] is None:  # minutes and seconds
        return first * 60 + second + fraction
    if match["half"]:
        first = first % 12 + (12 if match["half"][0] in "pP" else 0)
    return first * 3600 + second * 60 + int(match["third"]) + fraction


def unit_by_step(times: npt.NDArray[np.float64]) -> str | None:
    """The unit in which these times give a rate that recorders have; None where a step of 1 could
    count milliseconds as well as rows, or no unit fits. For one step at most one unit fits."""
    finite = times[np.isfinite(times)]
    if finite.size < _FEWEST_ROWS:
        return None
    step = float(np.mean(np.diff(finite)))
    if not step > 0 or abs(step - 1) < 1e-9:
        return None
    for unit, scale in SECONDS.items():
        if _SLOWEST_HZ <= 1 / (step * scale) <= _FASTEST_HZ:
            return unit
    return None


def timing_of(times: npt.NDArray[np.float64]) -> Timing | None:
    """The rate at which these times (seconds) step, and where rows are missing.

    Rounded times are evened out over the whole column. None where they run backwards, are rounded
    too coarsely (a tenth of a second), or are uneven.
    """
    there = np.isfinite(times)
    if times.size < _FEWEST_ROWS or there.mean() < 1 - _MOST_MISSING:
        return None
    if not there.all():  # a row that could not be read has its place all the same
        rows_read = np.flatnonzero(there)
        times = np.interp(np.arange(times.size), rows_read, times[rows_read])
    steps = np.diff(times)
    usual = float(np.median(steps))
    if np.any(steps < 0) or times[-1] <= times[0]:
        return None
    low, high = np.percentile(steps, (2, 98)) if steps.size > 100 else (steps.min(), usual)
    rounding = max(float(high - low), 0.0)
    if rounding > _COARSEST_S:
        return None
    is_break = steps > 1.75 * usual + 1.5 * rounding if usual > 0 else np.zeros(steps.size, bool)
    breaks = np.flatnonzero(is_break)
    if len(breaks) > 0.1 * steps.size:
        return None
    starts = np.concatenate(([0], breaks + 1))
    ends = np.concatenate((starts[1:], [times.size]))
    inside = int(np.sum(ends - starts - 1))
    span = float(np.sum(times[ends - 1] - times[starts]))
    if inside < 2 or not span > 0:
        return None
    rate = _snapped(inside / span, 2 * rounding / span)
    offsets = np.round((times[starts] - times[0]) * rate).astype(np.intp)
    rows = np.concatenate(
        [
            first + np.arange(end - start)
            for first, start, end in zip(offsets, starts, ends, strict=True)
        ]
    )
    away = np.abs(times - times[0] - rows / rate)
    if np.max(away) > max(0.75 / rate, 1.5 * rounding) or np.any(np.diff(rows) < 1):
        return None
    return Timing(rate, rows if len(breaks) else None)


def _snapped(rate: float, error: float) -> float:
    """To a whole number of Hz where that is within what the rounding of times leaves open."""
    return float(round(rate)) if abs(rate - round(rate)) <= rate * max(error, 2e-6) else rate
