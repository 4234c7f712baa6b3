"""Public data sets for training, in Parquet and as fairseq-signals reads them.

``parquet``  shards with a row for each record or segment (``classifier.shards``), which training
             reads as data of kind ``prepared``, from a disk or an object store
``mat``      a file for each (``feats`` (12, samples) float32; ``curr_sample_rate``, ``patient_id``,
             ``label`` (1, classes)), with manifests in fairseq-signals' form

Signals are mV at 500 Hz, neither filtered nor normalised. Shards are written in parallel by Ray
Data. A record that cannot be used is listed in ``errors.csv`` with its reason and the rest go on.
``prepared.jsonl`` in the output folder says what is done: a job started again goes on there.

``manifest.csv`` has a line for each row and file: ``file, shard, row, record_id, patient_id,
source, split, segment, samples, labels``; it lies in the manifest folder and, for the shards to be
used by themselves, in the output folder. Which records there are and where they belong is said by
``prepare_ptbxl`` and ``prepare_physionet``.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ecg_agent_ray.classifier.shards import MANIFEST, SHARDS
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.pipelines.prepare_shards import (
    Format,
    Options,
    PreparedRecord,
    Record,
    Split,
    prepare_all,
)

__all__ = [
    "FORMATS",
    "SPLITS",
    "Format",
    "Prepared",
    "PreparedRecord",
    "Record",
    "Split",
    "split_by_patient",
    "write_lines",
    "write_manifest",
    "write_segments",
]

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
FORMATS: tuple[Format, ...] = ("parquet", "mat")
_STATE = "prepared.jsonl"


@dataclass(frozen=True)
class Prepared:
    """Outcome of a preparation: records of each split, rows in all; ``errors`` are (record,
    reason)."""

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
    formats: Sequence[Format] = FORMATS,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, PreparedRecord]:
    """Write all records that are not written yet.

    Parameters
    ----------
    segment
        Samples of a segment (``NAME_0.mat``, ``NAME_1.mat``, …) without overlap, the remainder
        dropped. None writes each record whole (``NAME.mat``).
    resample
        Bring other rates to 500 Hz by linear interpolation; without it such records are errors.
    progress
        Called with (done, of how many).

    Raises
    ------
    ConfigError
        ``output`` was prepared with other options, a name occurs twice, or no format is given.
    ToolError
        Ray lost the workers for good; what is done is kept.
    """
    names = [record.name for record in records]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})[:3]
        raise ConfigError(f"several records are called {', '.join(twice)}")
    if not formats or set(formats) - set(FORMATS):
        raise ConfigError(f"formats {', '.join(formats) or 'none'}", hint="parquet, mat or both")
    options = Options(
        str(output.resolve()), segment, resample, tuple(classes), tuple(sorted(set(formats)))
    )
    output.mkdir(parents=True, exist_ok=True)
    state = output / _STATE
    done = _read_state(state, options)
    _remove_unfinished(output, {result.shard for result in done.values()})
    waiting = [record for record in records if record.name not in done]
    with state.open("a", encoding="utf-8") as handle:
        if not handle.tell():
            handle.write(json.dumps({**asdict(options), "output": None}) + "\n")
        elif not state.read_bytes().endswith(b"\n"):
            handle.write("\n")  # after the line being written when a job was killed
        if progress:
            progress(len(done), len(records))
        for results in prepare_all(waiting, options, workers) if waiting else ():
            # one write, so that a shard's records are listed together or not at all
            handle.write("".join(json.dumps(asdict(result)) + "\n" for result in results))
            handle.flush()
            done |= {result.name: result for result in results}
            if progress:
                progress(len(done), len(records))
    return {name: done[name] for name in names}


def _remove_unfinished(output: Path, listed: set[str | None]) -> None:
    """Shards that a killed job left unlisted would hold their records twice."""
    for path in (output / SHARDS).glob("*"):
        if f"{SHARDS}/{path.name}" not in listed:
            path.unlink()
    for path in output.glob("*.tmp"):
        path.unlink()


def _read_state(path: Path, options: Options) -> dict[str, PreparedRecord]:
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


def write_manifest(
    records: Sequence[Record],
    done: dict[str, PreparedRecord],
    folder: Path,
    classes: Sequence[str],
    *,
    output: Path,
    segmented: bool,
) -> Prepared:
    """``manifest.csv``, ``errors.csv`` and ``classes.csv`` in ``folder``, the first and the last in
    ``output`` too; the summary."""
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
                    result.shard or "",
                    result.row + number if result.shard else "",
                    record.name,
                    record.patient_id,
                    record.source,
                    record.split,
                    number,
                    result.samples,
                    json.dumps(record.labels),
                ]
            )
    header = [
        *("file", "shard", "row", "record_id", "patient_id", "source", "split", "segment"),
        *("samples", "labels"),
    ]
    for place in {folder.resolve(), output.resolve()}:
        _write_csv(place / MANIFEST, header, rows)
        _write_csv(place / "classes.csv", ["index", "code"], list(enumerate(classes)))
    _write_csv(folder / "errors.csv", ["record_id", "reason"], errors)
    return Prepared(counts, len(rows), errors, folder / MANIFEST)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A fairseq-signals manifest: ``lines`` under the folder's name, which is its first line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
