"""Plots of a classifier's metrics: reliability diagram, and AUROC of each label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["plot_classifier"]


def plot_classifier(metrics: Mapping[str, Any], folder: Path) -> None:
    """Draw ``reliability.png`` and ``auroc.png`` of a classifier's ``metrics.json``.

    Reliability (Niculescu-Mizil & Caruana 2005): observed frequency over stated probability in ten
    bins, a panel for each lead configuration; a point's area grows with the cells in its bin. No
    record is named.
    """
    every = {metrics["lead_configuration"]: metrics, **metrics["configurations"]}
    folder.mkdir(parents=True, exist_ok=True)
    figure = _figure(4.2 * len(every), 4.6)
    for axis, (leads, values) in zip(
        figure.subplots(1, len(every), squeeze=False)[0], every.items(), strict=True
    ):
        _reliability(axis, values)
        axis.set_title(f"{leads}: ECE {values['ece']:.3f}", fontsize="medium")
    figure.savefig(folder / "reliability.png", dpi=110)
    ranked = {
        code: entry["auroc"]
        for code, entry in metrics["per_label"].items()
        if entry["auroc"] is not None
    }
    figure = _figure(6.5, 1.5 + 0.22 * len(ranked))
    _auroc(figure.subplots(), ranked, metrics.get("intervals", {}))
    figure.suptitle(f"AUROC, {metrics['lead_configuration']}, {metrics['n_records']} records")
    figure.savefig(folder / "auroc.png", dpi=110)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _reliability(axis: Any, values: Mapping[str, Any]) -> None:
    bins = values["reliability"]
    total = sum(entry["count"] for entry in bins)
    stated = [entry["stated"] for entry in bins]
    observed = [entry["observed"] for entry in bins]
    axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    axis.plot(stated, observed, color="tab:blue")
    areas = [15 + 300 * entry["count"] / total for entry in bins]
    axis.scatter(stated, observed, s=areas, color="tab:blue", alpha=0.6, edgecolors="none")
    for entry in bins:
        axis.annotate(
            f"{entry['count']}",
            (entry["stated"], entry["observed"]),
            textcoords="offset points",
            xytext=(6, 6),
            fontsize="x-small",
        )
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.set(xlabel="stated probability", ylabel="observed frequency (cells in bin)")


def _auroc(axis: Any, values: Mapping[str, float], intervals: Mapping[str, Any]) -> None:
    codes = sorted(values, key=lambda code: values[code])
    for row, code in enumerate(codes):
        if interval := intervals.get(f"auroc/{code}"):
            axis.plot(interval, [row, row], color="tab:blue", linewidth=1.5, alpha=0.6)
        axis.plot(values[code], row, "o", color="tab:blue", markersize=4)
    axis.axvline(0.5, color="grey", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(codes)), codes, fontsize="small")
    axis.set(xlim=(0, 1.02), ylim=(-0.7, len(codes) - 0.3))
    axis.set_xlabel("AUROC (bar: 95 % interval; dashed: chance)")
