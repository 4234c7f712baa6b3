"""The measurement tool: heart rate and intervals of a recording, and why any is missing.

Definitions. Heart rate = 60000 / median RR. PR runs from P onset to QRS onset, QRS from its onset
to its offset, QT from QRS onset to T offset; an interval is the median over the beats that have it.
QTc is the median of the beats' own QTc, each by the RR interval before it: QT / sqrt(RR) (Bazett
1920) and QT / cbrt(RR) (Fridericia 1920), RR in seconds.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg import Recording, normalise_lead
from ecg_agent_ray.ecg.delineation import FIDUCIALS
from ecg_agent_ray.ecg.quality import LeadQuality
from ecg_agent_ray.errors import InputError

__all__ = ["METHODS", "VALUES", "BeatTable", "Measurement", "measure"]

Method = Literal["default", "paper", "neurokit"]
METHODS: tuple[Method, ...] = ("default", "paper", "neurokit")

_SHORTEST_S = 1.0
VALUES = (
    "heart_rate_bpm",
    "rr_ms",
    "p_duration_ms",
    "pr_ms",
    "qrs_ms",
    "qt_ms",
    "qtc_bazett_ms",
    "qtc_fridericia_ms",
)
"""What is measured, under the names and in the order of ``to_dict()``."""
_CHECKED = {"pr_ms": "PR", "qrs_ms": "QRS", "qt_ms": "QT"}
_DOUBTFUL_MS = 40.0
_NEEDED = {"heart_rate_bpm": "heart rate", "pr_ms": "PR", "qrs_ms": "QRS", "qt_ms": "QT"}


@dataclass(frozen=True)
class BeatTable:
    """Fiducial points of the beats of one lead (or of all leads together).

    ``points[name]`` holds one sample position for each beat, at ``rate`` Hz, NaN where the beat has
    no such point. ``rr_before_ms`` is NaN for the first beat and behind a gap.
    """

    points: dict[str, npt.NDArray[np.float64]]
    rate: float
    rr_before_ms: npt.NDArray[np.float64]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rr_before_ms)

    def interval_ms(self, start: str, end: str) -> npt.NDArray[np.float64]:
        return (self.points[end] - self.points[start]) * 1000.0 / self.rate

    def at_rate(self, rate: float, n_samples: int) -> list[dict[str, int | None]]:
        """One dict for each beat: whole sample indices at ``rate``, None where there is none."""
        columns = {
            name: np.clip(np.round(self.points[name] * rate / self.rate), 0, n_samples - 1)
            for name in FIDUCIALS
        }
        return [
            {
                name: None if np.isnan(column[i]) else int(column[i])
                for name, column in columns.items()
            }
            for i in range(len(self))
        ]


@dataclass(frozen=True)
class Measurement:
    """What was measured; None for what could not be, with the reason in ``notes``. Times in ms."""

    record_id: str
    lead: str
    status: Literal["ok", "partial", "failed"]
    heart_rate_bpm: float | None
    rr_ms: float | None
    p_duration_ms: float | None
    pr_ms: float | None
    qrs_ms: float | None
    qt_ms: float | None
    qtc_bazett_ms: float | None
    qtc_fridericia_ms: float | None
    n_beats: int
    quality: dict[str, str]
    notes: list[str]
    beats: list[dict[str, int | None]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The command line's JSON; ``beats`` only where they were asked for."""
        result: dict[str, Any] = {"record_id": self.record_id, "lead": self.lead}
        result |= {"status": self.status}
        result |= {name: getattr(self, name) for name in VALUES}
        result |= {"n_beats": self.n_beats, "quality": self.quality, "notes": self.notes}
        if self.beats is not None:
            result["beats"] = self.beats
        return result

    def to_dialogue(self) -> dict[str, str | None]:
        """The ``tool_output`` of a measurement turn: text, heart rate and QTc (Bazett) with two
        decimals, PR and QRS with none, None where there is no value."""

        def text(value: float | None, decimals: int) -> str | None:
            return None if value is None else f"{value:.{decimals}f}"

        return {
            "heart_rate": text(self.heart_rate_bpm, 2),
            "pr_interval": text(self.pr_ms, 0),
            "qrs_duration": text(self.qrs_ms, 0),
            "qtc_interval": text(self.qtc_bazett_ms, 2),
        }


def measure(
    recording: Recording, lead: str = "auto", method: str = "default", beats: bool = False
) -> Measurement:
    """Measure one recording.

    Parameters
    ----------
    lead
        A lead's name; ``auto`` for the best usable lead; ``global`` for all usable leads together,
        from the earliest onset to the latest offset.
    method
        ``default`` is this package's network, checked by its classical delineation: an interval on
        which the two differ by more than 40 ms carries a note that it is doubtful; ``neurokit`` is
        neurokit2's delineation, ``paper`` the published agent's, both on one lead.
    beats
        Also give each beat's fiducials, as sample indices at the recording's own rate.

    Raises
    ------
    LeadError : the recording has no lead of that name
    InputError : no such method, or ``global`` with a method that knows one lead only
    MissingDependencyError : neurokit2 is asked for and not installed
    """
    if method not in METHODS:
        raise InputError(f"no measurement method {method!r}", hint=f"one of {', '.join(METHODS)}")
    wanted = lead.strip().lower()
    if wanted == "global" and method != "default":
        raise InputError(f"method {method!r} measures one lead, not all together")
    if wanted not in ("auto", "global"):
        recording.lead(lead)  # raises for a lead that is not there
    if recording.duration_s < _SHORTEST_S:
        short = f"{recording.duration_s:.2f} s are too short to measure"
        name = normalise_lead(lead) if wanted not in ("auto", "global") else recording.leads[0]
        return _nothing(recording, name, LeadQuality("unusable", short, 0.0), [short])
    from ecg_agent_ray.tools.beat_tables import BeatFinder

    finder = BeatFinder(recording, None if wanted in ("auto", "global") else normalise_lead(lead))
    if wanted == "global":
        names, quality = finder.leads_together()
        table, check = finder.all_leads(names), finder.check(*names)
        return _measurement(recording, "global", quality, table, beats, check)
    name = finder.best_lead() if wanted == "auto" else normalise_lead(lead)
    quality = finder.quality[name]
    # the published method looks at no quality, and is kept as it was
    if quality.status == "unusable" and method != "paper":
        note = f"lead {name} is unusable: {quality.reason}"
        if wanted == "auto":
            note = f"no lead is usable; the best, {name}: {quality.reason}"
        return _nothing(recording, name, quality, [note])
    if method == "default":
        table, check = finder.one_lead(name), finder.check(name)
        return _measurement(recording, name, quality, table, beats, check)
    from ecg_agent_ray.tools.measurement_neurokit import neurokit_table, paper_values

    if method == "paper":
        values, notes, n_beats, points = paper_values(recording.lead(name), recording.sampling_rate)
        shown = points if beats else None
        return _finished(recording, name, quality, values, notes, n_beats, shown)
    by_neurokit = neurokit_table(recording.lead(name), recording.sampling_rate)
    return _measurement(recording, name, quality, by_neurokit, beats)


def _measurement(
    recording: Recording,
    lead: str,
    quality: LeadQuality,
    table: BeatTable,
    beats: bool,
    check: BeatTable | None = None,
) -> Measurement:
    values, notes = _summarise(table)
    if check is not None:
        others = _summarise(check)[0]
        notes += _disagreements(values, others)
        if lead == "global" and not values["pr_ms"] and others["pr_ms"] and not check.notes:
            # P waves that ride on T, as in first-degree block, are lost to the network at times;
            # that half of the leads share one by the classical method is strong evidence
            values |= {name: others[name] for name in ("pr_ms", "p_duration_ms")}
            notes = [note for note in notes if note not in table.notes]
            notes.append("PR is doubtful: only the classical method finds P waves")
    if quality.status == "doubtful":
        notes.insert(0, f"signal quality is doubtful: {quality.reason}")
    return _finished(recording, lead, quality, values, notes, len(table), table if beats else None)


def _summarise(table: BeatTable) -> tuple[dict[str, float | None], list[str]]:
    """The medians of the contract and a note for each that is missing."""
    rr = _median(table.rr_before_ms)
    qt = table.interval_ms("qrs_onset", "t_offset")
    seconds = table.rr_before_ms / 1000.0
    values = {
        "heart_rate_bpm": 60000.0 / rr if rr else None,
        "rr_ms": rr,
        "p_duration_ms": _median(table.interval_ms("p_onset", "p_offset")),
        "pr_ms": _median(table.interval_ms("p_onset", "qrs_onset")),
        "qrs_ms": _median(table.interval_ms("qrs_onset", "qrs_offset")),
        "qt_ms": _median(qt),
        "qtc_bazett_ms": _median(qt / np.sqrt(seconds)),
        "qtc_fridericia_ms": _median(qt / np.cbrt(seconds)),
    }
    notes = list(table.notes)
    if len(table) == 0:
        notes.append("no heart beats were found")
    elif rr is None:
        notes.append("no heart rate: it takes two beats without a gap between them")
    if len(table) and values["qrs_ms"] is None:
        notes.append("no QRS: its boundaries were not found")
    if len(table) and values["qt_ms"] is None:
        notes.append("no QT: no end of the T wave was found")
    return values, notes


def _disagreements(values: dict[str, float | None], others: dict[str, float | None]) -> list[str]:
    """A note for each interval that a second, independent method sees differently."""
    notes = []
    for key, name in _CHECKED.items():
        value, other = values[key], others[key]
        if value is not None and other is not None and abs(value - other) > _DOUBTFUL_MS:
            notes.append(
                f"{name} is doubtful: {value:.0f} ms by the network, {other:.0f} ms by the "
                "classical method"
            )
    if values["pr_ms"] is not None and others["pr_ms"] is None:
        notes.append("PR is doubtful: the classical method finds no P wave")
    return notes


def _median(values: npt.NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    # of so few values numpy's own takes ten times as long
    return statistics.median(finite.tolist()) if finite.size else None


def _finished(
    recording: Recording,
    lead: str,
    quality: LeadQuality,
    values: dict[str, float | None],
    notes: list[str],
    n_beats: int,
    table: BeatTable | None,
) -> Measurement:
    missing = [name for name in _NEEDED if values.get(name) is None]
    status: Literal["ok", "partial", "failed"] = "partial" if missing else "ok"
    if len(missing) == len(_NEEDED):
        status = "failed"
    rounded = {name: _rounded(values.get(name)) for name in VALUES}
    return Measurement(
        record_id=recording.record_id,
        lead=lead,
        status=status,
        n_beats=n_beats,
        quality=quality.to_dict(),
        notes=notes,
        beats=table.at_rate(recording.sampling_rate, recording.n_samples) if table else None,
        **rounded,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _nothing(
    recording: Recording, lead: str, quality: LeadQuality, notes: list[str]
) -> Measurement:
    return _finished(recording, lead, quality, {}, notes, 0, None)
