"""EDF, EDF+ and BDF, continuous and with gaps.

Decoded here, since what recorders write strays from the specification: decimal commas in the
header, the micro sign in any encoding, an unknown number of data records. Formats: Kemp et al.
1992, https://www.edfplus.info/specs/edf.html, https://www.edfplus.info/specs/edfplus.html and
https://www.biosemi.com/faq/file_format.htm.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.channels import Channel
from ecg_agent_ray.ecg.formats.parsed import Parsed, check_size
from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["is_edf", "parse_edf"]

_FIELDS: tuple[tuple[str, int], ...] = (
    ("label", 16),
    ("transducer", 80),
    ("dimension", 8),
    ("physical_min", 8),
    ("physical_max", 8),
    ("digital_min", 8),
    ("digital_max", 8),
    ("filters", 80),
    ("samples", 8),
    ("reserved", 32),
)
_SIGNAL_HEADER_BYTES = sum(width for _, width in _FIELDS)
_HEADER_BYTES = 256
_ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
_ONSET = re.compile(rb"^([+-]\d+(?:[.,]\d+)?)(?:\x15[\d.,]*)?\x14\x14")


@dataclass(frozen=True)
class _Signal:
    label: str
    dimension: str
    physical: tuple[float, float]
    digital: tuple[float, float]
    samples: int
    """In a data record."""
    at: int
    """First byte within a data record."""


@dataclass(frozen=True)
class _Header:
    signals: tuple[_Signal, ...]
    n_records: int
    record_s: float
    sample_bytes: int
    record_bytes: int
    data_at: int
    discontinuous: bool


def is_edf(data: bytes) -> bool:
    return data[:8] in (b"0       ", b"\xffBIOSEMI")


def parse_edf(data: bytes) -> Parsed:
    """Every signal at its own rate; the gaps of a discontinuous file are NaN.

    Raises CorruptRecordingError where the header contradicts itself or the file's length.
    """
    header = _header(data)
    records = np.frombuffer(
        data, np.uint8, header.n_records * header.record_bytes, header.data_at
    ).reshape(header.n_records, header.record_bytes)
    starts = _starts(records, header)
    channels = []
    for signal in header.signals:
        if signal.label in _ANNOTATIONS:
            continue
        rate = signal.samples / header.record_s if header.record_s > 0 else None
        digits = _digits(records, signal, header.sample_bytes)
        values, unit = _physical(digits, signal)
        if starts is not None and rate is not None:
            values = _spread(values, starts, rate, signal.label)
        channels.append(Channel(signal.label, values.reshape(-1), unit, rate))
    if not channels:
        raise CorruptRecordingError("the EDF/BDF file holds annotations only")
    return Parsed(channels, "bdf" if data[:1] == b"\xff" else "edf")


def _text(field: bytes) -> str:
    try:
        text = field.decode("utf-8")
    except UnicodeDecodeError:
        text = field.decode("latin-1")
    return text.replace("\0", " ").strip()


def _number(field: bytes, what: str) -> float:
    text = _text(field)
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CorruptRecordingError(f"the EDF/BDF {what} is {text!r}, which is no number")
    return value


def _whole(field: bytes, what: str) -> int:
    return round(_number(field, what))


def _header(data: bytes) -> _Header:
    if len(data) < _HEADER_BYTES:
        raise CorruptRecordingError("the EDF/BDF file ends within its header (truncated?)")
    n_signals = _whole(data[252:256], "number of signals")
    check_size(n_signals, 1, "the EDF/BDF header")
    data_at = _HEADER_BYTES + n_signals * _SIGNAL_HEADER_BYTES
    if _whole(data[184:192], "header length") != data_at or len(data) < data_at:
        raise CorruptRecordingError(
            f"the EDF/BDF header of {n_signals} signals is not as long as it says (truncated?)"
        )
    sample_bytes = 3 if data[:1] == b"\xff" else 2
    signals = _signals(data, n_signals, sample_bytes)
    record_bytes = sum(signal.samples for signal in signals) * sample_bytes
    if record_bytes <= 0:
        raise CorruptRecordingError("the EDF/BDF header announces no samples")
    there = (len(data) - data_at) // record_bytes
    n_records = _whole(data[236:244], "number of data records")
    # recorders write -1 while they record, and some never come back to put the number in
    n_records = there if n_records == -1 else n_records
    check_size(n_signals, max(s.samples for s in signals) * max(n_records, 0), "the EDF/BDF file")
    if n_records > there:
        raise CorruptRecordingError(
            f"the EDF/BDF header announces {data_at + n_records * record_bytes} bytes, the file "
            f"has {len(data)} (truncated?)"
        )
    record_s = _number(data[244:252], "data record's duration")
    discontinuous = data[192:197] in (b"EDF+D", b"BDF+D")
    return _Header(signals, n_records, record_s, sample_bytes, record_bytes, data_at, discontinuous)


def _signals(data: bytes, n_signals: int, sample_bytes: int) -> tuple[_Signal, ...]:
    columns: dict[str, list[bytes]] = {}
    at = _HEADER_BYTES
    for name, width in _FIELDS:
        columns[name] = [data[at + i * width : at + (i + 1) * width] for i in range(n_signals)]
        at += n_signals * width
    signals: list[_Signal] = []
    offset = 0
    for i in range(n_signals):
        label = _text(columns["label"][i])
        samples = _whole(columns["samples"][i], f"number of samples of {label}")
        if samples < 0:
            raise CorruptRecordingError(f"the EDF/BDF signal {label} announces {samples} samples")
        limits = [
            _number(columns[name][i], f"{name.replace('_', ' ')}imum of {label}")
            for name in ("physical_min", "physical_max", "digital_min", "digital_max")
        ]
        dimension = _text(columns["dimension"][i])
        physical, digital = (limits[0], limits[1]), (limits[2], limits[3])
        signals.append(_Signal(label, dimension, physical, digital, samples, offset))
        offset += samples * sample_bytes
    return tuple(signals)


def _digits(
    records: npt.NDArray[np.uint8], signal: _Signal, sample_bytes: int
) -> npt.NDArray[np.int32]:
    """(records, samples in a record)."""
    octets = records[:, signal.at : signal.at + signal.samples * sample_bytes]
    octets = np.ascontiguousarray(octets)
    if sample_bytes == 2:
        return octets.view("<i2").astype(np.int32)
    trios = octets.reshape(len(octets), signal.samples, 3).astype(np.int32)
    values = trios[..., 0] | (trios[..., 1] << 8) | (trios[..., 2] << 16)
    return np.where(values >= 1 << 23, values - (1 << 24), values)


def _physical(
    digits: npt.NDArray[np.int32], signal: _Signal
) -> tuple[npt.NDArray[np.float64], str | None]:
    """Values and their unit; counts without one where the header gives no scale."""
    (low, high), (first, last) = signal.physical, signal.digital
    if low == high or first == last:
        return digits.astype(np.float64), None
    with np.errstate(over="ignore", invalid="ignore"):
        gain = (high - low) / (last - first)
        values: npt.NDArray[np.float64] = (digits.astype(np.float64) - first) * gain + low
    return values, signal.dimension or None


def _starts(records: npt.NDArray[np.uint8], header: _Header) -> list[float] | None:
    """Seconds at which each data record begins; None where one follows on the other."""
    if not header.discontinuous:
        return None
    annotations = next((s for s in header.signals if s.label in _ANNOTATIONS), None)
    if annotations is None:
        raise CorruptRecordingError(
            "the discontinuous EDF+ file does not tell when its data records begin",
            hint="export it as continuous EDF, or with its annotations signal",
        )
    width = annotations.samples * header.sample_bytes
    starts: list[float] = []
    for row in records[:, annotations.at : annotations.at + width]:
        match = _ONSET.match(row.tobytes())
        if match is None:
            raise CorruptRecordingError("an EDF+ data record does not tell when it begins")
        starts.append(float(match[1].replace(b",", b".")))
    if any(b - a < header.record_s * 0.999 for a, b in pairwise(starts)):
        raise CorruptRecordingError("EDF+ data records overlap or run backwards")
    return starts


def _spread(
    values: npt.NDArray[np.float64], starts: list[float], rate: float, label: str
) -> npt.NDArray[np.float64]:
    """Each data record's samples where they belong, NaN between them."""
    firsts = [round((start - starts[0]) * rate) for start in starts]
    if not firsts:
        return values
    length = firsts[-1] + values.shape[1]
    check_size(1, length, f"{label} with the gaps of the EDF+ file")
    placed = np.full(length, np.nan)
    for first, row in zip(firsts, values, strict=True):
        placed[first : first + row.size] = row
    return placed
