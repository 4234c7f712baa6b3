"""ECGs on standard paper, true to scale: 25 mm/s and 10 mm/mV on a grid of 1 and 5 mm.

The page is laid out in millimetres, and so are the files: SVG and PDF carry the size, PNG its dots
per inch, so a print at 100 % can be measured with a ruler.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ecg_agent_ray.ecg.leads import STANDARD_LEADS
from ecg_agent_ray.ecg.recording import Recording
from ecg_agent_ray.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Layout", "plot"]

Layout = Literal["auto", "3x4", "12x1", "rows"]

MM_PER_S, MM_PER_MV = 25.0, 10.0
_STRIP_S = 10.0
_MARGIN_MM, _PULSE_MM, _HEADER_MM, _FOOTER_MM = 6.0, 9.0, 10.0, 7.0
_ROW_MM = {"3x4": 30.0, "12x1": 20.0, "rows": 35.0}
_MAX_ROWS = 8
_DPI = 150
_PAPER, _MINOR, _MAJOR, _INK = "#fffafa", "#f9d3d3", "#eb9d9d", "#16161d"
_WAVE_COLOURS = {"p": "#1565c0", "qrs": "#6a1b9a", "r": "#6a1b9a", "t": "#00796b"}
_REGION_COLOUR = "#f9a825"
_GRID_3X4 = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
_FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class _Strip:
    """A stretch of one lead: its place on the page (mm) and its time (s)."""

    lead: str
    x_mm: float
    y_mm: float
    height_mm: float
    start_s: float
    end_s: float


def plot(
    recording: Recording,
    out: str | os.PathLike[str] | None = None,
    *,
    marks: Sequence[Mapping[str, int | None]] | None = None,
    regions: Sequence[Mapping[str, Any]] | None = None,
    layout: Layout = "auto",
    start_s: float = 0.0,
    format: str = "png",
) -> Path | bytes:
    """Draw a recording on ECG paper.

    Parameters
    ----------
    out
        File to write, its format by suffix (png, svg, pdf). None gives the bytes in ``format``.
    marks
        Fiducials to draw, as `Measurement.beats` has them: one mapping for each beat from a point's
        name (``p_onset`` … ``t_offset``) to a sample index or None.
    regions
        Stretches to highlight, as an explanation has them: ``start_s``, ``end_s``, and optionally
        ``lead`` (all leads without it) and ``score`` (0 to 1, how strongly).
    layout
        ``3x4`` with a rhythm strip below (2.5 s a lead), ``12x1`` (10 s a lead), ``rows`` (the
        first lead, ten seconds a row, at most eight); ``auto`` takes what the leads allow.
    start_s
        Where in the recording the page begins, seconds.

    Raises
    ------
    InputError : unknown layout or format, a start beyond the end, or a file that cannot be written
    """
    file_format = Path(out).suffix.lstrip(".").lower() if out is not None else format.lower()
    if file_format not in _FORMATS:
        raise InputError(f"cannot plot to {file_format!r}", hint=f"one of {', '.join(_FORMATS)}")
    if not 0 <= start_s < recording.duration_s:
        raise InputError(f"the plot begins at {start_s:g} s of {recording.duration_s:g} s")
    strips, width_mm, height_mm = _page(recording, _layout(recording, layout), start_s)
    figure, axes = _paper(width_mm, height_mm)
    _captions(axes, recording, start_s, width_mm, height_mm)
    for strip in strips:
        _draw(axes, recording, strip, regions or (), marks or ())
    data = _encode(figure, file_format)
    if out is None:
        return data
    try:
        Path(out).write_bytes(data)
    except OSError as error:
        raise InputError(f"the plot cannot be written to {out}: {error}") from error
    return Path(out)


def _layout(recording: Recording, wanted: str) -> str:
    twelve = all(lead in recording.leads for lead in STANDARD_LEADS)
    if wanted == "auto":
        if twelve:
            return "3x4"
        return "rows" if len(recording.leads) == 1 else "12x1"
    if wanted not in _ROW_MM:
        raise InputError(f"no layout {wanted!r}", hint="one of auto, 3x4, 12x1, rows")
    if wanted == "3x4" and not twelve:
        raise InputError(f"{recording.record_id} has not the twelve leads of a 3x4 page")
    return wanted


def _page(recording: Recording, layout: str, start_s: float) -> tuple[list[_Strip], float, float]:
    """Strips from top to bottom and the size of the page in mm."""
    row_mm = _ROW_MM[layout]
    left = _MARGIN_MM + _PULSE_MM
    rows = list(_rows(recording, layout, start_s))
    height = _HEADER_MM + _FOOTER_MM + row_mm * len(rows)
    strips = [
        _Strip(lead, left + (begin - origin) * MM_PER_S, y, row_mm, begin, end)
        for y, (origin, cells) in zip(
            height - _HEADER_MM - row_mm * (np.arange(len(rows)) + 0.5), rows, strict=True
        )
        for lead, begin, end in cells
    ]
    return strips, left + _STRIP_S * MM_PER_S + _MARGIN_MM, height


def _rows(
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
        for lead in recording.leads[:24]:
            yield start_s, [(lead, start_s, start_s + _STRIP_S)]
    else:
        count = int(np.ceil((recording.duration_s - start_s) / _STRIP_S))
        for i in range(min(max(count, 1), _MAX_ROWS)):
            begin = start_s + i * _STRIP_S
            yield begin, [(recording.leads[0], begin, begin + _STRIP_S)]


def _paper(width_mm: float, height_mm: float) -> tuple[Figure, Axes]:
    """A page whose axes count millimetres, with the grid drawn."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_mm / 25.4, height_mm / 25.4), dpi=_DPI, facecolor=_PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width_mm)
    axes.set_ylim(0, height_mm)
    axes.axis("off")
    for step, colour, line_mm in ((1, _MINOR, 0.10), (5, _MAJOR, 0.16)):
        upright = [[(x, 0), (x, height_mm)] for x in np.arange(0, width_mm + 0.5, step)]
        level = [[(0, y), (width_mm, y)] for y in np.arange(0, height_mm + 0.5, step)]
        lines = LineCollection(upright + level, colors=colour, linewidths=_points(line_mm))
        axes.add_collection(lines, autolim=False)
    return figure, axes


def _points(millimetres: float) -> float:
    return millimetres * 72 / 25.4


def _captions(
    axes: Axes, recording: Recording, start_s: float, width_mm: float, height_mm: float
) -> None:
    style: dict[str, Any] = {"color": _INK, "fontfamily": "sans-serif"}
    axes.text(
        _MARGIN_MM,
        height_mm - 5,
        recording.record_id,
        fontsize=9,
        weight="bold",
        va="center",
        **style,
    )
    facts = f"{recording.sampling_rate:g} Hz   {recording.duration_s:.1f} s"
    facts += f"   from {start_s:g} s" if start_s else ""
    axes.text(
        width_mm - _MARGIN_MM, height_mm - 5, facts, fontsize=7, ha="right", va="center", **style
    )
    scale = f"{MM_PER_S:g} mm/s   {MM_PER_MV:g} mm/mV"
    axes.text(_MARGIN_MM, 3.5, scale, fontsize=7, va="center", **style)


def _draw(
    axes: Axes,
    recording: Recording,
    strip: _Strip,
    regions: Sequence[Mapping[str, Any]],
    marks: Sequence[Mapping[str, int | None]],
) -> None:
    rate = recording.sampling_rate
    first, last = round(strip.start_s * rate), round(strip.end_s * rate)
    lead = recording.lead(strip.lead)
    values = lead[first:last].astype(np.float64)
    shown = lead[np.isfinite(lead)]
    # a constant offset of the electrode is no part of the picture
    zero = float(np.median(shown)) if shown.size else 0.0
    reach = strip.height_mm * 0.75
    x = strip.x_mm + np.arange(values.size) / rate * MM_PER_S
    y = strip.y_mm + np.clip((values - zero) * MM_PER_MV, -reach, reach)
    _highlight(axes, strip, regions)
    if abs(strip.x_mm - _MARGIN_MM - _PULSE_MM) < 1e-6:
        _pulse(axes, strip)
    else:
        ends = [strip.y_mm - 3, strip.y_mm + 3]
        axes.plot([strip.x_mm] * 2, ends, color=_INK, linewidth=_points(0.25))
    axes.plot(x, y, color=_INK, linewidth=_points(0.28), solid_joinstyle="round", zorder=3)
    label_y = strip.y_mm + min(strip.height_mm * 0.33, 9.0)
    axes.text(
        strip.x_mm + 1.2, label_y, strip.lead, fontsize=8, weight="bold", color=_INK, zorder=4
    )
    for beat in marks:
        _mark(axes, strip, beat, first, last, rate, y)


def _pulse(axes: Axes, strip: _Strip) -> None:
    """The calibration pulse: 1 mV for 0.2 s."""
    x, y = _MARGIN_MM + 1.0, strip.y_mm
    steps = [(0, 0), (1, 0), (1, MM_PER_MV), (6, MM_PER_MV), (6, 0), (7, 0)]
    axes.plot(
        [x + dx for dx, _ in steps],
        [y + dy for _, dy in steps],
        color=_INK,
        linewidth=_points(0.28),
    )


def _highlight(axes: Axes, strip: _Strip, regions: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.patches import Rectangle

    for region in regions:
        begin = max(float(region["start_s"]), strip.start_s)
        end = min(float(region["end_s"]), strip.end_s)
        if region.get("lead") not in (None, strip.lead) or end <= begin:
            continue
        strength = min(max(float(region.get("score") or 0.5), 0.0), 1.0)
        corner = (
            strip.x_mm + (begin - strip.start_s) * MM_PER_S,
            strip.y_mm - strip.height_mm * 0.45,
        )
        size = ((end - begin) * MM_PER_S, strip.height_mm * 0.9)
        axes.add_patch(
            Rectangle(
                corner, *size, facecolor=_REGION_COLOUR, alpha=0.15 + 0.35 * strength, zorder=2
            )
        )


def _mark(
    axes: Axes,
    strip: _Strip,
    beat: Mapping[str, int | None],
    first: int,
    last: int,
    rate: float,
    trace: np.ndarray[Any, np.dtype[np.float64]],
) -> None:
    """Onsets and offsets as ticks across the trace, peaks as dots on it."""
    for name, sample in beat.items():
        if sample is None or not first <= sample < min(last, first + trace.size):
            continue
        colour = _WAVE_COLOURS.get(name.split("_")[0], _INK)
        x = strip.x_mm + (sample - first) / rate * MM_PER_S
        y = trace[sample - first]
        y = strip.y_mm if np.isnan(y) else y
        if name.endswith("_peak"):
            axes.plot([x], [y], "o", color=colour, markersize=2.2, markeredgewidth=0, zorder=5)
        else:
            axes.plot([x, x], [y - 2.5, y + 2.5], color=colour, linewidth=_points(0.25), zorder=5)


def _encode(figure: Figure, file_format: str) -> bytes:
    """The same bytes for the same picture: no date, fixed ids."""
    import matplotlib

    metadata: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    settings: Any = {"svg.hashsalt": "ecg", "svg.fonttype": "none", "path.simplify": False}
    buffer = io.BytesIO()
    with matplotlib.rc_context(settings):
        figure.savefig(
            buffer, format=file_format, dpi=_DPI, facecolor=_PAPER, metadata=metadata[file_format]
        )
    return buffer.getvalue()
