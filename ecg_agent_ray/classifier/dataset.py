"""Labelled recordings from the data sets a classifier is trained on.

A source is a folder or file of one of these kinds:

``manifest``  CSV with ``ecg_id, patient_id, scp_codes, filename`` (a dict of statement to
likelihood),
              file names relative to the CSV; a folder means the ``records.csv`` in it
``ptbxl``     a PTB-XL tree with ``ptbxl_database.csv``
``ludb``      a LUDB tree with ``ludb.csv``
``prepared``  what ``data prepare`` wrote: a folder or URL with ``manifest.csv`` and shards
``physionet`` a folder of PhysioNet/CinC Challenge headers with ``# Dx`` SNOMED CT codes; both the
              Challenge's 26 scored classes and the statements of the same meaning are labels

Only PTB-XL's cardiologists chose from all 71 statements. For the others a code that was not given
says nothing about statements the data set has no word for: those cells are *not assessed* and take
no part in loss or metrics.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ecg_agent_ray import ecg
from ecg_agent_ray.classifier.challenge import CLASSES, challenge_classes
from ecg_agent_ray.classifier.labels import LABELS
from ecg_agent_ray.classifier.shards import MANIFEST, read_row
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import ConfigError, ModelNotFoundError
from ecg_agent_ray.plugins.fetch import fetched, is_url

__all__ = [
    "SOURCE_KINDS",
    "LabelledRecord",
    "SourceKind",
    "label_matrix",
    "read_recording",
    "read_source",
]

SourceKind = Literal["manifest", "ptbxl", "ludb", "physionet", "prepared"]


@dataclass(frozen=True)
class LabelledRecord:
    """A recording's file, whose it is, its statements, and which statements were looked for."""

    record_id: str
    patient_id: str
    path: Path
    positives: frozenset[str]
    assessed: frozenset[str]
    split: str | None = None
    """``train``, ``valid`` or ``test`` where the data set has such a division."""
    shard: str | None = None
    """Path or URL of the Parquet shard that holds it in ``row``; then ``path`` is but a name."""
    row: int = 0
    source_record: str | None = None
    """The record that it is a segment of, where it was cut when it was prepared."""
    samples: int = 0
    """At 500 Hz, where that is known without reading it; else 0."""


_ALL = frozenset(LABELS)
_FOLDS = {"9": "valid", "10": "test"}  # as recommended by PTB-XL's authors

# LUDB's words (first part before a comma, lower case) as SCP statements. Its hypertrophy and
# ischaemia are diagnoses of the patient's history too, so they are not taken as assessed.
_LUDB_WORDS = {
    "sinus rhythm": "SR",
    "sinus bradycardia": "SBRAD",
    "sinus tachycardia": "STACH",
    "sinus arrhythmia": "SARRH",
    "irregular sinus rhythm": "SARRH",
    "atrial fibrillation": "AFIB",
    "atrial flutter": "AFLT",
    "i degree av block": "1AVB",
    "iii degree av-block": "3AVB",
    "incomplete right bundle branch block": "IRBBB",
    "complete right bundle branch block": "CRBBB",
    "incomplete left bundle branch block": "ILBBB",
    "complete left bundle branch block": "CLBBB",
    "left anterior hemiblock": "LAFB",
    "non-specific intravintricular conduction delay": "IVCD",
    "unipolar ventricular pacing": "PACE",
    "bipolar ventricular pacing": "PACE",
    "biventricular pacing": "PACE",
}
_LUDB_ASSESSED = frozenset(_LUDB_WORDS.values())

# SNOMED CT codes of the challenge that have one SCP statement of the same meaning.
_SNOMED = {
    "426783006": "SR",
    "426177001": "SBRAD",
    "427084000": "STACH",
    "427393009": "SARRH",
    "164889003": "AFIB",
    "164890007": "AFLT",
    "59118001": "CRBBB",
    "713427006": "CRBBB",
    "713426002": "IRBBB",
    "164909002": "CLBBB",
    "733534002": "CLBBB",
    "445118002": "LAFB",
    "270492004": "1AVB",
    "10370003": "PACE",
}
_SNOMED_ASSESSED = frozenset(_SNOMED.values()) | frozenset(CLASSES)


def read_source(kind: SourceKind, path: str | Path) -> list[LabelledRecord]:
    """All labelled recordings of a source, in the order of its table; signals are not read yet.

    Raises
    ------
    ConfigError
        The source is not there or its table is not what the kind says.
    """
    reader = _READERS.get(kind, _read_manifest)
    if kind not in SOURCE_KINDS:
        raise ConfigError(f"unknown data kind {kind!r}", hint=f"one of {', '.join(SOURCE_KINDS)}")
    try:
        if kind == "prepared":
            return _read_prepared(str(path))
        # absolute, since a worker has another working directory
        records = reader(Path(path).resolve())
    except FileNotFoundError as error:
        raise ConfigError(f"{kind} data at {path}: {error.filename} is not there") from error
    except (KeyError, ValueError, SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"{kind} data at {path} is not in its form: {error!r}") from error
    if not records:
        raise ConfigError(f"{kind} data at {path} holds no recordings")
    absent = [r.path for r in records if not r.path.with_suffix(".hea").is_file()]
    if absent:
        raise ConfigError(
            f"{kind} data at {path}: {len(absent)} of {len(records)} recordings are not there, "
            f"the first {absent[0]}"
        )
    return records


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _statements(text: str) -> frozenset[str]:
    """PTB-XL's ``scp_codes``. Likelihood 0 means "not stated" (rhythm, form), so it counts too."""
    codes = ast.literal_eval(text)
    unknown = set(codes) - _ALL
    if unknown:
        raise ValueError(f"unknown statements {', '.join(sorted(unknown))}")
    return frozenset(codes)


def _read_manifest(path: Path) -> list[LabelledRecord]:
    table = path / "records.csv" if path.is_dir() else path
    return [
        LabelledRecord(
            record_id=Path(row["filename"]).stem,
            patient_id=f"ptbxl-{_integer(row['patient_id'])}",
            path=table.parent / row["filename"],
            positives=_statements(row["scp_codes"]),
            assessed=_ALL,
        )
        for row in _rows(table)
    ]


def _read_ptbxl(path: Path) -> list[LabelledRecord]:
    return [
        LabelledRecord(
            record_id=f"ptbxl-{row['ecg_id']}",
            patient_id=f"ptbxl-{_integer(row['patient_id'])}",
            path=path / row["filename_hr"],
            positives=_statements(row["scp_codes"]),
            assessed=_ALL,
            split=_FOLDS.get(row.get("strat_fold", ""), "train"),
        )
        for row in _rows(path / "ptbxl_database.csv")
    ]


def _integer(text: str) -> str:
    """PTB-XL writes patient ids as ``15709.0``."""
    return str(int(float(text)))


def _read_ludb(path: Path) -> list[LabelledRecord]:
    headers = {header.stem: header for header in sorted(path.rglob("*.hea"))}
    records = []
    for row in _rows(path / "ludb.csv"):
        number = row["ID"].strip()
        words = {
            line.split(",")[0].strip().lower()
            for column, cell in row.items()
            if column not in ("ID", "Sex", "Age")
            for line in (cell or "").splitlines()
        }
        records.append(
            LabelledRecord(
                record_id=f"ludb-{number}",
                patient_id=f"ludb-{number}",
                path=headers[number],
                positives=frozenset(_LUDB_WORDS[word] for word in words & set(_LUDB_WORDS)),
                assessed=_LUDB_ASSESSED,
            )
        )
    return records


def _read_physionet(path: Path) -> list[LabelledRecord]:
    records = []
    for header in sorted(path.rglob("*.hea")):
        codes = set()
        for line in header.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.lstrip("# ").partition(":")
            if key.strip() == "Dx":
                codes = {code.strip() for code in value.split(",")}
        # HR numbers are PTB-XL's records under another name, and carry fewer statements there
        if not codes or header.stem.startswith("HR"):
            continue
        records.append(
            LabelledRecord(
                record_id=header.stem,
                patient_id=f"physionet-{header.stem}",
                path=header,
                positives=frozenset(_SNOMED[code] for code in codes & set(_SNOMED))
                | challenge_classes(codes),
                assessed=_SNOMED_ASSESSED,
            )
        )
    return records


def _read_prepared(folder: str) -> list[LabelledRecord]:
    if not is_url(folder):
        folder = str(Path(folder).resolve())
    folder = folder.rstrip("/")
    try:
        tables = {name: _rows(fetched(f"{folder}/{name}")) for name in (MANIFEST, "classes.csv")}
    except ModelNotFoundError as error:
        raise ConfigError(
            f"prepared data is not there: {error.message}", hint="it is made by `data prepare`"
        ) from error
    assessed = frozenset(row["code"] for row in tables["classes.csv"])
    records = [
        LabelledRecord(
            record_id=row["file"].removesuffix(".mat"),
            patient_id=_prepared_patient(row["patient_id"]),
            path=Path(row["file"]),
            positives=frozenset(json.loads(row["labels"])),
            assessed=assessed,
            split=row["split"],
            shard=f"{folder}/{row['shard']}",
            row=int(row["row"]),
            source_record=row["record_id"],
            samples=int(row["samples"]),
        )
        for row in tables[MANIFEST]
        if row["shard"]
    ]
    if not records:
        raise ConfigError(
            f"prepared data at {folder} holds no Parquet shards",
            hint="prepare it again with --format parquet",
        )
    return records


def _prepared_patient(patient: str) -> str:
    """As the other kinds call them, so that a patient is known again."""
    if patient.isdigit():
        return f"ptbxl-{patient}"
    return patient if patient.startswith("ptbxl-") else f"physionet-{patient}"


def read_recording(record: LabelledRecord) -> Recording:
    """The recording itself.

    Raises
    ------
    RecordingError
        As :func:`ecg_agent_ray.ecg.read`.
    """
    if record.shard is not None:
        return read_row(record.shard, record.row, record.record_id)
    header = record.path.with_name(f"{record.path.name}.hea")
    return ecg.read(header if header.is_file() else record.path)


_READERS: dict[str, Callable[[Path], list[LabelledRecord]]] = {
    "manifest": _read_manifest,
    "ptbxl": _read_ptbxl,
    "ludb": _read_ludb,
    "physionet": _read_physionet,
}
SOURCE_KINDS: tuple[str, ...] = (*_READERS, "prepared")


def label_matrix(
    records: Sequence[LabelledRecord], labels: Sequence[str], taught: Iterable[str] | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Targets and cell mask, both (records, labels) of 0 and 1; the mask is 1 where assessed.

    ``taught`` restricts the mask to these labels.
    """
    wanted = set(labels if taught is None else taught)
    targets = np.zeros((len(records), len(labels)), dtype=np.float32)
    mask = np.zeros_like(targets)
    for row, record in enumerate(records):
        for column, code in enumerate(labels):
            targets[row, column] = code in record.positives
            mask[row, column] = code in record.assessed and code in wanted
    return targets, mask
