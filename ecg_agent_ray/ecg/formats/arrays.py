"""NumPy arrays: ``.npy`` and ``.npz``; an array may lie either way, the shorter side is the leads.

Values are presumed to be mV. The rate and the names come from npz entries (``sampling_rate``,
``fs``, ``leads`` …).
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.formats.parsed import Parsed, default_leads, orient, parsed_rows
from ecg_agent_ray.ecg.recording import MAX_VALUES
from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["parse_npy", "parse_npz"]

_SIGNAL_KEYS = ("signal", "ecg", "feats", "val", "data", "p_signal", "x", "arr_0")
_RATE_KEYS = ("sampling_rate", "curr_sample_rate", "sample_rate", "fs", "sfreq")
_LEAD_KEYS = ("leads", "lead_names", "sig_name", "channels")


def parse_npy(data: bytes) -> Parsed:
    """A NumPy array of numbers; never unpickles."""
    array = _array(io.BytesIO(data), len(data), "the npy file")
    rows = orient(array, "the npy file")
    return _parsed(rows, default_leads(len(rows)), None)


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
    return _parsed(rows, leads, rate)


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


def _parsed(rows: npt.NDArray[Any], leads: list[str], rate: float | None) -> Parsed:
    return parsed_rows(rows, leads, rate, "numpy", unit=None, are_leads=False)
