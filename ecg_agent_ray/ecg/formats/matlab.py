"""MATLAB files of ECG collections: ``feats`` (fairseq-signals), ``val`` (Challenges), CPSC struct.

Level 4 and level 5 files (compressed or not) are parsed here rather than by a general library,
which would allocate what a broken file claims; only numbers, text and structs of them are read.
Format: MATLAB "MAT-File Format" (MathWorks, 2019).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.formats.parsed import Parsed, default_leads, orient, parsed_rows
from ecg_agent_ray.ecg.recording import MAX_VALUES
from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["is_matlab", "parse_matlab"]

Value: TypeAlias = "npt.NDArray[Any] | str | dict[str, Any] | None"

_LEVEL4_TYPES = {0: "f8", 1: "f4", 2: "i4", 3: "i2", 4: "u2", 5: "u1"}
_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_TEXT = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_CHAR_CLASS, _STRUCT_CLASS, _FIRST_NUMERIC, _LAST_NUMERIC = 4, 2, 6, 15
_MAX_INFLATED = 8 * MAX_VALUES
_MAX_DEPTH = 6

_SIGNAL_NAMES = ("feats", "val", "ECG", "ecg", "data", "signal", "signals", "x", "X")
_RATE_NAMES = ("curr_sample_rate", "sampling_rate", "sample_rate", "fs", "Fs", "FS", "frequency")
_CHALLENGE_UNIT = "uV"
_CHALLENGE_NOTE = (
    "whole numbers in val are taken for 1000 counts per mV, as in the Challenges; "
    "other collections have another gain, which gain (--gain) gives"
)
_CPSC_RATE_HZ = 500.0


def is_matlab(data: bytes) -> bool:
    """Level 5 by its banner, level 4 by a sane first matrix header."""
    return data[:10] == b"MATLAB 5.0" or _level4_header(data, 0) is not None


def parse_matlab(data: bytes) -> Parsed:
    """The ECG in a MAT file. Integers in ``val`` are 1000 units per mV, as in the Challenges.

    Raises CorruptRecordingError where no variable is an ECG or the file is broken.
    """
    try:
        found = _level5(data) if data[:10] == b"MATLAB 5.0" else _level4(data)
    except (struct.error, ValueError, IndexError, zlib.error, UnicodeError) as error:
        raise CorruptRecordingError(f"broken MATLAB file: {error}") from error
    rate = _rate_in(found)
    for name in _SIGNAL_NAMES:
        value = found.get(name)
        if isinstance(value, dict):
            inner = value.get("data")
            if isinstance(inner, np.ndarray):
                rows = orient(inner, f"{name}.data")
                return _parsed(rows, _rate_in(value) or rate or _CPSC_RATE_HZ)
        elif isinstance(value, np.ndarray) and value.size > 1:
            rows = orient(value, f"variable {name}")
            if name == "val" and rows.dtype.kind in "iu":
                return _parsed(rows, rate, challenge=True)
            return _parsed(rows, rate)
    raise CorruptRecordingError(
        f"the MATLAB file holds no ECG among its variables {sorted(found)[:10]}",
        hint=f"name the (leads, samples) array one of {', '.join(_SIGNAL_NAMES[:5])}",
    )


def _parsed(rows: npt.NDArray[Any], rate: float | None, *, challenge: bool = False) -> Parsed:
    parsed = parsed_rows(rows, default_leads(len(rows)), rate, "matlab", unit=None, are_leads=False)
    if not challenge:
        return parsed
    return replace(parsed, presumed_unit=_CHALLENGE_UNIT, presumption=_CHALLENGE_NOTE)


def _rate_in(found: dict[str, Any]) -> float | None:
    return next((r for name in _RATE_NAMES if (r := _scalar(found.get(name))) is not None), None)


def _scalar(value: Value) -> float | None:
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "iuf":
        number = float(value.reshape(-1)[0])
        return number if np.isfinite(number) and number > 0 else None
    return None


def _level4_header(data: bytes, at: int) -> tuple[str, int, int, int, str] | None:
    """dtype, rows, columns, data offset and name; None where this is no level 4 matrix."""
    if len(data) - at < 21:
        return None
    for endian in "<>":
        kind, rows, columns, imaginary, name_length = struct.unpack_from(f"{endian}5i", data, at)
        order, rest = divmod(kind, 1000)
        zero, rest = divmod(rest, 100)
        precision, matrix_type = divmod(rest, 10)
        sane = (order, zero, matrix_type) == ("<>".index(endian), 0, 0) and imaginary == 0
        if (
            sane
            and precision in _LEVEL4_TYPES
            and 1 <= name_length <= 64
            and min(rows, columns) >= 0
        ):
            name = data[at + 20 : at + 20 + name_length].rstrip(b"\0")
            if name.decode("latin-1").isidentifier():
                dtype = endian + _LEVEL4_TYPES[precision]
                return dtype, rows, columns, at + 20 + name_length, name.decode("latin-1")
    return None


def _level4(data: bytes) -> dict[str, Value]:
    found: dict[str, Value] = {}
    at = 0
    while at < len(data) and (header := _level4_header(data, at)):
        dtype, rows, columns, start, name = header
        size = rows * columns * np.dtype(dtype).itemsize
        if start + size > len(data):
            raise ValueError(
                f"{name} claims {size} bytes, {len(data) - start} are left (truncated?)"
            )
        flat = np.frombuffer(data, dtype=dtype, count=rows * columns, offset=start)
        found[name] = flat.reshape(columns, rows).T
        at = start + size
    return found


def _level5(data: bytes) -> dict[str, Value]:
    if len(data) < 136:
        raise ValueError("it ends within its header")
    endian = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if endian is None:
        raise ValueError("no byte order mark")
    found: dict[str, Value] = {}
    at, inflated = 128, 0
    while at + 8 <= len(data):
        kind, body, at = _element(data, at, endian, aligned=False)
        if kind == _COMPRESSED:
            inflater = zlib.decompressobj()
            element = inflater.decompress(body, _MAX_INFLATED - inflated)
            inflated += len(element)
            if inflater.unconsumed_tail or not inflater.eof:
                raise ValueError("a compressed variable is cut off or too large")
            kind, body, _ = _element(element, 0, endian)
        if kind == _MATRIX:
            name, value = _matrix(body, endian, 0)
            found[name] = value
    return found


def _element(data: bytes, at: int, endian: str, aligned: bool = True) -> tuple[int, bytes, int]:
    """Type, content and the offset behind one data element (small or full form)."""
    kind, size = struct.unpack_from(f"{endian}2I", data, at)
    if kind >> 16:
        size, kind = kind >> 16, kind & 0xFFFF
        if size > 4:
            raise ValueError("a small element of more than 4 bytes")
        return kind, data[at + 4 : at + 4 + size], at + 8
    start = at + 8
    if start + size > len(data):
        raise ValueError(
            f"an element claims {size} bytes, {len(data) - start} are left (truncated?)"
        )
    padding = -size % 8 if aligned else 0
    return kind, data[start : start + size], start + size + padding


def _matrix(body: bytes, endian: str, depth: int) -> tuple[str, Value]:
    if not body:
        return "", None
    if depth > _MAX_DEPTH:
        raise ValueError("structs are nested too deep")
    _, flags, at = _element(body, 0, endian)
    matrix_class = struct.unpack_from(f"{endian}I", flags)[0] & 0xFF
    _, dims_bytes, at = _element(body, at, endian)
    dims = [int(n) for n in np.frombuffer(dims_bytes, dtype=f"{endian}i4")]
    _, name_bytes, at = _element(body, at, endian)
    name = name_bytes.decode("latin-1")
    if matrix_class == _STRUCT_CLASS:
        return name, _struct(body, at, endian, dims, depth)
    if matrix_class != _CHAR_CLASS and not _FIRST_NUMERIC <= matrix_class <= _LAST_NUMERIC:
        return name, None
    kind, content, _ = _element(body, at, endian)
    if kind in _TEXT:
        return name, content.decode(_TEXT[kind], errors="replace")
    if kind not in _NUMBERS:
        raise ValueError(f"{name}: data of type {kind}")
    values = np.frombuffer(content, dtype=endian + _NUMBERS[kind])
    if matrix_class == _CHAR_CLASS:
        return name, "".join(chr(int(v) & 0xFFFF) for v in values[:1000])
    if min(dims, default=0) < 0 or int(np.prod(dims, dtype=object)) != values.size:
        raise ValueError(f"{name}: {values.size} values for a shape of {dims}")
    return name, values.reshape(dims, order="F")


def _struct(body: bytes, at: int, endian: str, dims: list[int], depth: int) -> Value:
    """A 1x1 struct as a dict; arrays of structs are nothing an ECG file has."""
    if dims != [1, 1]:
        return None
    _, length_bytes, at = _element(body, at, endian)
    length = struct.unpack_from(f"{endian}i", length_bytes)[0]
    _, names_bytes, at = _element(body, at, endian)
    if not 0 < length <= 64 or len(names_bytes) > 64 * 1000:
        raise ValueError("a struct with unreadable field names")
    fields: dict[str, Any] = {}
    for start in range(0, len(names_bytes), length):
        field = names_bytes[start : start + length].split(b"\0")[0].decode("latin-1")
        _, content, at = _element(body, at, endian)
        fields[field] = _matrix(content, endian, depth + 1)[1]
    return fields
