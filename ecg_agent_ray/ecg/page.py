"""Where everything lies on a page of ECG paper, in millimetres: strips, labels, the page itself.

Rows stand as close as their traces allow and never so close that two meet, whatever the voltage; so
no amplitude is cut below `LIMIT_MM`. Zero lines lie on the grid's 5 mm lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.leads import STANDARD_LEADS
from ecg_agent_ray.ecg.recording import Recording
from ecg_agent_ray.errors import InputError

__all__ = [
    "LEFT_MM",
    "LIMIT_MM",
    "MARGIN_MM",
    "MM_PER_MV",
    "MM_PER_S",
    "PULSE_X_MM",
    "ROW_MM",
    "Layout",
    "Page",
    "Strip",
    "lay_out",
]

Layout = Literal["auto", "3x4", "12x1", "rows"]

MM_PER_S, MM_PER_MV = 25.0, 10.0
MARGIN_MM, LEFT_MM = 6.0, 15.0
PULSE_X_MM = (7.0, 14.0)
LIMIT_MM = 50.0
"""A trace is cut at this height above and below its zero line: 5 mV."""
ROW_MM = {"3x4": 30.0, "12x1": 20.0, "rows": 35.0}
_RIGHT_MM, _HEADER_MM, _FOOTER_MM = 5.0, 10.0, 7.0
_STRIP_S, _WIDTH_MM = 10.0, 270
# with less signal than this a column of a 3x4 page would stay empty
_LEAST_3X4_S = 9.5
_MAX_ROWS, _MAX_LEADS = 8, 24
_GRID_3X4 = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
_LABEL_MM, _CHARACTER_MM, _CLEARANCE_MM = 3.0, 2.2, 1.0
_LABEL_SHIFTS_MM = range(1, 16)


@dataclass(frozen=True)
class Strip:
    """A stretch of one lead: its place on the page (mm), its time (s) and its trace.

    ``trace`` is in mm above the zero line, NaN in gaps; ``caption`` is the lead's name, with the
    time where a row goes on with the row above, and ``label`` the caption's lower left corner.
    """

    lead: str
    caption: str
    x_mm: float
    start_s: float
    end_s: float
    trace: npt.NDArray[np.float64]
    first_in_row: bool
    y_mm: float = 0.0
    label: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Page:
    width_mm: float
    height_mm: float
    row_mm: float
    start_s: float
    end_s: float
    strips: list[Strip]

    @property
    def clipped(self) -> bool:
        """Whether any trace reaches `LIMIT_MM`."""
        return any(np.any(np.abs(strip.trace) >= LIMIT_MM) for strip in self.strips)


@dataclass
class _Row:
    """One zero line: its strips, and how far they reach above and below it at each millimetre."""

    strips: list[Strip] = field(default_factory=list)
    above: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(_WIDTH_MM))
    below: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(_WIDTH_MM))


def lay_out(recording: Recording, layout: str, start_s: float) -> Page:
    """The page that begins at ``start_s``. Raises InputError for a layout that cannot be had."""
    layout = _chosen(recording, layout, start_s)
    row_mm = ROW_MM[layout]
    rows = [
        _row(recording, start_s, origin, cells, row_mm)
        for origin, cells in _cells(recording, layout, start_s)
    ]
    y = _up_to_grid(_FOOTER_MM + max(row_mm / 2, float(rows[-1].below.max()) + _CLEARANCE_MM))
    placed: list[Strip] = []
    for lower, row in zip([None, *rows[:0:-1]], rows[::-1], strict=True):
        if lower is not None:
            meet = float(np.max(row.below + lower.above)) + _CLEARANCE_MM
            y += _up_to_grid(max(row_mm, meet))
        placed[:0] = [
            replace(strip, y_mm=y, label=(strip.label[0], strip.label[1] + y))
            for strip in row.strips
        ]
    height = y + max(row_mm / 2, float(rows[0].above.max()) + _CLEARANCE_MM) + _HEADER_MM
    end_s = min(max(strip.end_s for strip in placed), recording.duration_s)
    return Page(float(_WIDTH_MM), _up_to_grid(height), row_mm, start_s, end_s, placed)


def _up_to_grid(millimetres: float) -> float:
    return float(np.ceil(millimetres / 5) * 5)


def _chosen(recording: Recording, wanted: str, start_s: float) -> str:
    twelve = all(lead in recording.leads for lead in STANDARD_LEADS)
    if wanted == "auto":
        if twelve and recording.duration_s - start_s >= _LEAST_3X4_S:
            return "3x4"
        return "rows" if len(recording.leads) == 1 else "12x1"
    if wanted not in ROW_MM:
        raise InputError(f"no layout {wanted!r}", hint="one of auto, 3x4, 12x1, rows")
    if wanted == "3x4" and not twelve:
        raise InputError(f"{recording.record_id} has not the twelve leads of a 3x4 page")
    return wanted


def _cells(
    recording: Recording, layout: str, start_s: float
) -> Iterator[tuple[float, list[tuple[str, float, float]]]]:
    """Each row as its origin in time and its cells of (lead, from, to)."""
    if layout == "3x4":
        part = _STRIP_S / 4
        for leads in _GRID_3X4:
            starts = [start_s + i * part for i in range(4)]
            yield start_s, [(n, s, s + part) for n, s in zip(leads, starts, strict=True)]
        yield start_s, [("II", start_s, start_s + _STRIP_S)]
    elif layout == "12x1":
        for lead in recording.leads[:_MAX_LEADS]:
            yield start_s, [(lead, start_s, start_s + _STRIP_S)]
    else:
        count = int(np.ceil((recording.duration_s - start_s) / _STRIP_S))
        for i in range(min(max(count, 1), _MAX_ROWS)):
            begin = start_s + i * _STRIP_S
            yield begin, [(recording.leads[0], begin, begin + _STRIP_S)]


def _row(
    recording: Recording,
    start_s: float,
    origin: float,
    cells: Sequence[tuple[str, float, float]],
    row_mm: float,
) -> _Row:
    row = _Row()
    row.above[int(PULSE_X_MM[0]) : int(PULSE_X_MM[1]) + 1] = MM_PER_MV
    for lead, begin, end in cells:
        x_mm = LEFT_MM + (begin - origin) * MM_PER_S
        trace = _trace(recording, lead, begin, end)
        columns = (x_mm + np.arange(trace.size) / recording.sampling_rate * MM_PER_S).astype(int)
        columns = np.minimum(columns, _WIDTH_MM - 1)
        # each column's neighbours too, since a line has a width and so has a letter
        for shift in (-1, 0, 1):
            near = np.clip(columns + shift, 0, _WIDTH_MM - 1)
            np.fmax.at(row.above, near, trace)
            np.fmax.at(row.below, near, -trace)
        caption = f"{lead} · {begin:g} s" if origin > start_s else lead
        row.strips.append(Strip(lead, caption, x_mm, begin, end, trace, begin == origin))
    for i, strip in enumerate(row.strips):
        label, columns_taken = _label(strip, row.above, row_mm)
        row.strips[i] = replace(strip, label=label)
        row.above[columns_taken] = np.maximum(row.above[columns_taken], label[1] + _LABEL_MM)
    return row


def _trace(recording: Recording, lead: str, begin: float, end: float) -> npt.NDArray[np.float64]:
    rate = recording.sampling_rate
    values = recording.lead(lead)
    known = values[np.isfinite(values)]
    # a constant offset of the electrode is no part of the picture
    zero = float(np.median(known)) if known.size else 0.0
    part = values[round(begin * rate) : round(end * rate)].astype(np.float64)
    return np.clip((part - zero) * MM_PER_MV, -LIMIT_MM, LIMIT_MM)


def _label(
    strip: Strip, above: npt.NDArray[np.float64], row_mm: float
) -> tuple[tuple[float, float], slice]:
    """Where the name stands clear of the trace, as far left and as low as may be."""
    usual = min(row_mm * 0.33, 9.0)
    width = max(round(len(strip.caption) * _CHARACTER_MM), 3)
    places = []
    for shift in _LABEL_SHIFTS_MM:
        x = int(strip.x_mm) + shift
        taken = slice(x, min(x + width, _WIDTH_MM))
        y = max(usual, float(above[taken].max(initial=0.0)) + _CLEARANCE_MM)
        if y == usual:
            return (x + 0.2, y), taken
        places.append((y, x, taken))
    y, x, taken = min(places, key=lambda place: place[:2])
    return (x + 0.2, y), taken
