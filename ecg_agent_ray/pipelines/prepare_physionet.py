"""PhysioNet/CinC Challenge 2021 for pre-training: 5 s segments, and pairs of them for CMSC.

Six of its sources are used (PTB and St Petersburg are left out, as by fairseq-signals). A tenth
each of CPSC 2018 and Georgia validates and tests fine-tuning; those records are not pre-trained on.
Labels are the Challenge's 26 scored classes, ``classes.csv`` has their order.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ecg_agent_ray.classifier.challenge import CLASSES, challenge_classes
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.pipelines.prepare import (
    FORMATS,
    SPLITS,
    Format,
    Prepared,
    PreparedRecord,
    Record,
    split_by_patient,
    write_lines,
    write_manifest,
    write_segments,
)

__all__ = ["SOURCES", "prepare_physionet2021"]

SOURCES = ("cpsc_2018", "cpsc_2018_extra", "georgia", "ptb-xl", "chapman_shaoxing", "ningbo")
FINETUNING_SOURCES = ("cpsc_2018", "georgia")
SEGMENT = 2500
_LAST_CHAPMAN = 10646  # JS numbers above are Ningbo's


def prepare_physionet2021(
    root: Path,
    output: Path,
    manifest_dir: Path,
    *,
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 42,
    resample: bool = False,
    ptbxl_database: Path | None = None,
    formats: Sequence[Format] = FORMATS,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Write segments in shards and as ``<record>_<i>.mat``, and manifests.

    For the ``.mat`` files ``manifest_dir`` gets ``total/train.tsv`` (all pre-training segments),
    ``cmsc/train.tsv`` (pairs of successive segments) and ``finetune/train|valid|test.tsv``.

    The Challenge names no patients, so each record counts as one. ``ptbxl_database`` (PTB-XL's
    ``ptbxl_database.csv``) tells those of its ``HR`` records.

    Raises
    ------
    ConfigError
        No usable source under ``root``, or shares or folders do not fit.
    """
    patients = _ptbxl_patients(ptbxl_database)
    found = []
    for header in sorted(root.rglob("*.hea")):
        source = _source(header, root)
        if source in SOURCES:
            found.append((header, source, patients.get(header.stem, header.stem)))
    if not found:
        raise ConfigError(
            f"no record of the Challenge under {root}", hint=f"sources are {', '.join(SOURCES)}"
        )
    places = split_by_patient(
        (patient for _, source, patient in found if source in FINETUNING_SOURCES),
        valid=valid,
        test=test,
        seed=seed,
    )
    records = [
        Record(
            name=header.stem,
            path=str(header.resolve()),
            patient_id=patient,
            source=source,
            split=places.get(patient, "train"),
            labels=_labels(header),
        )
        for header, source, patient in found
    ]
    done = write_segments(
        records,
        output,
        classes=CLASSES,
        segment=SEGMENT,
        resample=resample,
        formats=formats,
        workers=workers,
        progress=progress,
    )
    summary = write_manifest(records, done, manifest_dir, CLASSES, output=output, segmented=True)
    if "mat" in formats:
        _write_manifests(records, done, output.resolve(), manifest_dir)
    return summary


def _write_manifests(
    records: list[Record], done: dict[str, PreparedRecord], output: Path, folder: Path
) -> None:
    usable = [record for record in records if done[record.name].error is None]

    def files(record: Record) -> list[str]:
        return [f"{record.name}_{n}.mat\t{SEGMENT}" for n in range(done[record.name].segments)]

    trained = [record for record in usable if record.split == "train"]
    segments = [line for record in trained for line in files(record)]
    write_lines(folder / "total" / "train.tsv", [str(output), *segments])
    pairs = [
        f"{record.name}\t{SEGMENT}\t0\t{first},{first + 1}"
        for record in trained
        for first in range(0, done[record.name].segments - 1, 2)
    ]
    write_lines(folder / "cmsc" / "train.tsv", [str(output), "mat", *pairs])
    for part in SPLITS:
        chosen = [r for r in usable if r.split == part and r.source in FINETUNING_SOURCES]
        lines = [line for record in chosen for line in files(record)]
        write_lines(folder / "finetune" / f"{part}.tsv", [str(output), *lines])


def _source(header: Path, root: Path) -> str | None:
    """By the folder it lies in, else by the record's name."""
    for part in header.relative_to(root).parts[:-1]:
        name = part.lower().replace("ptbxl", "ptb-xl")
        if name in SOURCES or name in ("ptb", "st_petersburg_incart"):
            return name
    match = re.fullmatch(r"(A|Q|E|HR|JS)(\d+)", header.stem)
    if match is None:
        return None
    if match[1] == "JS":
        return "chapman_shaoxing" if int(match[2]) <= _LAST_CHAPMAN else "ningbo"
    return {"A": "cpsc_2018", "Q": "cpsc_2018_extra", "E": "georgia", "HR": "ptb-xl"}[match[1]]


def _labels(header: Path) -> tuple[str, ...]:
    for line in header.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.lstrip("# ").partition(":")
        if key.strip() == "Dx":
            codes = {code.strip() for code in value.split(",")}
            return tuple(sorted(challenge_classes(codes)))
    return ()


def _ptbxl_patients(table: Path | None) -> dict[str, str]:
    if table is None:
        return {}
    try:
        with table.open(encoding="utf-8", newline="") as handle:
            return {
                f"HR{int(row['ecg_id']):05d}": f"ptbxl-{int(float(row['patient_id']))}"
                for row in csv.DictReader(handle)
            }
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{table} is not PTB-XL's database: {error!r}") from error
