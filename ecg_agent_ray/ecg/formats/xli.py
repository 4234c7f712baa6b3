"""XLI, the compression of Philips Sierra ECG XML: LZW over second differences, lead by lead.

A lead is a chunk: its length in bytes (int32), an unused int16, the first difference (int16), then
LZW codes of ten bits, the highest bit first; the last code of all (1023) ends it. They give the
high bytes of all 16-bit numbers, then the low bytes. The first two numbers are samples; from there
on each is the bias of 64 above what the next sample falls short of a straight line through the two
before it. Facts as the Sierra ECG Tools project found and published them.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["decode_xli", "expand_lzw"]

_CHUNK = struct.Struct("<ihh")
_CODE_BITS, _END = 10, 1023
_BIAS = 64


def decode_xli(data: bytes, n_leads: int, most_samples: int) -> list[npt.NDArray[np.int64]]:
    """The first ``n_leads`` chunks, each as samples in stored units.

    Raises CorruptRecordingError where a chunk is cut off, or gives more than ``most_samples``.
    """
    leads: list[npt.NDArray[np.int64]] = []
    at = 0
    while len(leads) < n_leads and at + _CHUNK.size <= len(data):
        size, _, first = _CHUNK.unpack_from(data, at)
        at += _CHUNK.size
        if not 0 < size <= len(data) - at:
            raise CorruptRecordingError(
                f"compressed lead {len(leads) + 1} announces {size} bytes of {len(data) - at}"
            )
        leads.append(_undo_differences(expand_lzw(data[at : at + size], 2 * most_samples), first))
        at += size
    return leads


def expand_lzw(data: bytes, most_bytes: int) -> bytes:
    """Decode ten-bit LZW codes in time linear in the output.

    The table starts with the 256 single bytes, grows by one string a code and stays as it is once
    full. Raises CorruptRecordingError for a code that cannot occur, or beyond ``most_bytes``.
    """
    table = [bytes((value,)) for value in range(256)]
    out = bytearray()
    previous = b""
    buffer = held = 0
    for octet in data:
        buffer = buffer << 8 | octet
        held += 8
        if held < _CODE_BITS:
            continue
        held -= _CODE_BITS
        code = buffer >> held
        buffer &= (1 << held) - 1
        if code == _END:
            break
        if code < len(table):
            string = table[code]
        elif previous and code == len(table):
            string = previous + previous[:1]
        else:
            raise CorruptRecordingError(f"compressed data with the impossible code {code}")
        out += string
        if len(out) > most_bytes:
            raise CorruptRecordingError(f"compressed data of more than {most_bytes} bytes a lead")
        if previous and len(table) < _END:
            table.append(previous + string[:1])
        previous = string
    return bytes(out)


def _undo_differences(octets: bytes, first: int) -> npt.NDArray[np.int64]:
    n = len(octets) // 2
    if n < 3:
        raise CorruptRecordingError(f"a compressed lead of {n} samples")
    halves = np.frombuffer(octets, np.uint8, 2 * n).reshape(2, n).astype(np.uint16)
    numbers = (halves[0] << 8 | halves[1]).astype(np.int16).astype(np.int64)
    bends = np.concatenate(([-first], _BIAS - numbers[2:-1]))
    slopes = np.cumsum(np.concatenate(([numbers[1] - numbers[0]], bends)))
    return np.cumsum(np.concatenate((numbers[:1], slopes)))
