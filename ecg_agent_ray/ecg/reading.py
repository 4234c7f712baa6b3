"""`read`: any supported ECG file, told apart by its content and never by its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ecg_agent_ray.ecg.formats import clinical, matlab, muse, philips, scp, tables, wfdb_files
from ecg_agent_ray.ecg.formats.markup import xml_root_name
from ecg_agent_ray.ecg.formats.parsed import Parsed
from ecg_agent_ray.ecg.leads import derive_limb_leads, standard_order, unique_leads
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
    "AnnotatedECG": clinical.parse_aecg,
    "RestingECG": muse.parse_muse,
    "restingecgdata": philips.parse_philips,
}
# one ECG is one recording whichever of these it was exported as, so their leads are put in order
_CLINICAL_FORMATS = ("dicom", "aecg", "muse-xml", "philips-xml", "scp-ecg")
_MAX_BYTES = 1 << 30
_RATE_TOLERANCE = 1e-3
_SUPPORTED_HINT = "supported: " + ", ".join(SUPPORTED_FORMATS)


def read(
    source: str | os.PathLike[str] | bytes | BinaryIO, *, sampling_rate: float | None = None
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

    Returns
    -------
    Recording : signal in mV (leads, samples); limb leads that are absent are derived where two of
        I, II, III are there; gaps are NaN

    Raises
    ------
    RecordingError : the file is missing, or lacks a sampling rate and none was given
    UnsupportedFormatError : the bytes are of no format in `SUPPORTED_FORMATS`
    CorruptRecordingError : the format is known, the content is broken, cut off or oversized
    """
    name, data, header = _opened(source)
    try:
        parsed = wfdb_files.read_wfdb(header) if header else _parse(data)
        return _recording(parsed, Path(name).stem or "recording", sampling_rate)
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
        (data[:6] == b"\x93NUMPY", tables.parse_npy),
        (data[:4] == b"PK\x03\x04", tables.parse_npz),
        (data[:4] == b"PAR1", tables.parse_parquet),
        (data[128:132] == b"DICM", clinical.parse_dicom),
        (data[:8] in (b"0       ", b"\xffBIOSEMI"), clinical.parse_edf),
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
    if tables.is_table_text(data):
        return tables.parse_text(data)
    known = "an HDF5 (MATLAB 7.3) file" if data[:4] == b"\x89HDF" else "no ECG format that is read"
    raise UnsupportedFormatError(f"the content is {known}", hint=_SUPPORTED_HINT)


def _recording(parsed: Parsed, stem: str, sampling_rate: float | None) -> Recording:
    rate = parsed.sampling_rate
    if rate is None:
        if sampling_rate is None:
            raise RecordingError(
                f"the {parsed.format} file does not tell its sampling rate",
                hint="give sampling_rate, or a time column",
            )
        rate = float(sampling_rate)
    elif sampling_rate is not None and abs(rate - sampling_rate) > _RATE_TOLERANCE * rate:
        raise RecordingError(f"it is sampled at {rate:g} Hz, not the {sampling_rate:g} Hz given")
    signal, leads = derive_limb_leads(parsed.signal, unique_leads(parsed.leads))
    if parsed.format in _CLINICAL_FORMATS:
        signal, leads = standard_order(signal, leads)
    return Recording(
        signal=signal,
        sampling_rate=rate,
        leads=leads,
        record_id=parsed.record_id or stem,
        format=parsed.format,
    )
