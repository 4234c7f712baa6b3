"""Plain arrays and tables: CSV, TSV, Parquet, NumPy ``.npy`` and ``.npz``.

Columns are leads and rows samples (an array may lie either way; the shorter side is the leads).
Values are mV unless a column says otherwise (``II (uV)``). The rate comes from a time column
(``time``, ``t``, ``time_ms`` …) or an npz entry (``sampling_rate``, ``fs``); without one the caller
must give it.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.formats.parsed import (
    Parsed,
    check_size,
    default_leads,
    millivolts_per,
    orient,
)
from ecg_agent_ray.ecg.recording import MAX_VALUES
from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["is_table_text", "parse_npy", "parse_npz", "parse_parquet", "parse_text"]

_MAX_ITEM_BYTES = 16
_TIME = re.compile(
    r"^(?:time|t|timestamp|seconds|sec|s|ms|msec)(?:[\s_(\[]+(?P<unit>\w+)[\])]?)?$", re.I
)
_INDEX = re.compile(r"^(?:unnamed: \d+|index|sample|samples|sample_number|n)$", re.I)
_UNIT = re.compile(r"[\s_]*[\[(]\s*(?P<unit>[nuµμmcd]?v)\s*[\])]\s*$|_(?P<tail>[num]v)$", re.I)
_SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "us": 1e-6}
_MOST_GAPS = 0.9
_SIGNAL_KEYS = ("signal", "ecg", "feats", "val", "data", "p_signal", "x", "arr_0")
_RATE_KEYS = ("sampling_rate", "curr_sample_rate", "sample_rate", "fs", "sfreq")
_LEAD_KEYS = ("leads", "lead_names", "sig_name", "channels")


def parse_npy(data: bytes) -> Parsed:
    """A NumPy array of numbers; never unpickles."""
    array = _array(io.BytesIO(data), len(data), "the npy file")
    rows = orient(array, "the npy file")
    return Parsed(_numbers(rows), default_leads(len(rows)), None, "numpy")


def parse_npz(data: bytes) -> Parsed:
    """Arrays in a zip: the signal, and where present its rate and lead names."""
    entries: dict[str, npt.NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist()[:100]:
                name = info.filename.removesuffix(".npy")
                if name not in _SIGNAL_KEYS + _RATE_KEYS + _LEAD_KEYS:
                    continue
                if info.file_size > MAX_VALUES * 8:
                    raise CorruptRecordingError(f"npz entry {name} claims {info.file_size} bytes")
                with archive.open(info) as stream:
                    entries[name] = _array(stream, info.file_size, f"npz entry {name}")
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise CorruptRecordingError(f"broken npz file: {error}") from error
    except Exception as error:  # zlib.error and what a damaged archive makes of the zip reader
        if isinstance(error, CorruptRecordingError):
            raise
        raise CorruptRecordingError(f"broken npz file: {error}") from error
    key = next((k for k in _SIGNAL_KEYS if k in entries), None)
    if key is None:
        raise CorruptRecordingError(
            "the npz file holds no signal", hint=f"name the array one of {', '.join(_SIGNAL_KEYS)}"
        )
    rows = orient(entries[key], f"npz entry {key}")
    rate_key = next((k for k in _RATE_KEYS if k in entries), None)
    rate = None
    if rate_key and entries[rate_key].size == 1 and entries[rate_key].dtype.kind in "iuf":
        rate = float(entries[rate_key].reshape(-1)[0])
    lead_key = next((k for k in _LEAD_KEYS if k in entries), None)
    names = [str(n) for n in entries[lead_key].reshape(-1)] if lead_key else []
    leads = names if len(names) == len(rows) else default_leads(len(rows))
    return Parsed(_numbers(rows), leads, rate, "numpy")


def _array(stream: Any, size: int, what: str) -> npt.NDArray[Any]:
    """One npy array whose header's claim fits ``size`` bytes."""
    try:
        version = np.lib.format.read_magic(stream)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if reader is None:
            raise ValueError(f"npy version {version}")
        shape, fortran, dtype = reader(stream, max_header_size=10_000)
        count = 1
        for side in shape:
            count *= int(side)
        if dtype.kind not in "iufbU":
            raise ValueError(f"holds {dtype} values, not numbers (objects are never unpickled)")
        if count < 0 or count * dtype.itemsize > size:
            raise ValueError(f"claims {shape} x {dtype} in {size} bytes (truncated?)")
        data = stream.read(count * dtype.itemsize)
        flat = np.frombuffer(data, dtype=dtype, count=count)
        return flat.reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # the header is a Python literal: SyntaxError, TypeError, tokenize…
        raise CorruptRecordingError(f"{what}: {error}") from error


def _numbers(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return rows.astype(np.float32)


def is_table_text(data: bytes) -> bool:
    """Whether these bytes begin as lines of numbers, after at most one line of names."""
    head = data[:65536]
    if b"\0" in head or not head.strip():
        return False
    lines = _lines(head)[:6]
    lines = lines[:-1] if len(data) > len(head) and len(lines) > 1 else lines
    body = [line for line in lines if line]
    if not body:
        return False
    return _is_numeric_row(body[0]) or (len(body) > 1 and _is_numeric_row(body[1]))


def _lines(data: bytes) -> list[str]:
    text = data.decode("utf-8-sig", errors="replace")
    return [s for line in text.splitlines() if (s := line.strip()) and not s.startswith("#")]


def _delimiter(line: str) -> str:
    return next((c for c in ("\t", ";", ",") if c in line), r"\s+")


def _cells(line: str) -> list[str]:
    return _split(line, _delimiter(line))


def _split(line: str, delimiter: str) -> list[str]:
    cells = line.split() if delimiter == r"\s+" else line.split(delimiter)
    return [cell.strip().strip("\"'") for cell in cells]


def _is_numeric_row(line: str) -> bool:
    numbers = 0
    for cell in _cells(line):
        try:
            numbers += bool(cell) and float(cell) is not None
        except ValueError:
            return False
    return numbers > 0


def parse_text(data: bytes) -> Parsed:
    """Delimited text: tab, semicolon, comma or blanks; ``#`` comments; empty cells are gaps.

    Parsed here, since pandas' C parser can be brought down by broken text.
    """
    lines = _lines(data)
    names = None if _is_numeric_row(lines[0]) else _cells(lines[0])
    delimiter = _delimiter(lines[0])
    body = lines[1:] if names else lines
    n_columns = len(names) if names else len(_cells(lines[0]))
    check_size(n_columns, len(body), "the table")
    values = _matrix(body, delimiter, n_columns)
    if names is None:
        rows = orient(values, "the table")
        return Parsed(_numbers(rows), default_leads(len(rows)), None, "csv")
    return _columns(names, values, "csv")


def _matrix(lines: list[str], delimiter: str, n_columns: int) -> npt.NDArray[np.float64]:
    """(rows, columns); NaN for cells that are empty, absent or no number."""
    separator = None if delimiter == r"\s+" else delimiter
    try:
        values = np.loadtxt(lines, delimiter=separator, comments=None, quotechar='"', ndmin=2)
        if values.shape == (len(lines), n_columns):
            return values
    except ValueError:
        pass  # a gap or a stray word: the slower way below takes it cell by cell
    values = np.full((len(lines), n_columns), np.nan)
    for row, line in zip(values, lines, strict=True):
        for column, cell in enumerate(_split(line, delimiter)[:n_columns]):
            with suppress(ValueError):
                row[column] = float(cell)
    return values


def parse_parquet(data: bytes) -> Parsed:
    """A Parquet table with one column for each lead; columns that hold no numbers are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        check_size(len(file.schema_arrow), file.metadata.num_rows, "the Parquet file")
        numeric = [
            i
            for i, column in enumerate(file.schema_arrow)
            if pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        ]
        table = file.read(columns=[file.schema_arrow.names[i] for i in numeric])
        names = list(table.column_names)
        columns = [table.column(i).cast(pa.float64()).to_numpy() for i in range(len(names))]
        values = np.stack(columns, axis=1) if columns else np.empty((0, 0))
    except CorruptRecordingError:
        raise
    except Exception as error:  # Arrow's errors derive from several built-in ones
        raise CorruptRecordingError(f"broken Parquet file: {error}") from error
    return _columns(names, values, "parquet")


def _columns(names: list[str], values: npt.NDArray[np.float64], file_format: str) -> Parsed:
    """Leads, units and rate from the column names."""
    names = [str(name).strip() for name in names]
    rate: float | None = None
    keep: list[int] = []
    for position, name in enumerate(names):
        if match := _TIME.match(name):
            unit = match["unit"] or ("ms" if name.lower().startswith("ms") else "s")
            rate = rate or _rate(values[:, position], unit)
        elif not _INDEX.match(name):
            keep.append(position)
    if not keep:
        raise CorruptRecordingError(f"no column of {names[:10]} is a lead")
    rows = values[:, keep].T.copy()
    check_size(rows.shape[0], rows.shape[1], "the table")
    if np.isnan(rows).mean() > _MOST_GAPS:
        raise CorruptRecordingError("the table holds hardly any numbers")
    leads: list[str] = []
    for row, position in zip(rows, keep, strict=True):
        match = _UNIT.search(names[position])
        unit = (match["unit"] or match["tail"]) if match else "mV"
        with np.errstate(over="ignore", invalid="ignore"):
            row *= millivolts_per(unit) or 1.0
        leads.append(names[position][: match.start()] if match else names[position])
    return Parsed(_numbers(rows), _named(leads), rate, file_format)


def _named(leads: Sequence[str]) -> list[str]:
    """Column numbers (a header of 0, 1, 2 …) are no names."""
    if all(re.fullmatch(r"(?:col(?:umn)?_?)?\d+", name, re.I) for name in leads):
        return default_leads(len(leads))
    return list(leads)


def _rate(times: npt.NDArray[np.float64], unit: str) -> float | None:
    """Hz from a column of times; None where they do not step evenly upwards."""
    scale = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "us": 1e-6}.get(
        unit.lower()
    )
    finite = times[np.isfinite(times)]
    if scale is None or finite.size < 3:
        return None
    # over the whole column, so that rounded times still give the exact rate
    step = (finite[-1] - finite[0]) / (finite.size - 1) * scale
    if not step > 0 or np.max(np.abs(np.diff(finite) * scale - step)) > 0.75 * step:
        return None
    rate = 1.0 / step
    return float(round(rate)) if abs(rate - round(rate)) < 2e-3 * rate else float(rate)
