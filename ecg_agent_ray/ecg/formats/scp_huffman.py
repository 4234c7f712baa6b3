"""Huffman coded numbers of SCP-ECG (EN 1064), section 2 and annex C.

A code is a prefix, which is looked up, and then some bits of a two's complement number that is
added to the prefix's base value. A table may hold codes that switch to another table.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["Code", "HuffmanDecoder", "default_table", "parse_tables"]

_WINDOW = 16
_CODE = struct.Struct("<BBBhI")
_DEFAULT_TABLE = 19999
_MAX_TABLES = 8


@dataclass(frozen=True)
class Code:
    """``prefix`` holds ``prefix_bits`` bits, the first one highest; ``extra_bits`` follow it.

    With ``switches`` the value is not a sample but the number of the table that is used from here.
    """

    prefix: int
    prefix_bits: int
    extra_bits: int
    value: int
    switches: bool = False


def default_table() -> list[Code]:
    """The standard's own table: small numbers in unary with a sign, others in 8 or 16 bits."""
    codes = [Code(0, 1, 0, 0)]
    for size in range(1, 9):
        ones = ((1 << size) - 1) << 2
        codes += [Code(ones, size + 2, 0, size), Code(ones | 1, size + 2, 0, -size)]
    nine = ((1 << 9) - 1) << 1
    return [*codes, Code(nine, 10, 8, 0), Code(nine | 1, 10, 16, 0)]


def parse_tables(section: bytes) -> list[list[Code]]:
    """The tables of section 2's data; none where the samples are not coded.

    Raises CorruptRecordingError for tables that are cut off or cannot be decoded by.
    """
    if len(section) < 2:
        raise CorruptRecordingError("the SCP-ECG Huffman section is cut off")
    (n_tables,) = struct.unpack_from("<H", section)
    if n_tables == _DEFAULT_TABLE:
        return [default_table()]
    if n_tables > _MAX_TABLES:
        raise CorruptRecordingError(f"an SCP-ECG file of {n_tables} Huffman tables")
    tables = []
    at = 2
    for _ in range(n_tables):
        if at + 2 > len(section):
            raise CorruptRecordingError("the SCP-ECG Huffman tables are cut off")
        (n_codes,) = struct.unpack_from("<H", section, at)
        at += 2
        if at + n_codes * _CODE.size > len(section):
            raise CorruptRecordingError("the SCP-ECG Huffman tables are cut off")
        tables.append(
            [_code(*_CODE.unpack_from(section, at + i * _CODE.size)) for i in range(n_codes)]
        )
        at += n_codes * _CODE.size
    return tables


def _code(prefix_bits: int, code_bits: int, mode: int, value: int, reversed_prefix: int) -> Code:
    extra_bits = code_bits - prefix_bits
    if not 1 <= prefix_bits <= _WINDOW or not 0 <= extra_bits <= _WINDOW:
        raise CorruptRecordingError(
            f"an SCP-ECG Huffman code of {prefix_bits} prefix bits and {code_bits} bits in all"
        )
    # stored with the bit that comes first as the lowest
    bits = format(reversed_prefix & ((1 << prefix_bits) - 1), f"0{prefix_bits}b")
    return Code(int(bits[::-1], 2), prefix_bits, extra_bits, value, switches=mode == 0)


class HuffmanDecoder:
    """Decodes leads by tables; every bit position is looked up at once, then the codes are walked.

    Raises CorruptRecordingError, in `decode`, for bits that are no code.
    """

    def __init__(self, tables: Sequence[Sequence[Code]]) -> None:
        self._lookups = [_lookup(table) for table in tables]

    def decode(self, data: bytes, n_samples: int) -> npt.NDArray[np.int64]:
        """Up to ``n_samples`` numbers; fewer where the bits end. Linear in the data's length."""
        windows = _windows(data)
        n_bits = 8 * len(data)
        places: dict[int, tuple[list[int], list[int]]] = {}
        found: list[int] = []
        table = position = 0
        while position < n_bits and len(found) < n_samples:
            if table not in places:
                places[table] = self._places(table, windows, n_bits)
            steps, values = places[table]
            while position < n_bits and len(found) < n_samples:
                step = steps[position]
                if step > 0:
                    if position + step > n_bits:
                        return np.array(found, dtype=np.int64)
                    found.append(values[position])
                    position += step
                elif step < 0:
                    table = values[position] - 1
                    position -= step
                    break
                elif n_bits - position < 8 + _WINDOW:
                    # the last byte is filled up with anything
                    return np.array(found, dtype=np.int64)
                else:
                    raise CorruptRecordingError("SCP-ECG samples that are no Huffman code")
        return np.array(found, dtype=np.int64)

    def _places(
        self, table: int, windows: npt.NDArray[np.uint16], n_bits: int
    ) -> tuple[list[int], list[int]]:
        """For each bit position the code's length (negative: a switch) and value."""
        if not 0 <= table < len(self._lookups):
            raise CorruptRecordingError(
                f"SCP-ECG samples switch to table {table + 1}, which is absent"
            )
        lookup = self._lookups[table]
        which = lookup.code_at[windows[:n_bits]]
        prefix_bits, extra_bits = lookup.prefix_bits[which], lookup.extra_bits[which]
        behind = windows[np.arange(n_bits) + prefix_bits].astype(np.int64)
        extra = np.where(extra_bits > 0, behind >> (_WINDOW - extra_bits), 0)
        negative = (extra_bits > 0) & (behind >= 1 << (_WINDOW - 1))
        values = lookup.values[which] + extra - (negative.astype(np.int64) << extra_bits)
        steps = (prefix_bits + extra_bits) * np.where(lookup.switches[which], -1, 1)
        return steps.tolist(), values.tolist()


@dataclass(frozen=True)
class _Lookup:
    """``code_at`` gives, for sixteen bits, which code they begin with; the last one is "none"."""

    code_at: npt.NDArray[np.int64]
    prefix_bits: npt.NDArray[np.int64]
    extra_bits: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    switches: npt.NDArray[np.bool_]


def _lookup(table: Sequence[Code]) -> _Lookup:
    code_at = np.full(1 << _WINDOW, len(table), dtype=np.int64)
    for index in sorted(range(len(table)), key=lambda i: -table[i].prefix_bits):
        free = _WINDOW - table[index].prefix_bits
        start = table[index].prefix << free
        code_at[start : start + (1 << free)] = index
    columns = np.array(
        [(c.prefix_bits, c.extra_bits, c.value, c.switches) for c in table] + [(0, 0, 0, False)],
        dtype=np.int64,
    ).T
    return _Lookup(code_at, columns[0], columns[1], columns[2], columns[3].astype(bool))


def _windows(data: bytes) -> npt.NDArray[np.uint16]:
    """The sixteen bits from each bit position on, zeros behind the end."""
    octets = np.frombuffer(data + bytes(6), np.uint8).astype(np.uint32)
    words = octets[:-2] << 16 | octets[1:-1] << 8 | octets[2:]
    shifts = np.arange(8, 0, -1, dtype=np.uint32)
    return (words[:, np.newaxis] >> shifts).astype(np.uint16).reshape(-1)
