"""PTB-XL for fine-tuning: whole 10 s records with all 71 statements.

A statement counts when it is in ``scp_codes`` whatever its likelihood: rhythm and form statements
carry 0.0 there, which means "not rated", and so do some diagnostic ones. Labels stand in the order
of ``classifier.LABELS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from ecg_agent_ray.classifier.labels import LABELS
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.pipelines.prepare import (
    FORMATS,
    SPLITS,
    Format,
    Prepared,
    Record,
    Split,
    split_by_patient,
    write_lines,
    write_manifest,
    write_segments,
)

__all__ = ["SplitRule", "prepare_ptbxl"]

SplitRule = Literal["official", "patient"]
_VALID_FOLD, _TEST_FOLD = 9, 10  # as recommended by PTB-XL's authors


def prepare_ptbxl(
    root: Path,
    output: Path,
    manifest_dir: Path,
    *,
    split: SplitRule = "official",
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 42,
    formats: Sequence[Format] = FORMATS,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Write shards, ``HR<ecg_id>.mat`` files with ``train|valid|test.tsv``, and our manifest.

    ``official`` takes ``strat_fold`` 9 for validation and 10 for the test; ``patient`` draws
    patients with ``seed``. Both keep a patient's records together.

    Raises
    ------
    ConfigError
        ``root`` is no PTB-XL tree, or shares or folders do not fit.
    """
    rows = _rows(root)
    drawn = split_by_patient((row[1] for row in rows), valid=valid, test=test, seed=seed)
    folds: dict[int, Split] = {_VALID_FOLD: "valid", _TEST_FOLD: "test"}
    records = [
        Record(
            name=f"HR{ecg_id:05d}",
            path=str((root / file).resolve()),
            patient_id=patient,
            source="ptb-xl",
            split=drawn[patient] if split == "patient" else folds.get(fold, "train"),
            labels=codes,
        )
        for ecg_id, patient, fold, codes, file in rows
    ]
    done = write_segments(
        records, output, classes=LABELS, formats=formats, workers=workers, progress=progress
    )
    summary = write_manifest(records, done, manifest_dir, LABELS, output=output, segmented=False)
    for part in SPLITS if "mat" in formats else ():
        lines = [str(output.resolve())]
        lines += [
            f"{record.name}.mat\t{done[record.name].samples}"
            for record in records
            if record.split == part and done[record.name].error is None
        ]
        write_lines(manifest_dir / f"{part}.tsv", lines)
    return summary


def _rows(root: Path) -> list[tuple[int, str, int, tuple[str, ...], str]]:
    """(ecg_id, patient, fold, statements, file) of each line of the database."""
    import ast
    import csv

    table = root / "ptbxl_database.csv"
    rows = []
    try:
        with table.open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle):
                codes = tuple(sorted(ast.literal_eval(row["scp_codes"])))
                if unknown := set(codes) - set(LABELS):
                    raise ValueError(f"unknown statements {', '.join(sorted(unknown))}")
                patient = str(int(float(row["patient_id"])))
                fold = int(row["strat_fold"])
                rows.append((int(row["ecg_id"]), patient, fold, codes, row["filename_hr"]))
    except FileNotFoundError as error:
        raise ConfigError(f"{root} is no PTB-XL tree: there is no {table.name}") from error
    except (KeyError, ValueError, SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"{table} is not in PTB-XL's form: {error!r}") from error
    if not rows:
        raise ConfigError(f"{table} has no records")
    return rows
