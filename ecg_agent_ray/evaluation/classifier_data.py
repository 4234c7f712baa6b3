"""Labelled recordings of any known data set, to evaluate classifier and explanation on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ecg_agent_ray.classifier.dataset import (
    LabelledRecord,
    SourceKind,
    read_recording,
    read_source,
)
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import ConfigError, RecordingError

__all__ = ["labelled_records", "readable", "source_kind"]

_TABLES: dict[str, SourceKind] = {
    "ptbxl_database.csv": "ptbxl",
    "ludb.csv": "ludb",
    "records.csv": "manifest",
    "manifest.csv": "prepared",
}


def source_kind(path: str | Path) -> SourceKind:
    """What kind of data set a folder or file is, by the table it has.

    A folder without one is taken for PhysioNet/CinC Challenge data if it has WFDB headers.

    Raises
    ------
    ConfigError
        Nothing is there, or nothing that is known.
    """
    path = Path(path)
    if path.is_file():
        return "manifest"
    for name, kind in _TABLES.items():
        if (path / name).is_file():
            return kind
    if path.is_dir() and next(path.rglob("*.hea"), None) is not None:
        return "physionet"
    raise ConfigError(
        f"no labelled recordings at {path}",
        hint=f"a folder with {', '.join(_TABLES)} or PhysioNet headers with Dx lines, or a CSV "
        "of ecg_id, patient_id, scp_codes, filename",
    )


def labelled_records(
    path: str | Path, only: Sequence[str] | None = None, split: str | None = None
) -> tuple[SourceKind, list[LabelledRecord]]:
    """The data set's kind and its records; ``only`` keeps those of these ids or file stems,
    ``split`` those of the data set's own ``train``, ``valid`` or ``test`` split.

    Raises
    ------
    ConfigError
        As :func:`source_kind` and :func:`~ecg_agent_ray.classifier.dataset.read_source`, or not
        every one of ``only`` is there.
    """
    kind = source_kind(path)
    records = read_source(kind, path)
    if split is not None:
        records = [record for record in records if record.split == split]
        if not records:
            raise ConfigError(
                f"{path} has no records of split {split!r}",
                hint="train, valid or test; PTB-XL and prepared data have splits",
            )
    if only is None:
        return kind, records
    wanted = set(only)
    kept = [r for r in records if {r.record_id, r.path.stem} & wanted]
    known = {name for r in kept for name in (r.record_id, r.path.stem)}
    if missing := sorted(wanted - known):
        raise ConfigError(f"{path} has no record {', '.join(missing[:10])}")
    return kind, kept


def readable(
    records: Sequence[LabelledRecord], failed: Callable[[LabelledRecord, Exception], None]
) -> Iterator[tuple[LabelledRecord, Recording]]:
    """Each record with its recording; one that cannot be read goes to ``failed``."""
    for record in records:
        try:
            yield record, read_recording(record)
        except RecordingError as error:
            failed(record, error)
