"""Public data sets as fairseq-signals reads them, and our manifest beside.

Every record becomes ``.mat`` files (``feats`` (12, samples) float32 mV at 500 Hz, neither filtered
nor normalised; ``curr_sample_rate``, ``patient_id``, ``label`` (1, classes)), written by several
processes. A record that cannot be used is listed in ``errors.csv`` with its reason and the rest go
on. ``prepared.jsonl`` in the output folder says what is done: a job started again goes on there.

``manifest.csv`` has a line per file: ``file, record_id, patient_id, source, split, segment,
samples, labels``. Which records there are and where they belong is said by ``prepare_ptbxl`` and
``prepare_physionet``.
"""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ecg_agent_ray import ecg
from ecg_agent_ray.classifier.preprocessing import SAMPLING_RATE, STANDARD_LEADS
from ecg_agent_ray.errors import ConfigError, CorruptRecordingError, EcgAgentError, LeadError

__all__ = [
    "Prepared",
    "PreparedRecord",
    "Record",
    "Split",
    "split_by_patient",
    "write_lines",
    "write_manifest",
    "write_segments",
]

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_STATE = "prepared.jsonl"


@dataclass(frozen=True)
class Record:
    """A recording to prepare. ``name`` is the stem of its files, ``labels`` its class codes."""

    name: str
    path: str
    patient_id: str
    source: str
    split: Split
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreparedRecord:
    """What was written for a record: ``segments`` files of ``samples`` each, or an ``error``."""

    name: str
    segments: int = 0
    samples: int = 0
    error: str | None = None


@dataclass(frozen=True)
class _Options:
    output: str
    segment: int | None
    resample: bool
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """Outcome of a preparation; ``errors`` are (record, reason)."""

    records: dict[str, int]
    files: int
    errors: list[tuple[str, str]]
    manifest: Path

    def to_dict(self) -> dict[str, Any]:
        """The verb's JSON line; the errors are in ``errors.csv`` beside the manifest."""
        return {
            "records": self.records,
            "files": self.files,
            "n_errors": len(self.errors),
            "manifest": str(self.manifest),
        }


def split_by_patient(
    patients: Iterable[str], *, valid: float, test: float, seed: int
) -> dict[str, Split]:
    """Patient to split as ECG-Agent's scripts draw it: ids sorted (numbers by value), shuffled,
    the first slice is the test, the next the validation set.

    Raises
    ------
    ConfigError
        The shares leave nothing to train on.
    """
    if valid < 0 or test < 0 or valid + test >= 1:
        raise ConfigError(f"validation {valid:g} and test {test:g} leave nothing to train on")
    ids = sorted(set(patients), key=lambda p: (0, int(p), p) if p.isdigit() else (1, 0, p))
    random.Random(seed).shuffle(ids)
    n_test, n_valid = int(len(ids) * test), int(len(ids) * valid)
    places: dict[str, Split] = dict.fromkeys(ids, "train")
    places |= dict.fromkeys(ids[:n_test], "test")
    places |= dict.fromkeys(ids[n_test : n_test + n_valid], "valid")
    return places


def write_segments(
    records: Sequence[Record],
    output: Path,
    *,
    classes: Sequence[str],
    segment: int | None = None,
    resample: bool = False,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, PreparedRecord]:
    """Write the ``.mat`` files of all records that are not written yet.

    Parameters
    ----------
    segment
        Samples of a file: ``NAME_0.mat``, ``NAME_1.mat``, … without overlap, the remainder dropped.
        None writes each record whole as ``NAME.mat``.
    resample
        Bring other rates to 500 Hz by linear interpolation; without it such records are errors.
    progress
        Called with (done, of how many).

    Raises
    ------
    ConfigError
        ``output`` was prepared with other options, or a name occurs twice.
    """
    names = [record.name for record in records]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})[:3]
        raise ConfigError(f"several records are called {', '.join(twice)}")
    options = _Options(str(output.resolve()), segment, resample, tuple(classes))
    output.mkdir(parents=True, exist_ok=True)
    state = output / _STATE
    done = _read_state(state, options)
    waiting = [record for record in records if record.name not in done]
    with state.open("a", encoding="utf-8") as handle:
        if not handle.tell():
            handle.write(json.dumps({**asdict(options), "output": None}) + "\n")
        for result in _prepared(waiting, options, workers):
            done[result.name] = result
            handle.write(json.dumps(asdict(result)) + "\n")
            handle.flush()
            if progress:
                progress(len(done), len(records))
    return {name: done[name] for name in names}


def _read_state(path: Path, options: _Options) -> dict[str, PreparedRecord]:
    """Finished records; those with errors are tried again, as their files may be mended."""
    if not path.is_file():
        return {}
    first, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    now = json.loads(json.dumps({**asdict(options), "output": None}))
    if first and json.loads(first) != now:
        raise ConfigError(
            f"{path.parent} was prepared with other options",
            hint="take another output folder, or remove this one",
        )
    done = {}
    for line in lines:
        try:
            result = PreparedRecord(**json.loads(line))
        except ValueError:
            continue  # the line being written when a job was killed
        if result.error is None:
            done[result.name] = result
    return done


def _prepared(
    records: Sequence[Record], options: _Options, workers: int
) -> Iterator[PreparedRecord]:
    work = partial(_prepare_one, options=options)
    if workers <= 1 or len(records) < 2 * workers:
        yield from map(work, records)
        return
    # a forked child would inherit the threads of torch and Ray
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, records, chunksize=8)


def _prepare_one(record: Record, *, options: _Options) -> PreparedRecord:
    try:
        signal = _signal(record, options.resample)
    except (EcgAgentError, OSError) as error:
        return PreparedRecord(record.name, error=f"{type(error).__name__}: {error}")
    length = options.segment or signal.shape[1]
    segments = signal.shape[1] // length
    if not segments:
        seconds = signal.shape[1] / SAMPLING_RATE
        return PreparedRecord(record.name, error=f"{seconds:.2f} s are shorter than a segment")
    label = np.array([[code in record.labels for code in options.classes]], dtype=np.float32)
    patient: Any = int(record.patient_id) if record.patient_id.isdigit() else record.patient_id
    for number in range(segments):
        name = record.name if options.segment is None else f"{record.name}_{number}"
        values = {
            "feats": signal[:, number * length : (number + 1) * length],
            "curr_sample_rate": int(SAMPLING_RATE),
            "patient_id": patient,
            "label": label,
        }
        _write_mat(Path(options.output) / f"{name}.mat", values)
    return PreparedRecord(record.name, segments, length)


def _write_mat(path: Path, values: dict[str, Any]) -> None:
    from scipy.io import savemat

    # a killed job leaves no half file under the final name
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("wb") as handle:
        savemat(handle, values)
    unfinished.replace(path)


def _signal(record: Record, resample: bool) -> npt.NDArray[np.float32]:
    """(12, samples) mV at 500 Hz."""
    recording = ecg.read(record.path)
    absent = [lead for lead in STANDARD_LEADS if not recording.has(lead)]
    if absent:
        raise LeadError(f"{record.path} has no lead {', '.join(absent)}")
    signal = np.stack([recording.lead(lead) for lead in STANDARD_LEADS])
    if not np.isfinite(signal).all():
        raise CorruptRecordingError(f"{record.path} has missing samples")
    rate = recording.sampling_rate
    if rate != SAMPLING_RATE:
        if not resample:
            raise CorruptRecordingError(
                f"{record.path} is sampled at {rate:g} Hz, not 500", hint="--resample takes it"
            )
        old = np.arange(signal.shape[1]) / rate
        new = np.arange(int(signal.shape[1] * SAMPLING_RATE / rate)) / SAMPLING_RATE
        signal = np.stack([np.interp(new, old, lead) for lead in signal])
    return np.ascontiguousarray(signal, dtype=np.float32)


def write_manifest(
    records: Sequence[Record],
    done: dict[str, PreparedRecord],
    folder: Path,
    classes: Sequence[str],
    *,
    segmented: bool,
) -> Prepared:
    """``manifest.csv``, ``errors.csv`` and ``classes.csv`` in ``folder``; the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    errors: list[tuple[str, str]] = []
    rows: list[list[object]] = []
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for record in records:
        result = done[record.name]
        if result.error is not None:
            errors.append((record.name, result.error))
            continue
        counts[record.split] += 1
        for number in range(result.segments):
            file = f"{record.name}_{number}.mat" if segmented else f"{record.name}.mat"
            rows.append(
                [
                    file,
                    record.name,
                    record.patient_id,
                    record.source,
                    record.split,
                    number,
                    result.samples,
                    json.dumps(record.labels),
                ]
            )
    header = ["file", "record_id", "patient_id", "source", "split", "segment", "samples", "labels"]
    _write_csv(folder / "manifest.csv", header, rows)
    _write_csv(folder / "errors.csv", ["record_id", "reason"], errors)
    _write_csv(folder / "classes.csv", ["index", "code"], list(enumerate(classes)))
    return Prepared(counts, len(rows), errors, folder / "manifest.csv")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A fairseq-signals manifest: ``lines`` under the folder's name, which is its first line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
