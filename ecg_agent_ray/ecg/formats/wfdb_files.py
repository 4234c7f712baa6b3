"""WFDB records: a text header and the signal files it names.

The header and the plain integer formats (16, 61, 160, 80, 24, 32, 212) are decoded here, so that
sizes are checked before anything is allocated and the CinC 2017 headers (date before time, CRLF)
read; the rest (differences, packed, FLAC, skewed) goes to wfdb.
Format: https://physionet.org/physiotools/wag/header-5.htm and signal-5.htm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.channels import Channel
from ecg_agent_ray.ecg.formats.parsed import Parsed, check_size
from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["header_beside", "is_header", "read_wfdb"]

_MAX_HEADER_BYTES = 4_000_000
_RECORD = re.compile(
    r"^(?P<name>[^\s/]+)(?:/(?P<segments>\d+))?\s+(?P<signals>\d+)"
    r"(?:\s+(?P<rate>[\d.eE+-]+)\S*)?(?:\s+(?P<samples>\d+))?(?:\s.*)?$"
)
_SIGNAL = re.compile(
    r"^(?P<file>\S+)\s+(?P<format>\d+)(?:x(?P<per_frame>\d+))?(?::(?P<skew>\d+))?"
    r"(?:\+(?P<offset>\d+))?"
    r"(?:\s+(?P<gain>[\d.eE+-]+)(?:\((?P<baseline>-?\d+)\))?(?:/(?P<units>\S+))?"
    r"(?:\s+(?P<adc_bits>\d+)(?:\s+(?P<adc_zero>-?\d+)(?:\s+-?\d+){0,3}(?:\s+(?P<name>.*))?)?)?)?"
    r"\s*$"
)
_DEFAULT_GAIN = 200.0
_DEFAULT_RATE = 250.0
_FORMATS = (0, 8, 16, 24, 32, 61, 80, 160, 212, 310, 311, 508, 516, 524)
_BITS = {16: 16, 61: 16, 160: 16, 80: 8, 24: 24, 32: 32, 212: 12}
_DTYPES = {16: "<i2", 61: ">i2", 160: "<u2", 80: "u1", 32: "<i4"}


@dataclass(frozen=True)
class _Channel:
    file: str
    format: int
    per_frame: int
    skew: int
    offset: int
    gain: float
    baseline: int
    units: str
    name: str


@dataclass(frozen=True)
class _Header:
    name: str
    segments: int
    n_signals: int
    rate: float
    n_samples: int | None
    channels: tuple[_Channel, ...]
    parts: tuple[tuple[str, int], ...] = ()
    """Names and lengths of the segments."""


def is_header(data: bytes) -> bool:
    """Whether these bytes begin like a WFDB header with at least one signal or segment."""
    lines = _content_lines(data[:4096])
    if len(lines) < 2 or not (match := _RECORD.match(lines[0])):
        return False
    if match["segments"]:
        return bool(re.match(r"^\S+\s+\d+\s*$", lines[1]))
    # a table of whole numbers looks like a record line and signal lines, but for the file's name
    signal = _SIGNAL.match(lines[1])
    return bool(signal and int(signal["format"]) in _FORMATS and not _is_number(signal["file"]))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?[\d.,]+(?:e[+-]?\d+)?", text, re.I) is not None


def header_beside(path: Path) -> Path | None:
    """The header that belongs to a signal file or a bare stem, where there is one."""
    for candidate in (Path(f"{path}.hea"), path.with_suffix(".hea")):
        if candidate.is_file() and (not path.is_file() or _names(candidate, path)):
            return candidate
    return None


def _names(header: Path, signal_file: Path) -> bool:
    with header.open("rb") as stream:
        data = stream.read(_MAX_HEADER_BYTES)
    files = {line.split()[0] for line in _content_lines(data)[1:]}
    return is_header(data) and signal_file.name in files


def _content_lines(data: bytes) -> list[str]:
    lines = (line.strip() for line in data.decode("latin-1").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _parse_header(path: Path) -> _Header:
    with path.open("rb") as stream:
        data = stream.read(_MAX_HEADER_BYTES + 1)
    if len(data) > _MAX_HEADER_BYTES:
        raise CorruptRecordingError(f"{path.name}: the header is over {_MAX_HEADER_BYTES} bytes")
    lines = _content_lines(data)
    match = _RECORD.match(lines[0]) if lines else None
    if not match:
        raise CorruptRecordingError(f"{path.name}: the first line is no WFDB record line")
    n_signals = int(match["signals"])
    samples = int(match["samples"]) if match["samples"] else 0
    segments = int(match["segments"] or 1)
    if not segments > 1 and len(lines) < 1 + n_signals:
        raise CorruptRecordingError(
            f"{path.name}: {n_signals} signals announced, {len(lines) - 1} described"
        )
    check_size(n_signals, max(samples, 1), path.name)
    rate = _number(match["rate"], path.name) if match["rate"] else _DEFAULT_RATE
    channels: tuple[_Channel, ...] = ()
    if segments == 1:
        channels = tuple(_channel(line, path.name) for line in lines[1 : 1 + n_signals])
    parts = _parts(lines[1:], segments, path.name) if segments > 1 else ()
    return _Header(match["name"], segments, n_signals, rate, samples or None, channels, parts)


def _parts(lines: list[str], segments: int, where: str) -> tuple[tuple[str, int], ...]:
    if len(lines) < segments:
        raise CorruptRecordingError(
            f"{where}: {segments} segments announced, {len(lines)} described, so the files beside "
            "it cannot hold them"
        )
    parts = []
    for line in lines[:segments]:
        match = re.fullmatch(r"([^\s/\\]+)\s+(\d+)", line)
        if match is None or match[1] in (".", ".."):
            raise CorruptRecordingError(f"{where}: not a segment's line: {line[:80]!r}")
        parts.append((match[1], int(match[2])))
    return tuple(parts)


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CorruptRecordingError(f"{where}: {text!r} is no number") from None


def _channel(line: str, where: str) -> _Channel:
    match = _SIGNAL.match(line)
    if not match:
        raise CorruptRecordingError(f"{where}: not a signal line: {line[:80]!r}")
    file = match["file"]
    if Path(file).name != file or "\\" in file or file in ("-", "~", ".", ".."):
        raise CorruptRecordingError(f"{where}: signal file {file[:80]!r} is not beside the header")
    zero = int(match["adc_zero"] or 0)
    return _Channel(
        file=file,
        format=int(match["format"]),
        per_frame=int(match["per_frame"] or 1),
        skew=int(match["skew"] or 0),
        offset=int(match["offset"] or 0),
        gain=_number(match["gain"], where) if match["gain"] else _DEFAULT_GAIN,
        baseline=int(match["baseline"]) if match["baseline"] else zero,
        units=match["units"] or "mV",
        name=(match["name"] or "").strip(),
    )


def read_wfdb(header_path: Path) -> Parsed:
    """Read the record of this header, every signal at its own rate.

    Raises CorruptRecordingError where header and files differ.
    """
    header = _parse_header(header_path)
    if header.segments > 1:
        return _read_segments(header, header_path)
    if all(channel.format in _BITS and channel.skew == 0 for channel in header.channels):
        return _read_plain(header, header_path)
    return _read_by_library(header, header_path)


def _read_plain(header: _Header, path: Path) -> Parsed:
    groups: dict[str, list[_Channel]] = {}
    for channel in header.channels:
        groups.setdefault(channel.file, []).append(channel)
    found: list[Channel] = []
    n_frames = header.n_samples
    for file, channels in groups.items():
        rows, invalid = _decode(path.parent / file, channels, n_frames, path.name)
        n_frames = rows[0].size // channels[0].per_frame
        for row, channel in zip(rows, channels, strict=True):
            physical = (row.astype(np.float64) - channel.baseline) / (channel.gain or _DEFAULT_GAIN)
            physical[row == invalid] = np.nan
            rate = header.rate * channel.per_frame
            found.append(Channel(channel.name or "ECG", physical, channel.units, rate))
    return Parsed(found, "wfdb", path.stem)


def _decode(
    path: Path, channels: list[_Channel], n_frames: int | None, where: str
) -> tuple[list[npt.NDArray[np.integer]], int]:
    """Each channel's ADC values and the value that means "invalid".

    A file holds frames, in each of which every signal has its samples per frame in a row.
    """
    first = channels[0]
    if any((c.format, c.offset) != (first.format, first.offset) for c in channels):
        raise CorruptRecordingError(f"{where}: signals in {path.name} differ in format or offset")
    if not path.is_file():
        raise CorruptRecordingError(
            f"{where}: its signal file {path.name} is missing", hint="put both files side by side"
        )
    bits = _BITS[first.format]
    in_frame = sum(channel.per_frame for channel in channels)
    if in_frame < 1 or min(channel.per_frame for channel in channels) < 1:
        raise CorruptRecordingError(f"{where}: a signal without samples in a frame")
    available = max(path.stat().st_size - first.offset, 0) * 8 // bits // in_frame
    if n_frames is not None and available < n_frames:
        raise CorruptRecordingError(
            f"{where}: {n_frames} samples announced, {path.name} holds {available} (truncated?)"
        )
    count = n_frames or available
    check_size(1, count * in_frame, path.name)
    with path.open("rb") as stream:
        stream.seek(first.offset)
        data = stream.read(-(-count * in_frame * bits // 8))
    frames = _unpack(data, first.format, count * in_frame).reshape(count, in_frame)
    ends = np.cumsum([channel.per_frame for channel in channels]).tolist()
    rows = [
        frames[:, end - channel.per_frame : end].reshape(-1)
        for end, channel in zip(ends, channels, strict=True)
    ]
    return rows, -(1 << (bits - 1))


def _unpack(data: bytes, wfdb_format: int, n_values: int) -> npt.NDArray[np.integer]:
    octets = np.frombuffer(data, dtype=np.uint8)
    if wfdb_format == 212:
        trios = np.pad(octets, (0, -len(octets) % 3)).astype(np.int16).reshape(-1, 3)
        low = trios[:, 0] | ((trios[:, 1] & 0x0F) << 8)
        high = trios[:, 2] | ((trios[:, 1] & 0xF0) << 4)
        pairs = np.stack([low, high], axis=1).reshape(-1)[:n_values]
        return np.where(pairs > 2047, pairs - 4096, pairs)
    if wfdb_format == 24:
        triples = octets.reshape(-1, 3).astype(np.int32)
        values = triples[:, 0] | (triples[:, 1] << 8) | (triples[:, 2] << 16)
        return np.where(values >= 1 << 23, values - (1 << 24), values)
    plain = np.frombuffer(data, dtype=_DTYPES[wfdb_format], count=n_values)
    if wfdb_format == 160:
        return plain.astype(np.int32) - 32768
    return plain.astype(np.int16) - 128 if wfdb_format == 80 else plain


def _read_segments(header: _Header, path: Path) -> Parsed:
    """The signals of all segments, each by its own header; NaN where a segment lacks one."""
    lengths = [length for _, length in header.parts]
    total = header.n_samples or sum(lengths)
    _check_files_can_hold(total * header.n_signals, path)
    check_size(header.n_signals, max(total, sum(lengths)), path.name)
    rows: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
    rates: dict[tuple[str, str], float] = {}
    begin = 0
    for name, length in header.parts:
        # one of no length only describes the signals, "~" is a gap
        if name != "~" and length > 0:
            part = _segment(path.parent / f"{name}.hea", header, length)
            for channel in part.channels:
                key = (channel.name, channel.unit or "")
                per_frame = round((channel.rate or header.rate) / header.rate)
                if key not in rows:
                    rows[key] = np.full(sum(lengths) * per_frame, np.nan)
                    rates[key] = header.rate * per_frame
                values = np.asarray(channel.values)
                rows[key][begin * per_frame :][: values.size] = values
        begin += length
    if not rows:
        raise CorruptRecordingError(f"{path.name}: its segments hold no signal")
    found = [Channel(key[0], row, key[1], rates[key]) for key, row in rows.items()]
    return Parsed(found, "wfdb", path.stem)


def _segment(path: Path, whole: _Header, length: int) -> Parsed:
    if not path.is_file():
        raise CorruptRecordingError(
            f"its segment {path.name} is missing", hint="put all segments beside the header"
        )
    header = _parse_header(path)
    if header.segments > 1 or header.rate != whole.rate or (header.n_samples or length) != length:
        raise CorruptRecordingError(
            f"its segment {path.name} has another rate or length than is announced"
        )
    return read_wfdb(path)


def _check_files_can_hold(n_values: int, path: Path) -> None:
    size = sum(file.stat().st_size for file in path.parent.glob("*") if file.is_file())
    # the densest of the formats packs a value in one bit (FLAC of silence); gaps take no room
    if n_values > size * 64:
        raise CorruptRecordingError(
            f"{path.name}: {n_values} values announced, the files beside it cannot hold them"
        )


def _read_by_library(header: _Header, path: Path) -> Parsed:
    if header.n_samples is None:
        raise CorruptRecordingError(f"{path.name}: the header tells no number of samples")
    _check_files_can_hold(header.n_samples * header.n_signals, path)
    import wfdb

    try:
        record = wfdb.rdrecord(str(path.with_suffix("")), smooth_frames=False)
        signals = [np.asarray(row, dtype=np.float64) for row in record.e_p_signal]
        per_frame = [int(n or 1) for n in record.samps_per_frame]
        found = [
            Channel(name or "ECG", row, unit or "mV", float(record.fs) * n)
            for name, row, unit, n in zip(
                record.sig_name, signals, record.units, per_frame, strict=True
            )
        ]
    except Exception as error:  # the library raises what its parsing happens to hit
        raise CorruptRecordingError(f"{path.name}: {type(error).__name__}: {error}") from error
    if not found:
        raise CorruptRecordingError(f"{path.name}: the record holds no signal")
    return Parsed(found, "wfdb", path.stem)
