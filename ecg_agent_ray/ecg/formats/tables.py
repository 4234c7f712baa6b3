"""Tables: delimited text and Parquet. Columns are channels, rows samples.

What a column is follows from its name (``II (uV)``, ``Elapsed time``), from a line of units below
it, and from its numbers. The rate comes from a column of times, or from the lines above the table;
values without a unit are presumed to be in mV where that is possible.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.channels import Channel, axis_kind, is_counter, name_kind
from ecg_agent_ray.ecg.formats.parsed import Parsed, check_size, default_leads, orient, parsed_rows
from ecg_agent_ray.ecg.formats.table_text import TextTable, decode_text, read_table
from ecg_agent_ray.ecg.formats.table_times import (
    SECONDS,
    Timing,
    seconds_of_texts,
    timing_of,
    unit_by_step,
)
from ecg_agent_ray.ecg.units import is_unit_text, millivolts_per, tells_unit
from ecg_agent_ray.errors import CorruptRecordingError, RecordingError

__all__ = ["parse_parquet", "parse_text"]

_IN_BRACKETS = re.compile(r"^(?P<name>.*?)[\s_]*[\[(](?P<unit>[^\[\]()]+)[\])]\s*$")
_BEHIND = re.compile(r"^(?P<name>.*\S?)(?:[\s_/,:]|\s+in\s+)+(?P<unit>[^\s_/,:]+)$", re.I)
_ATTACHED = re.compile(r"^(?P<name>.*[^\W_])(?P<unit>[muµμ]V)$")
_TIME_UNITS = {
    "s": "s", "sec": "s", "secs": "s", "second": "s", "seconds": "s", "sekunden": "s",
    "ms": "ms", "msec": "ms", "millis": "ms", "milliseconds": "ms", "millisecond": "ms",
    "us": "us", "µs": "us", "μs": "us", "usec": "us", "microseconds": "us",
    "min": "min", "mins": "min", "minutes": "min",
    "ns": "ns", "nsec": "ns", "nanoseconds": "ns",
}  # fmt: skip
_RATE_KEY = re.compile(
    r"sampl|abtast|[ée]chantillon|muestr|campion|amostr|bemonster|^(?:fs|sfreq|frequency|rate)$",
    re.I,
)
_RATE_VALUE = re.compile(r"^(?P<number>\d+(?:[.,]\d+)?)\s*(?:hz|hertz|sps|samples/s.*)?$", re.I)
_PAIR = re.compile(r"^\W*(?P<key>[^,;:=\t]+?)\W*[,;:=\t]\s*(?P<value>.*?)[\s,;]*$")
_INTERVAL = re.compile(
    r"^(?P<number>\d*\.?\d+) ?(?P<unit>" + "|".join(sorted(_TIME_UNITS, key=len)[::-1]) + ")$", re.I
)
_RATE_AGREES = 0.01
_MOST_GAPS = 0.9
_MOST_UNNAMED = 64
_COLUMN_NUMBER = re.compile(r"(?:col(?:umn)?|unnamed:?)?[ _]?\d+", re.I)


@dataclass
class _Column:
    """A column before it is known what it is: numbers, or texts where it holds none."""

    name: str
    unit: str | None
    values: npt.NDArray[np.float64]
    texts: Sequence[str] | None = None


@dataclass
class _Facts:
    """What the lines above a table say."""

    rate: float | None = None
    unit: str | None = None
    lead: str | None = None
    columns: list[str] = field(default_factory=list)


def parse_text(data: bytes) -> Parsed | None:
    """The table in these bytes; None where they are none.

    Raises RecordingError where the table is ambiguous, CorruptRecordingError where it holds hardly
    any numbers or no lead.
    """
    text = decode_text(data)
    table = None if text is None else read_table(text)
    if table is None:
        return None
    facts = _facts(table.preamble)
    names, units = _names(table, facts)
    width = table.numbers.shape[1]
    if names is None and not table.texts and width > table.numbers.shape[0]:
        rows = orient(table.numbers, "the table")
        return parsed_rows(
            rows, default_leads(len(rows)), facts.rate, "csv", unit=None, are_leads=False
        )
    if names is None and width > _MOST_UNNAMED:
        raise RecordingError(
            f"{width} columns of {table.numbers.shape[0]} rows have no names: rows of many beats "
            "are no recording",
            hint="give one recording in a file, one column for each lead",
        )
    columns = [
        _column(
            names[i] if names else "",
            units[i] if units else None,
            table.numbers[:, i],
            table.texts.get(i),
        )
        for i in range(width)
    ]
    return _parsed(columns, facts, "csv", named=names is not None)


def parse_parquet(data: bytes) -> Parsed:
    """A Parquet table with one column for each channel; columns of words are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        check_size(len(file.schema_arrow), file.metadata.num_rows, "the Parquet file")
        columns = []
        for i, column in enumerate(file.schema_arrow):
            is_time = pa.types.is_timestamp(column.type) or pa.types.is_duration(column.type)
            if not (
                is_time or pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
            ):
                continue
            values = file.read(columns=[file.schema_arrow.names[i]]).column(0)
            unit = None
            if is_time:
                unit = str(column.type.unit)
                values = values.cast(pa.int64())
            numbers = values.cast(pa.float64(), safe=False).to_numpy()
            columns.append(_column(str(column.name), unit, numbers, None))
    except CorruptRecordingError:
        raise
    except Exception as error:  # Arrow's errors derive from several built-in ones
        raise CorruptRecordingError(f"broken Parquet file: {error}") from error
    return _parsed(columns, _Facts(), "parquet", named=True)


def _column(
    name: str,
    unit: str | None,
    values: npt.NDArray[np.float64],
    texts: Sequence[str] | None,
) -> _Column:
    bare, own = _without_unit(name)
    unit = (unit or own or "").strip("()[] \"'") or None
    return _Column(bare, unit, values, texts)


def _without_unit(name: str) -> tuple[str, str | None]:
    """A column's name and the unit in it: in brackets, behind a sign, or attached (``ECGmV``)."""
    name = name.strip().strip("\"'").strip()
    match = _IN_BRACKETS.match(name)
    if match and is_unit_text(match["unit"]):
        return match["name"].strip(), match["unit"].strip()
    match = _BEHIND.match(name)
    if match:
        unit, bare = match["unit"], match["name"].rstrip(" _/,:")
        # a V alone is more often a lead than volts
        if millivolts_per(unit) is not None and unit not in ("V", "v") and bare:
            return bare, unit
        if unit.lower() in _TIME_UNITS and axis_kind(bare) == "time":
            return bare, unit
    match = _ATTACHED.match(name)
    return (match["name"], match["unit"]) if match else (name, None)


def _names(table: TextTable, facts: _Facts) -> tuple[list[str] | None, list[str] | None]:
    """Column names and units from the lines above, where they have as many cells as the table."""
    width = table.numbers.shape[1]
    if len(facts.columns) == width:
        return facts.columns, None
    units: list[str] | None = None
    for cells in reversed(table.header[-3:]):
        if len(cells) == width - 1 and width > 1 and is_counter(table.numbers[:, 0]):
            cells = ["", *cells]  # row numbers have no name
        if len(cells) != width or _is_pair(cells):
            continue
        if units is None and _are_units(cells):
            units = cells
            continue
        if all(_COLUMN_NUMBER.fullmatch(cell) for cell in cells):
            return None, units
        return cells, units
    return None, units


def _are_units(cells: Sequence[str]) -> bool:
    told = [cell for cell in cells if cell]
    if not told or not all(map(is_unit_text, told)):
        return False
    # a lone V is a lead's name as well
    return any(cell.strip("()[] ").lower() != "v" for cell in told)


def _is_pair(cells: Sequence[str]) -> bool:
    """Whether a line of one or two cells is a fact and its value rather than names of columns."""
    if len(cells) == 1:
        return re.search(r"[,;:=]", cells[0]) is not None
    return (
        len(cells) == 2
        and not is_unit_text(cells[0])
        and (is_unit_text(cells[1]) or _RATE_VALUE.match(cells[1]) is not None)
        and axis_kind(cells[0]) is None
    )


def _facts(preamble: Sequence[str]) -> _Facts:
    facts = _Facts()
    for line in preamble:
        if "{" in line:
            _add_json_facts(facts, line[line.index("{") :])
            continue
        match = _PAIR.match(line)
        if match is None:
            continue
        key, value = match["key"].strip("\"' "), match["value"].strip("\"' ")
        rate = _RATE_VALUE.match(value)
        if rate and _RATE_KEY.search(key) and not re.search(r"interval|number|count", key, re.I):
            facts.rate = facts.rate or float(rate["number"].replace(",", ".")) or None
        elif millivolts_per(value) is not None and len(value) > 1:
            facts.unit = facts.unit or value
        elif facts.lead is None and name_kind(value) == "ecg" and len(value) < 24:
            facts.lead = value
    return facts


def _add_json_facts(facts: _Facts, text: str) -> None:
    """OpenSignals: a JSON object of devices with their rate, columns and sensors."""
    try:
        devices = json.loads(text)
    except ValueError:
        return
    for device in devices.values() if isinstance(devices, dict) else ():
        if not isinstance(device, dict):
            continue
        rate = device.get("sampling rate")
        if isinstance(rate, (int, float)) and rate > 0:
            facts.rate = facts.rate or float(rate)
        columns = [str(name) for name in device.get("column") or ()]
        sensors = dict(zip(device.get("label") or (), device.get("sensor") or (), strict=False))
        facts.columns = [str(sensors.get(name) or name) for name in columns]


def _parsed(columns: list[_Column], facts: _Facts, file_format: str, *, named: bool) -> Parsed:
    """Channels from columns: times and row numbers are set aside, the rest are samples."""
    others: dict[str, str] = {}
    timings: dict[str, Timing] = {}
    kept: list[_Column] = []
    for position, column in enumerate(columns):
        label = column.name or f"column {position + 1}"
        kind = axis_kind(column.name) if named else None
        if (column.unit or "").lower() in _TIME_UNITS and name_kind(column.name) == "unknown":
            kind = "time"
        may_count = kind == "index" or not column.name
        if column.texts is not None:
            times = seconds_of_texts(column.texts)
            if np.isfinite(times).mean() > _MOST_GAPS and (timing := timing_of(times)):
                timings[label] = timing
            others[label] = "it is the time" if np.isfinite(times).any() else "it holds words"
        elif kind == "time" or (may_count and is_counter(column.values)):
            if timing := _numeric_timing(column, may_be_rows=kind != "time"):
                timings[label] = timing
            others[label] = "it is the time" if kind == "time" else "it counts the rows"
        elif np.isnan(column.values).all():
            others[label] = "it holds no numbers"
        else:
            kept.append(column)
    if not kept:
        raise CorruptRecordingError(
            f"no column of the table is a lead ({', '.join(list(others)[:10])})"
        )
    if np.mean([np.isnan(column.values).mean() for column in kept]) > _MOST_GAPS:
        raise CorruptRecordingError("the table holds hardly any numbers")
    timing = _agreed(timings, facts.rate)
    names = _lead_names([column.name for column in kept], facts)
    channels = [
        Channel(
            name,
            _with_gaps(column.values, timing),
            column.unit or facts.unit,
            facts.rate or (timing.rate if timing else None),
        )
        for name, column in zip(names, kept, strict=True)
    ]
    return Parsed(channels, file_format, presumed_unit="mV", others=others)


def _numeric_timing(column: _Column, *, may_be_rows: bool) -> Timing | None:
    if interval := _INTERVAL.match((column.unit or "").strip()):
        return _counted_timing(column, interval)
    unit = _TIME_UNITS.get((column.unit or "").strip().lower())
    if unit is None and tells_unit(column.unit) and ":" not in str(column.unit):
        return None
    if unit is None:
        words = re.split(r"[\W_]+", column.name.lower())
        unit = next((_TIME_UNITS[word] for word in words if word in _TIME_UNITS), None)
    if unit is None:
        unit = unit_by_step(column.values)
    if unit is None or (may_be_rows and float(column.values[1] - column.values[0]).is_integer()):
        return None
    # from the first, so that times since an epoch keep their digits
    return timing_of((column.values - column.values[0]) * SECONDS[unit])


def _counted_timing(column: _Column, interval: re.Match[str]) -> Timing | None:
    """Row numbers whose unit is the time between rows (``0.002777 sec``)."""
    step = float(interval["number"]) * SECONDS[_TIME_UNITS[interval["unit"].lower()]]
    last_digit = 10.0 ** -len(interval["number"].partition(".")[2]) / float(interval["number"])
    if not step > 0 or timing_of(column.values * step) is None:
        return None
    rate = 1 / step
    return Timing(
        float(round(rate)) if abs(rate - round(rate)) <= rate * last_digit else rate, None
    )


def _agreed(timings: Mapping[str, Timing], told: float | None) -> Timing | None:
    """The first column's timing. Raises RecordingError where the columns, or the lines above the
    table, tell another rate."""
    if not timings:
        return None
    (first, timing), *rest = timings.items()
    for name, other in [*((n, t.rate) for n, t in rest), *([("the header", told)] if told else [])]:
        if abs(other - timing.rate) > _RATE_AGREES * timing.rate:
            raise RecordingError(
                f"{first} steps at {timing.rate:g} Hz, {name} tells {other:g} Hz",
                hint="leave the wrong one out of the file",
            )
    return timing


def _with_gaps(values: npt.NDArray[np.float64], timing: Timing | None) -> npt.NDArray[np.float64]:
    """Samples where their times put them."""
    if timing is None or timing.rows is None:
        return values
    length = int(timing.rows[-1]) + 1
    check_size(1, length, "the table with the gaps in its times")
    placed = np.full(length, np.nan)
    placed[timing.rows] = values
    return placed


def _lead_names(names: list[str], facts: _Facts) -> list[str]:
    """Names, the file's one lead, or the customary ones where columns are only numbered."""
    if all(not name or _COLUMN_NUMBER.fullmatch(name) for name in names):
        if facts.lead is not None and len(names) == 1:
            return [facts.lead]
        return default_leads(len(names))
    return [name or f"column {i + 1}" for i, name in enumerate(names)]
