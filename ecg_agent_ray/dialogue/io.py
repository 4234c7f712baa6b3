"""Dialogue files: ECG-MTD rows in JSON Lines or Parquet, every malformed row reported.

Where a path is taken, so is the name of a data set on a hub; see :mod:`ecg_agent_ray.dialogue.hub`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecg_agent_ray.dialogue.hub import SUFFIXES, hub_files, is_hub_name, lead_of_name
from ecg_agent_ray.dialogue.turns import Dialogue, LeadConfiguration
from ecg_agent_ray.errors import DialogueError

__all__ = [
    "DialogueFile",
    "RowProblem",
    "dialogue_files",
    "load_dialogues",
    "read_dialogues",
    "write_dialogues",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that is no dialogue: where it is, and what is wrong with it."""

    path: str
    row: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}: {self.message}"


@dataclass(frozen=True, slots=True)
class DialogueFile:
    """What was read: the good rows, the bad ones, and how many there were in all."""

    dialogues: list[Dialogue]
    problems: list[RowProblem] = field(default_factory=list)
    n_rows: int = 0


def load_dialogues(
    path: str | Path, *, lead_configuration: LeadConfiguration | None = None
) -> DialogueFile:
    """Read a file, every such file in a folder in the order of their names, or a hub's data set.

    A row is read whole or not at all: a dialogue with a turn left out would teach a wrong next
    action. ``lead_configuration`` is noted where a row says nothing; None takes what the name of
    a published data set tells, else 12-lead. Raises :class:`DialogueError` where the path or its
    format is unusable; malformed rows are listed in ``problems``.
    """
    leads = lead_configuration or lead_of_name(str(path)) or "12-lead"
    dialogues: list[Dialogue] = []
    problems: list[RowProblem] = []
    n_rows = 0
    for file in dialogue_files(path):
        for number, row in enumerate(_rows(file)):
            n_rows += 1
            try:
                if isinstance(row, DialogueError):
                    raise row
                dialogues.append(Dialogue.from_row(row, lead_configuration=leads))
            except DialogueError as error:
                problems.append(RowProblem(str(file), number, error.message))
    return DialogueFile(dialogues, problems, n_rows)


def read_dialogues(
    path: str | Path, *, lead_configuration: LeadConfiguration | None = None, strict: bool = False
) -> list[Dialogue]:
    """The dialogues of a file, a folder or a hub's data set.

    Malformed rows are counted in a warning, each with its fault; with ``strict``, or where no row
    at all could be read, they raise :class:`DialogueError` instead. :func:`load_dialogues` gives
    them as objects.
    """
    loaded = load_dialogues(path, lead_configuration=lead_configuration)
    if loaded.problems:
        shown = "; ".join(str(problem) for problem in loaded.problems[:5])
        more = len(loaded.problems) - 5
        message = f"{len(loaded.problems)} of {loaded.n_rows} rows are no dialogues: {shown}" + (
            f"; and {more} more" if more > 0 else ""
        )
        if strict or not loaded.dialogues:
            raise DialogueError(message)
        _log.warning("%s", message)
    elif not loaded.dialogues:
        raise DialogueError(f"{path} holds no rows")
    return loaded.dialogues


def write_dialogues(path: str | Path, dialogues: Iterable[Dialogue]) -> Path:
    """Write rows as JSON Lines or, for a ``.parquet`` name, as Parquet. Folders are made."""
    target = Path(path)
    _check_suffix(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = [dialogue.to_row() for dialogue in dialogues]
    if target.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), target)
    elif target.suffix == ".json":
        target.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        with target.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return target


def dialogue_files(source: str | Path) -> list[Path]:
    """The files of a path, of a shipped part or of a hub's data set, in the order of their names.

    ``builtin:train`` and ``builtin:held_out`` are the parts of the data set that the package
    carries. Raises :class:`DialogueError` where there are none.
    """
    if str(source).startswith("builtin:"):
        return [_shipped(str(source).removeprefix("builtin:"))]
    if is_hub_name(source):
        return hub_files(str(source))
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
        if not found:
            raise DialogueError(f"{path} holds no {', '.join(SUFFIXES)} file")
        return found
    if not path.is_file():
        raise DialogueError(f"{path} does not exist")
    _check_suffix(path)
    return [path]


def _shipped(part: str) -> Path:
    folder = Path(__file__).resolve().parent.parent / "_data" / "dialogues"
    path = folder / f"{part}.jsonl"
    if not path.is_file():
        parts = ", ".join(f"builtin:{item.stem}" for item in sorted(folder.glob("*.jsonl")))
        raise DialogueError(f"the package carries no dialogues {part!r}", hint=f"use {parts}")
    return path


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise DialogueError(
            f"{path} is of no dialogue format", hint=f"use one of {', '.join(SUFFIXES)}"
        )


def _rows(path: Path) -> Iterator[Mapping[str, Any] | DialogueError]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DialogueError(f"{path} cannot be read: {error}") from error
    if path.suffix == ".json":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise DialogueError(f"{path} is no JSON: {error}") from error
        for item in content if isinstance(content, list) else [content]:
            yield _row(item)
        return
    # not splitlines(): it also breaks at characters that JSON allows inside text
    for line in text.split("\n"):
        if line.strip():
            try:
                yield _row(json.loads(line))
            except json.JSONDecodeError as error:
                yield DialogueError(f"no JSON: {error}")


def _row(item: Any) -> Mapping[str, Any] | DialogueError:
    if isinstance(item, dict):
        return item
    return DialogueError(f"a row is {type(item).__name__}, not an object")


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(path).iter_batches()
        for batch in batches:
            for row in batch.to_pylist():
                # a column that some rows lack comes back as null in those
                yield {key: value for key, value in row.items() if value is not None}
    except (OSError, pa.ArrowInvalid) as error:
        raise DialogueError(f"{path} is no readable Parquet file: {error}") from error
