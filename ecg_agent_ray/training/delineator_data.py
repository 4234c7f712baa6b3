"""Leads to train the delineation network on: with marked waves, and without."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ecg_agent_ray import ecg
from ecg_agent_ray.ecg.filters import fill_gaps
from ecg_agent_ray.ecg.quality import assess_quality
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.evaluation.measurement_reference import (
    AnnotatedRecord,
    Wave,
    find_records,
    read_waves,
)

if TYPE_CHECKING:
    from ecg_agent_ray.ecg import Recording
    from ecg_agent_ray.training.delineator_config import (
        AnnotatedSource,
        HoldOut,
        UnannotatedSource,
    )

__all__ = [
    "SOURCE_RATE_HZ",
    "AnnotatedLead",
    "FreeLead",
    "held_out",
    "read_annotated",
    "read_unannotated",
]

Signal = npt.NDArray[np.float32]

SOURCE_RATE_HZ = 500.0
_KIND = {"p": 1, "N": 2, "t": 3}
# around the marked beats of a long record
_MARGIN_S = 12.0
_LONGEST_S = 60.0
_FIBRILLATION = frozenset({"AFIB", "AFLT"})


@dataclass(frozen=True)
class AnnotatedLead:
    """One lead with its waves.

    Attributes
    ----------
    signal : (samples,) mV at 500 Hz without gaps
    waves : (n, 4): number in ``network.WAVES``, onset, peak and offset in seconds (NaN: not marked)
    complete : whether everything between the first and the last mark was judged, so that what is
        not marked is no wave; else only the surroundings of the marked beats were
    """

    record_id: str
    lead: str
    signal: Signal
    waves: npt.NDArray[np.float64]
    complete: bool


@dataclass(frozen=True)
class FreeLead:
    """One lead without marks; ``no_p`` where the rhythm is known to have no P waves."""

    signal: Signal
    no_p: bool


def held_out(source: AnnotatedSource, hold_out: HoldOut | None) -> list[AnnotatedRecord]:
    """The records of the fold that is left out of training."""
    if hold_out is None:
        return []
    return find_records(source.database, source.path)[hold_out.fold :: hold_out.folds]


def read_annotated(source: AnnotatedSource, hold_out: HoldOut | None) -> list[AnnotatedLead]:
    """Every marked lead of the records that are trained on.

    Raises
    ------
    ConfigError
        The folder holds no such records.
    """
    kept_out = {record.record_id for record in held_out(source, hold_out)}
    leads: list[AnnotatedLead] = []
    for record in find_records(source.database, source.path):
        if record.record_id not in kept_out:
            leads += _marked_leads(record, complete=source.database == "ludb")
    if not leads:
        raise ConfigError(f"no marked lead below {source.path}")
    return leads


def _marked_leads(record: AnnotatedRecord, *, complete: bool) -> Iterator[AnnotatedLead]:
    recording = ecg.read(record.path)
    for name in recording.leads:
        extension = name.lower() if complete else "q1c"
        if not record.path.with_suffix(f".{extension}").is_file():
            continue
        marks, rate = read_waves(record.path, extension)
        if not marks:
            continue
        waves = _in_seconds(marks, rate)
        first = max(0.0, float(np.nanmin(waves[:, 1:])) - _MARGIN_S)
        last = float(np.nanmax(waves[:, 1:])) + _MARGIN_S
        part = recording.select([name]).crop(first, min(last, recording.duration_s))
        waves[:, 1:] -= first
        yield AnnotatedLead(record.record_id, name, _at_source_rate(part)[0], waves, complete)


def _in_seconds(marks: Sequence[Wave], rate: float) -> npt.NDArray[np.float64]:
    rows = [
        (
            _KIND[wave.kind],
            np.nan if wave.onset is None else wave.onset / rate,
            wave.peak / rate,
            np.nan if wave.offset is None else wave.offset / rate,
        )
        for wave in marks
    ]
    waves = np.array(rows, dtype=np.float64)
    # a wave without its end tells too little
    return waves[np.isfinite(waves[:, 3])]


def _at_source_rate(recording: Recording) -> Signal:
    return fill_gaps(recording.resample(SOURCE_RATE_HZ).signal).astype(np.float32)


def read_unannotated(source: UnannotatedSource, skip: frozenset[str]) -> list[FreeLead]:
    """Usable leads of all recordings but those whose ``record_id`` is in ``skip``."""
    leads: list[FreeLead] = []
    for path, no_p in _rhythms(source):
        recording = ecg.read(path)
        if recording.record_id in skip:
            continue
        recording = recording.crop(0, min(_LONGEST_S, recording.duration_s))
        quality = assess_quality(recording)
        usable = [name for name in recording.leads if quality[name].status != "unusable"]
        if usable:
            rows = _at_source_rate(recording.select(usable))
            leads += [FreeLead(row, no_p) for row in rows]
    return leads


def _rhythms(source: UnannotatedSource) -> Iterator[tuple[Path, bool]]:
    """Each recording and whether it is in atrial fibrillation or flutter."""
    if source.kind == "cinc2017":
        table = Path(source.path) / "REFERENCE.csv"
        if not table.is_file():
            raise ConfigError(f"no REFERENCE.csv in {source.path}")
        with table.open(encoding="utf-8", newline="") as stream:
            for name, rhythm in csv.reader(stream):
                if rhythm != "~":  # too noisy for its annotators
                    yield table.with_name(f"{name}.hea"), rhythm == "A"
        return
    from ecg_agent_ray.classifier.dataset import read_source

    for record in read_source(source.kind, source.path):
        yield record.path, bool(record.positives & _FIBRILLATION)
