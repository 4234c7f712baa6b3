"""ECGs on standard paper, true to scale: 25 mm/s and 10 mm/mV on a grid of 1 and 5 mm.

The page is laid out in millimetres (see `page`), and so are the files: SVG and PDF carry the size,
PNG its dots per inch, so a print at 100 % can be measured with a ruler.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.page import (
    LIMIT_MM,
    MARGIN_MM,
    MM_PER_MV,
    MM_PER_S,
    PULSE_X_MM,
    Layout,
    Page,
    Strip,
    lay_out,
)
from ecg_agent_ray.ecg.recording import Recording
from ecg_agent_ray.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Layout", "plot"]

_DPI = 150
_PAPER, _MINOR, _MAJOR, _INK, _FAINT = "#fffafa", "#f9d3d3", "#eb9d9d", "#16161d", "#8a7f86"
_WAVES = {"P": "#1565c0", "QRS": "#6a1b9a", "T": "#00796b"}
_WAVE_OF = {"p": "P", "qrs": "QRS", "r": "QRS", "t": "T"}
_REGION_COLOUR = "#f9a825"
_LINE_MM = 0.28
_MOST_SAMPLES_PER_S = 1000
_FORMATS = ("png", "svg", "pdf")


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
        first lead, ten seconds a row, at most eight); ``auto`` takes what leads and length allow.
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
    page = lay_out(recording, layout, start_s)
    figure, axes = _paper(page.width_mm, page.height_mm)
    _captions(axes, recording, page, marked=bool(marks))
    for strip in page.strips:
        _highlight(axes, strip, page.row_mm, regions or ())
        _draw(axes, strip, recording.sampling_rate)
        for beat in marks or ():
            _mark(axes, strip, beat, recording.sampling_rate)
    data = _encode(figure, file_format)
    if out is None:
        return data
    try:
        Path(out).write_bytes(data)
    except OSError as error:
        raise InputError(f"the plot cannot be written to {out}: {error}") from error
    return Path(out)


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


def _captions(axes: Axes, recording: Recording, page: Page, *, marked: bool) -> None:
    top, right = page.height_mm - 5, page.width_mm - MARGIN_MM
    style: dict[str, Any] = {"color": _INK, "fontfamily": "sans-serif", "va": "center"}
    name = recording.record_id if len(recording.record_id) <= 60 else recording.record_id[:59] + "…"
    # a name is no formula, whatever dollar signs it holds
    axes.text(MARGIN_MM, top, name, fontsize=9, weight="bold", parse_math=False, **style)
    facts = f"{recording.sampling_rate:g} Hz · "
    whole = page.start_s == 0 and recording.duration_s - page.end_s < 0.05
    if not whole:
        facts += f"{page.start_s:g} to {page.end_s:.4g} s of "
    facts += f"{recording.duration_s:.1f} s"
    axes.text(right, top, facts, fontsize=7, ha="right", **style)
    scale = f"{MM_PER_S:g} mm/s · {MM_PER_MV:g} mm/mV"
    if page.clipped:
        scale += f" · cut at ±{LIMIT_MM / MM_PER_MV:g} mV"
    axes.text(MARGIN_MM, 3.5, scale, fontsize=7, **style)
    if marked:
        style |= {"fontsize": 7, "weight": "bold", "ha": "right"}
        for (wave, colour), x in zip(_WAVES.items(), (12.5, 4.0, 0.0), strict=True):
            axes.text(right - x, 3.5, wave, **(style | {"color": colour}))


def _draw(axes: Axes, strip: Strip, rate: float) -> None:
    if strip.first_in_row:
        _pulse(axes, strip)
    else:
        ends = [strip.y_mm - 3, strip.y_mm + 3]
        axes.plot([strip.x_mm] * 2, ends, color=_INK, linewidth=_points(0.25))
    seconds, trace = _thinned(strip.trace, rate)
    axes.plot(
        strip.x_mm + seconds * MM_PER_S,
        strip.y_mm + trace,
        color=_INK,
        linewidth=_points(_LINE_MM),
        solid_joinstyle="round",
        zorder=3,
    )
    style: dict[str, Any] = {"color": _INK, "zorder": 4, "parse_math": False}
    axes.text(*strip.label, strip.caption, fontsize=8, weight="bold", **style)
    if trace.size and not np.isfinite(trace).any():
        style["color"] = _FAINT
        axes.text(strip.x_mm + 2, strip.y_mm, "no signal", fontsize=7, va="center", **style)


def _thinned(
    trace: npt.NDArray[np.float64], rate: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Seconds and heights; of more samples than paper shows, the lowest and highest of each few."""
    step = int(2 * rate // _MOST_SAMPLES_PER_S)
    if step <= 2 or trace.size < step:
        return np.arange(trace.size) / rate, trace
    groups = trace[: trace.size // step * step].reshape(-1, step)
    # a gap stays a gap: both places fall on its first sample
    ends = np.sort([np.argmin(groups, axis=1), np.argmax(groups, axis=1)], axis=0)
    kept = (np.arange(len(groups)) * step + ends).T.reshape(-1)
    kept = np.concatenate((kept, np.arange(groups.size, trace.size)))
    return kept / rate, trace[kept]


def _pulse(axes: Axes, strip: Strip) -> None:
    """The calibration pulse: 1 mV for 0.2 s."""
    x, y = PULSE_X_MM[0], strip.y_mm
    steps = [(0, 0), (1, 0), (1, MM_PER_MV), (6, MM_PER_MV), (6, 0), (7, 0)]
    axes.plot(
        [x + dx for dx, _ in steps],
        [y + dy for _, dy in steps],
        color=_INK,
        linewidth=_points(_LINE_MM),
    )


def _highlight(
    axes: Axes, strip: Strip, row_mm: float, regions: Sequence[Mapping[str, Any]]
) -> None:
    from matplotlib.patches import Rectangle

    for region in regions:
        begin = max(float(region["start_s"]), strip.start_s)
        end = min(float(region["end_s"]), strip.end_s)
        if region.get("lead") not in (None, strip.lead) or end <= begin:
            continue
        strength = min(max(float(region.get("score") or 0.5), 0.0), 1.0)
        x = strip.x_mm + (begin - strip.start_s) * MM_PER_S
        shade: dict[str, Any] = {
            "facecolor": _REGION_COLOUR,
            "alpha": 0.15 + 0.35 * strength,
            "zorder": 2,
        }
        corner, width = (x, strip.y_mm - row_mm * 0.45), (end - begin) * MM_PER_S
        axes.add_patch(Rectangle(corner, width, row_mm * 0.9, **shade))


def _mark(axes: Axes, strip: Strip, beat: Mapping[str, int | None], rate: float) -> None:
    """Onsets and offsets as ticks across the trace, peaks as dots on it."""
    first = round(strip.start_s * rate)
    for name, sample in beat.items():
        if sample is None or not first <= sample < first + strip.trace.size:
            continue
        colour = _WAVES.get(_WAVE_OF.get(name.split("_")[0], ""), _INK)
        x = strip.x_mm + (sample - first) / rate * MM_PER_S
        height = strip.trace[sample - first]
        y = strip.y_mm + (0.0 if np.isnan(height) else float(height))
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
