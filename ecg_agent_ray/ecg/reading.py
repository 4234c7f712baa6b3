"""`read`: any supported ECG file, told apart by its content and never by its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from ecg_agent_ray.ecg.assembly import ReadingOptions, assemble
from ecg_agent_ray.ecg.formats import (
    aecg,
    arrays,
    dicom,
    edf,
    matlab,
    muse,
    philips,
    scp,
    tables,
    wfdb_files,
)
from ecg_agent_ray.ecg.formats.markup import xml_root_name
from ecg_agent_ray.ecg.formats.parsed import Parsed
from ecg_agent_ray.ecg.recording import Recording
from ecg_agent_ray.errors import (
    CorruptRecordingError,
    EcgAgentError,
    RecordingError,
    UnsupportedFormatError,
)

__all__ = ["SUPPORTED_FORMATS", "read"]

SUPPORTED_FORMATS = (
    "WFDB (.hea with .dat or .mat)",
    "MATLAB (feats, val, CPSC struct)",
    "CSV/TSV",
    "NumPy npy/npz",
    "Parquet",
    "EDF/BDF",
    "DICOM waveform",
    "HL7 aECG",
    "GE MUSE XML",
    "Philips Sierra XML",
    "SCP-ECG",
)
_XML_PARSERS: dict[str, Callable[[bytes], Parsed]] = {
    "AnnotatedECG": aecg.parse_aecg,
    "RestingECG": muse.parse_muse,
    "restingecgdata": philips.parse_philips,
}
_MAX_BYTES = 1 << 30
_SUPPORTED_HINT = "supported: " + ", ".join(SUPPORTED_FORMATS)


def read(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    *,
    sampling_rate: float | None = None,
    unit: str | None = None,
    gain: float | None = None,
    lead_names: Sequence[str] | None = None,
) -> Recording:
    """Read one ECG.

    Parameters
    ----------
    source
        A path, the file's bytes, or an open binary stream. For WFDB the ``.hea``, ``.dat``,
        ``.mat`` or the bare stem, always as a path, since a record is two files.
    sampling_rate : Hz
        Needed for files that do not tell theirs (bare arrays and tables); where a file does, the
        two must agree.
    unit
        ``mV``, ``uV``, ``V``, or ``adc`` for a converter's counts, where the file does not tell;
        tables and arrays are presumed to be in mV where that is possible.
    gain
        Counts per mV, for values that are a converter's counts.
    lead_names
        Of the file's channels, in its order. Times and counters are not channels; a name of
        another signal (``RESP``) says that the channel is no lead.

    Returns
    -------
    Recording : signal in mV (leads, samples); limb leads that are absent are derived where two of
        I, II, III are there; gaps are NaN; ``other_channels`` names what is no ECG

    Raises
    ------
    RecordingError : the file is missing, holds no ECG, does not tell its sampling rate or unit and
        none was given, or contradicts what was given
    UnsupportedFormatError : the bytes are of no format in `SUPPORTED_FORMATS`
    CorruptRecordingError : the format is known, the content is broken, cut off or oversized
    """
    options = ReadingOptions(
        sampling_rate=sampling_rate, unit=unit, gain=gain, lead_names=lead_names
    )
    name, data, header = _opened(source)
    try:
        parsed = wfdb_files.read_wfdb(header) if header else _parse(data)
        return assemble(parsed, Path(name).stem or "recording", options)
    except EcgAgentError as error:
        message = f"{name}: " + error.message.removeprefix(f"{name}: ")
        raise type(error)(message, hint=error.hint) from error
    except (MemoryError, OverflowError) as error:
        raise CorruptRecordingError(f"{name}: {error or 'it does not fit into memory'}") from error


def _opened(source: str | os.PathLike[str] | bytes | BinaryIO) -> tuple[str, bytes, Path | None]:
    """Name, content, and for a WFDB record its header's path instead of the content."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data = "recording", bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if header := _wfdb_header(path):
            return path.name, b"", header
        name, data = path.name, _bytes_of(path)
    else:
        name = Path(str(getattr(source, "name", "recording"))).name
        data = source.read(_MAX_BYTES + 1)
        if not isinstance(data, bytes):
            raise RecordingError(f"{name} is open as text", hint="open it in binary mode")
    if len(data) > _MAX_BYTES:
        raise RecordingError(f"{name} is over {_MAX_BYTES >> 20} MiB")
    return name, data, None


def _wfdb_header(path: Path) -> Path | None:
    """The header to read, where this path is a WFDB header, one of its files, or a stem."""
    try:
        if path.is_file():
            with path.open("rb") as stream:
                if wfdb_files.is_header(stream.read(4096)):
                    return path
        return wfdb_files.header_beside(path)
    except (OSError, ValueError) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from error


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecordingError(f"{path} is over {_MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except IsADirectoryError as error:
        raise RecordingError(f"{path} is a directory, not a recording") from error
    except FileNotFoundError as error:
        raise RecordingError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from error


def _parse(data: bytes) -> Parsed:
    if not data.strip(b"\0 \r\n\t"):
        raise CorruptRecordingError("the file is empty")
    for matches, parse in (
        (data[:6] == b"\x93NUMPY", arrays.parse_npy),
        (data[:4] == b"PK\x03\x04", arrays.parse_npz),
        (data[:4] == b"PAR1", tables.parse_parquet),
        (dicom.is_dicom(data), dicom.parse_dicom),
        (edf.is_edf(data), edf.parse_edf),
        (scp.is_scp(data), scp.parse_scp),
        (matlab.is_matlab(data), matlab.parse_matlab),
    ):
        if matches:
            return parse(data)
    return _parse_text_form(data)


def _parse_text_form(data: bytes) -> Parsed:
    root = xml_root_name(data)
    if root in _XML_PARSERS:
        return _XML_PARSERS[root](data)
    if root is not None:
        raise UnsupportedFormatError(f"XML with the root element {root!r}", hint=_SUPPORTED_HINT)
    if wfdb_files.is_header(data):
        raise UnsupportedFormatError(
            "a WFDB header alone holds no signal",
            hint="give the path, so that its signal file beside it is found",
        )
    if (parsed := tables.parse_text(data)) is not None:
        return parsed
    known = "an HDF5 (MATLAB 7.3) file" if data[:4] == b"\x89HDF" else "no ECG format that is read"
    raise UnsupportedFormatError(f"the content is {known}", hint=_SUPPORTED_HINT)
