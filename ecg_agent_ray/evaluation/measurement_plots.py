"""Bland-Altman plots of measured against marked intervals (Bland & Altman, Lancet 1986)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecg_agent_ray.evaluation.measurement_agreement import (
    IEC_LIMITS_MS,
    INTERVALS,
    MeasuredRecord,
)

__all__ = ["bland_altman"]

_IEC_OF = {"pr": "pq", "qrs": "qrs", "qt": "qt"}
_NAMES = {"pr": "PR", "qrs": "QRS", "qt": "QT", "qtc": "QTc (Bazett)"}


def bland_altman(records: Sequence[MeasuredRecord], path: Path, *, title: str) -> None:
    """Draw one panel for each interval into a PNG: difference over mean, one point a record.

    Lines are the mean difference and 1.96 standard deviations around it, the band the mean
    difference that IEC 60601-2-25 accepts. No record is named.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\nline: bias, dashed: 1.96 SD, band: bias accepted by IEC 60601-2-25")
    for axis, name in zip(figure.subplots(2, 2).flat, INTERVALS, strict=True):
        _panel(axis, name, records)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _panel(axis: Any, name: str, records: Sequence[MeasuredRecord]) -> None:
    both = [r for r in records if np.isfinite(r.difference(name))]
    difference = np.array([r.difference(name) for r in both])
    middle = np.array([(r.measured[name] + r.marked[name]) / 2 for r in both])
    axis.set_xlabel("mean of measured and marked (ms)")
    axis.set_ylabel("measured - marked (ms)")
    if not both:
        axis.set_title(f"{_NAMES[name]}: no record has both")
        return
    if name in _IEC_OF:
        limit = IEC_LIMITS_MS[_IEC_OF[name]][0]
        axis.axhspan(-limit, limit, color="tab:green", alpha=0.12)
    bias = float(difference.mean())
    title = f"{_NAMES[name]}, {len(both)} records: bias {bias:+.1f} ms"
    axis.scatter(middle, difference, s=18, alpha=0.6, color="tab:blue", edgecolors="none")
    axis.axhline(bias, color="black")
    if len(both) > 1:
        spread = 1.96 * float(difference.std(ddof=1))
        title += f", {bias - spread:+.1f} to {bias + spread:+.1f} ms"
        axis.axhline(bias - spread, color="black", linestyle="--")
        axis.axhline(bias + spread, color="black", linestyle="--")
    axis.set_title(title, fontsize="medium")
