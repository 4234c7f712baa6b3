"""How far measured intervals and fiducials are from the annotators', and what IEC allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.delineation import FIDUCIALS
from ecg_agent_ray.evaluation.measurement_reference import ReferenceBeats

__all__ = [
    "IEC_LIMITS_MS",
    "INTERVALS",
    "TOLERANCE_MS",
    "FiducialCounts",
    "MeasuredRecord",
    "interval_medians",
    "match",
    "measurement_metrics",
]

Array = npt.NDArray[np.float64]

INTERVALS = ("pr", "qrs", "qt", "qtc")
TOLERANCE_MS = 150.0
"""A found fiducial this near a mark is the marked one (ANSI/AAMI EC57)."""
IEC_LIMITS_MS = {"p": (10.0, 15.0), "pq": (10.0, 10.0), "qrs": (10.0, 10.0), "qt": (25.0, 30.0)}
"""Largest mean difference and standard deviation in IEC 60601-2-25 (intervals on biological
ECGs), ms."""
_IEC_SOURCE = {"p": "p", "pq": "pr", "qrs": "qrs", "qt": "qt"}
_LARGE_MS = 100.0
_NOTE_NAMES = {"pr": "PR", "qrs": "QRS", "qt": "QT", "qtc": "QT"}


def interval_medians(
    points: Mapping[str, Array], rr_before_ms: Array, rate: float
) -> dict[str, float]:
    """``p, pr, qrs, qt, qtc`` in ms and ``hr`` in 1/min: medians over the beats, NaN where none.

    QTc is each beat's QT by its own RR before it (Bazett).
    """

    def ms(start: str, end: str) -> Array:
        return (points[end] - points[start]) * 1000.0 / rate

    qt = ms("qrs_onset", "t_offset")
    rr = _median(rr_before_ms)
    return {
        "p": _median(ms("p_onset", "p_offset")),
        "pr": _median(ms("p_onset", "qrs_onset")),
        "qrs": _median(ms("qrs_onset", "qrs_offset")),
        "qt": _median(qt),
        "qtc": _median(qt / np.sqrt(rr_before_ms / 1000.0)),
        "hr": 60000.0 / rr,
    }


def _median(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def match(found: Array, marked: Array, tolerance: float) -> npt.NDArray[np.intp]:
    """For each mark the index of the found position that is its own, -1 where there is none.

    One to one, nearest pairs first, at most ``tolerance`` apart. ``found`` is ascending.
    """
    result = np.full(len(marked), -1, dtype=np.intp)
    if not len(found) or not len(marked):
        return result
    right = np.searchsorted(found, marked)
    pairs = []
    for mark, index in enumerate(right):
        for candidate in (index - 1, index):
            if 0 <= candidate < len(found):
                distance = abs(found[candidate] - marked[mark])
                if distance <= tolerance:
                    pairs.append((distance, mark, candidate))
    taken: set[int] = set()
    for _, mark, candidate in sorted(pairs):
        if result[mark] < 0 and candidate not in taken:
            result[mark] = candidate
            taken.add(candidate)
    return result


@dataclass
class FiducialCounts:
    """Marks, found points and hits of one fiducial, with the hits' errors (found - marked, ms)."""

    marked: int = 0
    found: int = 0
    errors_ms: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        hits = len(self.errors_ms)
        return {
            "sensitivity": _share(hits, self.marked),
            "ppv": _share(hits, self.found),
            "bias_ms": _mean(self.errors_ms),
            "sd_ms": _sd(self.errors_ms),
            "marked": self.marked,
            "found": self.found,
        }


@dataclass(frozen=True)
class MeasuredRecord:
    """One record: what was marked, what was measured (NaN for none), and the fiducials' hits."""

    record_id: str
    lead: str
    status: str
    marked: Mapping[str, float]
    measured: Mapping[str, float]
    marked_has_p: bool
    fiducials: Mapping[str, FiducialCounts]
    notes: tuple[str, ...] = ()
    error: str | None = None

    def doubtful(self, interval: str | None = None) -> bool:
        """Whether a note calls this interval doubtful, or the recording; None asks for any note."""
        for note in self.notes:
            before, word, _ = note.partition("doubtful")
            named = {name for name in _NOTE_NAMES.values() if name in before.split()}
            if word and (interval is None or not named or _NOTE_NAMES[interval] in named):
                return True
        return False

    def difference(self, interval: str) -> float:
        """Measured minus marked, NaN where either is missing."""
        return self.measured.get(interval, float("nan")) - self.marked.get(interval, float("nan"))


def count_fiducials(
    points: Mapping[str, Array], reference: ReferenceBeats
) -> dict[str, FiducialCounts]:
    """Compare found beats (points in samples at ``reference.rate``) with the marks.

    What lies outside the part that the annotators worked on is no error: points before the first
    and after the last mark of any kind, and where not all beats are marked, beats that are not.
    """
    tolerance = TOLERANCE_MS * reference.rate / 1000.0
    every_mark = np.concatenate([reference.marks[name] for name in FIDUCIALS])
    first, last = (every_mark.min(), every_mark.max()) if len(every_mark) else (0.0, -1.0)
    looked_at = np.ones(len(points["r_peak"]), dtype=bool)
    if not reference.complete:
        own = match(points["r_peak"], reference.marks["r_peak"], tolerance)
        looked_at[:] = False
        looked_at[own[own >= 0]] = True
    result = {}
    for name in FIDUCIALS:
        marks = reference.marks[name]
        found = points[name][looked_at]
        found = np.sort(found[np.isfinite(found)])
        own = match(found, marks, tolerance)
        hits = own >= 0
        errors = (found[own[hits]] - marks[hits]) * 1000.0 / reference.rate
        n_found = int(hits.sum())
        # a point the annotators did not always set cannot be wrong where they set none
        if name in reference.judged:
            others = np.delete(found, own[hits])
            n_found += int(((others >= first) & (others <= last)).sum())
        result[name] = FiducialCounts(len(marks), n_found, errors.tolist())
    return result


def measurement_metrics(records: Sequence[MeasuredRecord]) -> dict[str, Any]:
    """``mae_ms, bias_ms, sd_ms, missing, n`` each by interval, ``fiducials`` and what is beside.

    ``missing`` is the share of the records with a marked value for which none was measured, ``n``
    the number of records with both. ``sd_ms`` divides by n - 1. A number that cannot be had is
    None.
    """
    differences = {
        name: [d for d in (r.difference(name) for r in records) if np.isfinite(d)]
        for name in (*INTERVALS, "p", "hr")
    }
    without_p = [r for r in records if not r.marked_has_p and r.error is None]
    false_p = [r for r in without_p if np.isfinite(r.measured.get("pr", float("nan")))]
    fiducials = {
        name: _pooled([r.fiducials[name] for r in records if r.fiducials]) for name in FIDUCIALS
    }
    large = _largest_errors(records)
    return {
        "n_records": len(records),
        "mae_ms": {name: _mean(np.abs(differences[name])) for name in INTERVALS},
        "bias_ms": {name: _mean(differences[name]) for name in INTERVALS},
        "sd_ms": {name: _sd(differences[name]) for name in INTERVALS},
        "missing": {name: _missing(records, name) for name in INTERVALS},
        "n": {name: len(differences[name]) for name in INTERVALS},
        "heart_rate": {
            "mae_bpm": _mean(np.abs(differences["hr"])),
            "bias_bpm": _mean(differences["hr"]),
            "missing": _missing(records, "hr"),
        },
        "beats": {
            key: fiducials["r_peak"].to_dict()[key]
            for key in ("marked", "found", "sensitivity", "ppv")
        },
        "false_p": {
            "share": _share(len(false_p), len(without_p)),
            "n_without_p": len(without_p),
            "records": [r.record_id for r in false_p],
        },
        "fiducials": {name: counts.to_dict() for name, counts in fiducials.items()},
        "iec_60601_2_25": {
            name: _against_iec(differences[_IEC_SOURCE[name]], *limits)
            for name, limits in IEC_LIMITS_MS.items()
        },
        "largest_errors": large,
        "large_errors_without_note": sum(not item["doubtful"] for item in large),
        "failed": [{"record_id": r.record_id, "error": r.error} for r in records if r.error],
    }


def _missing(records: Sequence[MeasuredRecord], name: str) -> float | None:
    marked = [r for r in records if np.isfinite(r.marked.get(name, float("nan")))]
    absent = [r for r in marked if not np.isfinite(r.measured.get(name, float("nan")))]
    return _share(len(absent), len(marked))


def _largest_errors(records: Sequence[MeasuredRecord]) -> list[dict[str, Any]]:
    """Intervals off by more than 100 ms, worst first, and whether a note calls them doubtful."""
    found = [
        {
            "record_id": record.record_id,
            "lead": record.lead,
            "interval": name,
            "marked_ms": round(record.marked[name], 1),
            "measured_ms": round(record.measured[name], 1),
            "error_ms": round(record.difference(name), 1),
            "doubtful": record.doubtful(name),
            "notes": list(record.notes),
        }
        for record in records
        for name in INTERVALS
        if abs(record.difference(name)) > _LARGE_MS
    ]
    return sorted(found, key=lambda item: -abs(item["error_ms"]))


def _against_iec(differences: Sequence[float], bias: float, sd: float) -> dict[str, Any]:
    own_bias, own_sd = _mean(differences), _sd(differences)
    passed = None
    if own_bias is not None and own_sd is not None:
        passed = abs(own_bias) <= bias and own_sd <= sd
    return {
        "bias_ms": own_bias,
        "sd_ms": own_sd,
        "limit_bias_ms": bias,
        "limit_sd_ms": sd,
        "passed": passed,
    }


def _pooled(counts: Sequence[FiducialCounts]) -> FiducialCounts:
    total = FiducialCounts()
    for part in counts:
        total.marked += part.marked
        total.found += part.found
        total.errors_ms += part.errors_ms
    return total


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float] | Array) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
