"""The tables of an extraction: CSV in the published agent's columns, Parquet with everything."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecg_agent_ray.tools.measurement import VALUES

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ERROR_COLUMNS", "write_errors", "write_tables"]

Row = Mapping[str, Any]

_ROWS_IN_MEMORY = 1000
ERROR_COLUMNS = ("ecg_file_path", "error_type", "message", "tool")
# the published agent's CSV has these four, in this order
_PAPER_NAMES = {
    "PR_Interval_ms": "pr_ms",
    "QTc_ms": "qtc_bazett_ms",
    "QRS_Duration_ms": "qrs_ms",
    "Heart_Rate": "heart_rate_bpm",
}


def write_tables(tool: str, rows: Iterable[Row], output: Path) -> list[Path]:
    """Write ``TOOL.csv`` and ``TOOL.parquet`` in the order of ``rows``; returns both paths.

    Readers see the old files or the new ones, never a part.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat, schema_of = _FORMS[tool]
    paths = [output / f"{tool}.csv", output / f"{tool}.parquet"]
    partial = [path.with_name(f".{path.name}.partial") for path in paths]
    waiting = iter(rows)
    chunk = list(islice(waiting, _ROWS_IN_MEMORY))
    schema = schema_of(chunk)
    columns = list(flat({}))
    with (
        partial[0].open("w", encoding="utf-8", newline="") as stream,
        pq.ParquetWriter(partial[1], schema) as parquet,
    ):
        text = csv.writer(stream, lineterminator="\n")
        text.writerow(columns)
        while chunk:
            text.writerows([flat(row)[column] for column in columns] for row in chunk)
            table = pa.Table.from_pylist([_for_parquet(row) for row in chunk], schema=schema)
            parquet.write_table(table)
            chunk = list(islice(waiting, _ROWS_IN_MEMORY))
    for unfinished, path in zip(partial, paths, strict=True):
        unfinished.replace(path)
    return paths


def write_errors(tool: str, rows: Sequence[Row], output: Path) -> Path:
    """Write ``errors.csv``: this tool's failures, and those it holds of other tools."""
    path = output / "errors.csv"
    others: list[list[str]] = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as stream:
            kept = [row for row in csv.DictReader(stream) if row.get("tool") not in (tool, None)]
        others = [[row.get(column) or "" for column in ERROR_COLUMNS] for row in kept]
    own = [
        [row["ecg_file_path"], row["error"]["type"], row["error"]["message"], tool] for row in rows
    ]
    _write_csv(path, ERROR_COLUMNS, others + own)
    return path


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    partial.replace(path)


def _measurement_columns(row: Row) -> dict[str, Any]:
    quality = row.get("quality") or {}
    return {
        "ecg_file_path": row.get("ecg_file_path"),
        **{name: row.get(key) for name, key in _PAPER_NAMES.items()},
        **{name: row.get(name) for name in ("record_id", "lead", "status", *VALUES, "n_beats")},
        "quality_status": quality.get("status"),
        "quality_reason": quality.get("reason"),
        "notes": "; ".join(row.get("notes") or []),
    }


def _classification_columns(row: Row) -> dict[str, Any]:
    return {name: row.get(name) for name in ("ecg_file_path", "top_classes")}


def _explanation_columns(row: Row) -> dict[str, Any]:
    names = ("ecg_file_path", "text", "record_id", "label", "probability", "lead", "method")
    best = (row.get("regions") or [{}])[0]
    return {
        **{name: row.get(name) for name in names},
        **{f"region_{name}": best.get(name) for name in ("lead", "start_s", "end_s", "score")},
    }


def _for_parquet(row: Row) -> Row:
    if "heart_rate_bpm" in row:
        return {**row, **{name: row[key] for name, key in _PAPER_NAMES.items()}}
    return row


def _measurement_schema(rows: Sequence[Row]) -> pa.Schema:
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    quality = pa.struct([("status", text), ("reason", text)])
    return pa.schema(
        [("ecg_file_path", text)]
        + [(name, number) for name in _PAPER_NAMES]
        + [(name, text) for name in ("record_id", "lead", "status")]
        + [(name, number) for name in VALUES]
        + [("n_beats", whole), ("quality", quality), ("notes", pa.list_(text))]
    )


def _classification_schema(rows: Sequence[Row]) -> pa.Schema:
    import pyarrow as pa

    text = pa.string()
    codes = list(rows[0]["labels"]) if rows else []
    names = ("ecg_file_path", "top_classes", "record_id", "lead_configuration", "model")
    return pa.schema(
        [(name, text) for name in (*names, "calibration")]
        + [("labels", pa.struct([(code, pa.float64()) for code in codes]) if codes else text)]
        + [(name, pa.list_(text)) for name in ("positive", "not_assessed", "notes")]
    )


def _explanation_schema(rows: Sequence[Row]) -> pa.Schema:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    sides = [(name, number) for name in ("start_s", "end_s", "low_hz", "high_hz", "score")]
    region = [("lead", text)] + [(name, number) for name in ("start_s", "end_s", "score")]
    return pa.schema(
        [(name, text) for name in ("ecg_file_path", "text", "record_id", "label")]
        + [("probability", number), ("lead", text), ("method", text)]
        + [("cells", pa.list_(pa.struct(sides))), ("regions", pa.list_(pa.struct(region)))]
        + [("lead_configuration", text), ("model", text), ("notes", pa.list_(text))]
    )


_FORMS: dict[str, tuple[Callable[[Row], dict[str, Any]], Callable[[Sequence[Row]], pa.Schema]]] = {
    "measurements": (_measurement_columns, _measurement_schema),
    "classification": (_classification_columns, _classification_schema),
    "explanation": (_explanation_columns, _explanation_schema),
}
