"""The recordings below a folder, each once."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from ecg_agent_ray.errors import ConfigError

__all__ = ["find_recordings"]

_SUFFIXES = frozenset(
    (
        *(".hea", ".mat", ".csv", ".tsv", ".npy", ".npz", ".parquet"),
        *(".edf", ".bdf", ".dcm", ".xml", ".scp", ".ecg"),
    )
)
_TEXT_TABLES = frozenset((".csv", ".tsv"))
# a table with one of these columns tells of recordings and is none itself
_COLUMNS_OF_LISTS = frozenset(
    (
        *("ecg_id", "ecg_file_path", "patient_id", "record", "record_id", "record_name"),
        *("filename", "file_name", "filename_hr", "scp_codes", "diagnostic", "description"),
        *("id", "sex", "age", "label", "labels"),
    )
)
_LISTS = frozenset(("reference.csv", "reference-original.csv", "records.csv"))


def find_recordings(directory: Path, *, without: Path | None = None) -> list[str]:
    """Paths relative to ``directory`` with forward slashes, in the order of their names.

    A WFDB record is found by its header, so that its other files are not taken for recordings;
    other formats by their suffix (their content is looked at when they are read). Tables that list
    recordings, like PTB-XL's and LUDB's, are left out, as is the folder ``without``.

    Raises
    ------
    ConfigError
        No such folder, or no recording in it.
    """
    if not directory.is_dir():
        raise ConfigError(f"no folder of recordings at {directory}")
    left_out = without.resolve() if without is not None else None
    found = [
        path.relative_to(directory).as_posix()
        for folder, names in _walk(directory, left_out)
        for path in _recordings_in(folder, names)
    ]
    if not found:
        raise ConfigError(
            f"{directory} holds no recording",
            hint=f"files that end in {', '.join(sorted(_SUFFIXES))} are looked at",
        )
    return sorted(found)


def _walk(directory: Path, left_out: Path | None) -> Iterator[tuple[Path, list[str]]]:
    """Folders with their files. Links are followed, each folder is entered once."""
    entered = set()
    for folder, folders, files in os.walk(directory, followlinks=True):
        entered.add(Path(folder).resolve())
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and (target := Path(folder, name).resolve()) not in entered
            and target != left_out
        ]
        yield Path(folder), files


def _recordings_in(folder: Path, names: list[str]) -> Iterator[Path]:
    headers = {Path(name).stem for name in names if name.endswith(".hea")}
    for name in names:
        path = folder / name
        suffix = path.suffix.lower()
        if suffix not in _SUFFIXES or name.startswith("."):
            continue
        if suffix == ".mat" and path.stem in headers:
            continue
        if suffix in _TEXT_TABLES and _is_list(path):
            continue
        yield path


def _is_list(path: Path) -> bool:
    if path.name.lower() in _LISTS:
        return True
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as stream:
            first = stream.readline(4096)
    except OSError:
        return False  # reading it will say what is wrong
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    cells = next(csv.reader([first], delimiter=delimiter), [])
    return any(cell.strip().lower() in _COLUMNS_OF_LISTS for cell in cells)
