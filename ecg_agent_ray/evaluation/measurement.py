"""How far the measurement tool is from cardiologists' marks on LUDB and QTDB.

For every record the medians of the tool's intervals are set against the medians of the annotators'
beats, of the very lead the tool used. On LUDB the tool's own result is taken (all beats of ten
seconds are marked but those at the ends). On QTDB some thirty beats of fifteen minutes are marked,
so the medians are over the tool's points of those beats; with ``method="paper"`` these points start
the QRS at the Q peak, which its record-wide PR does not.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ecg_agent_ray import __version__, ecg, tools
from ecg_agent_ray.ecg.delineation import FIDUCIALS
from ecg_agent_ray.errors import ConfigError, RecordingError, ToolError
from ecg_agent_ray.evaluation.measurement_agreement import (
    INTERVALS,
    TOLERANCE_MS,
    Array,
    MeasuredRecord,
    count_fiducials,
    interval_medians,
    match,
    measurement_metrics,
)
from ecg_agent_ray.evaluation.measurement_reference import (
    AnnotatedRecord,
    Database,
    ReferenceBeats,
    find_records,
)
from ecg_agent_ray.tools.measurement import METHODS, Measurement

__all__ = ["evaluate_measurement", "measure_record"]

_EXPERIMENT = "measurement-evaluation"
_TOOL_KEYS = {
    "p": "p_duration_ms",
    "pr": "pr_ms",
    "qrs": "qrs_ms",
    "qt": "qt_ms",
    "qtc": "qtc_bazett_ms",
    "hr": "heart_rate_bpm",
}


def evaluate_measurement(
    database: Database,
    directory: str | Path,
    *,
    output: str | Path,
    lead: str = "auto",
    method: str = "default",
    records: Sequence[str] | None = None,
    track: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure every annotated record and compare.

    Parameters
    ----------
    database, directory
        ``ludb`` or ``qtdb``, and the folder with its records (anywhere below).
    output
        Folder that takes ``metrics.json``, ``records.csv`` and ``plots/bland_altman.png``.
    lead
        As for :func:`ecg_agent_ray.tools.measure`; ``auto`` looks at signal quality, never at the
        marks. ``global`` is set against the marks of all leads together.
    method
        ``default``, ``neurokit`` or ``paper``.
    records
        Only these record ids.
    track
        Log to MLflow: options, metrics, the metrics file and the plot, nothing of single records.
    progress
        Called with records done and in all.

    Returns
    -------
    dict
        The metrics as written; see
        :func:`ecg_agent_ray.evaluation.measurement_agreement.measurement_metrics`.

    Raises
    ------
    ConfigError
        No such database, method or record, or no annotated record in the folder.
    ServiceError
        MLflow does not answer.
    """
    if method not in METHODS:
        raise ConfigError(f"no measurement method {method!r}", hint=f"one of {', '.join(METHODS)}")
    if lead.lower() == "global" and method != "default":
        raise ConfigError(f"method {method!r} measures one lead, not all together")
    found = find_records(database, directory, records)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    options = {"database": database, "lead": lead, "method": method, "n_records": len(found)}
    with _tracked(options, found) if track else nullcontext() as run:
        start = time.perf_counter()
        rows = []
        for number, record in enumerate(found, start=1):
            rows.append(measure_record(record, lead=lead, method=method))
            if progress is not None:
                progress(number, len(found))
        seconds = time.perf_counter() - start
        metrics = {
            **options,
            "package_version": __version__,
            **measurement_metrics(rows),
            "seconds": round(seconds, 3),
        }
        _write(metrics, rows, folder)
        if run is not None:
            # MLflow keeps what may leave the machine: no single record's values
            run.log_metrics(_loggable(metrics))
            run.log_dict(_without_records(metrics), "metrics.json")
            run.log_artifacts(folder / "plots", "plots")
    return metrics


def measure_record(
    record: AnnotatedRecord, *, lead: str = "auto", method: str = "default"
) -> MeasuredRecord:
    """Measure one record and compare it with its marks; a recording that fails is a result too."""
    try:
        recording = ecg.read(record.path)
        measurement = tools.measure(recording, lead=lead, method=method, beats=True)
    except (RecordingError, ToolError) as error:
        return MeasuredRecord(record.record_id, lead, "failed", {}, {}, False, {}, (), str(error))
    reference = record.reference(measurement.lead)
    points = _points(measurement)
    marked = interval_medians(reference.points, reference.rr_before_ms, reference.rate)
    measured = (
        {name: _number(getattr(measurement, key)) for name, key in _TOOL_KEYS.items()}
        if reference.complete
        else _at_marked_beats(points, reference)
    )
    return MeasuredRecord(
        record_id=record.record_id,
        lead=measurement.lead,
        status=measurement.status,
        marked=marked,
        measured=measured,
        marked_has_p=reference.has_p,
        fiducials=count_fiducials(points, reference),
        notes=tuple(measurement.notes),
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _points(measurement: Measurement) -> dict[str, Array]:
    """The tool's beats as one column for each fiducial, NaN for none, ascending in time."""
    beats = sorted(measurement.beats or [], key=lambda beat: beat["r_peak"] or 0)
    return {
        name: np.array([_number(beat[name]) for beat in beats], dtype=np.float64)
        for name in FIDUCIALS
    }


def _at_marked_beats(points: dict[str, Array], reference: ReferenceBeats) -> dict[str, float]:
    """The tool's medians over those of its beats that are marked ones."""
    peaks = points["r_peak"]
    rr = np.concatenate(([np.nan], np.diff(peaks)))[: len(peaks)] * 1000.0 / reference.rate
    own = match(peaks, reference.points["r_peak"], TOLERANCE_MS * reference.rate / 1000.0)
    known = np.isfinite(reference.rr_before_ms[own >= 0])
    own = own[own >= 0]
    # where the marks tell no RR, both sides go without, so that both medians are of the same beats
    rr_before = np.where(known, rr[own], np.nan) if len(own) else np.empty(0)
    return interval_medians(
        {name: column[own] for name, column in points.items()}, rr_before, reference.rate
    )


def _write(metrics: dict[str, Any], rows: Sequence[MeasuredRecord], folder: Path) -> None:
    from ecg_agent_ray.evaluation.measurement_plots import bland_altman

    text = json.dumps(metrics, indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "records.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        names = (*INTERVALS, "hr")
        columns = [f"{name}_{what}" for name in names for what in ("marked", "measured")]
        writer.writerow(["record_id", "lead", "status", *columns, "doubtful", "notes", "error"])
        for row in rows:
            values = [
                _cell(side.get(name)) for name in names for side in (row.marked, row.measured)
            ]
            notes = "; ".join(row.notes)
            writer.writerow(
                [
                    row.record_id,
                    row.lead,
                    row.status,
                    *values,
                    row.doubtful(),
                    notes,
                    row.error or "",
                ]
            )
    bland_altman(rows, folder / "plots" / "bland_altman.png", title=_title(metrics))


def _cell(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.2f}"


def _title(metrics: dict[str, Any]) -> str:
    return (
        f"{metrics['database'].upper()}, {metrics['n_records']} records, "
        f"lead {metrics['lead']}, method {metrics['method']}"
    )


def _tracked(options: dict[str, Any], records: Sequence[AnnotatedRecord]) -> Any:
    from ecg_agent_ray.plugins.tracking import data_digest, tracked_run

    digest = data_digest([record.path for record in records])
    return tracked_run(
        f"measurement-{options['database']}-{options['method']}",
        params=options,
        tags={"data.digest": digest},
        experiment=_EXPERIMENT,
    )


def _without_records(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics without what names or shows a single recording."""
    kept = {k: v for k, v in metrics.items() if k not in ("largest_errors", "failed")}
    false_p = {k: v for k, v in metrics["false_p"].items() if k != "records"}
    return kept | {"false_p": false_p, "n_large_errors": len(metrics["largest_errors"])}


def _loggable(metrics: dict[str, Any]) -> dict[str, Any]:
    kept = ("mae_ms", "bias_ms", "sd_ms", "missing", "heart_rate", "fiducials", "seconds")
    return {
        **{name: metrics[name] for name in kept},
        "false_p_share": metrics["false_p"]["share"],
        "large_errors_without_note": metrics["large_errors_without_note"],
    }
