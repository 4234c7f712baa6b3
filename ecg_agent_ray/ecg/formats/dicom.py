"""DICOM waveform objects (PS3.3 C.10.9): every original multiplex group, each at its own time.

Leads are told by their codes, not by the text beside them. Both byte orders, with and without the
preamble; deflated files are refused, since their size cannot be bounded before they are unpacked.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.channels import Channel
from ecg_agent_ray.ecg.formats.parsed import Parsed, check_size, joined
from ecg_agent_ray.ecg.leads import lead_of_code
from ecg_agent_ray.errors import CorruptRecordingError, EcgAgentError, RecordingError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["is_dicom", "parse_dicom"]

_DEFLATED = b"1.2.840.10008.1.2.1.99"
# the coding schemes of lead codes; codes of others look alike and mean something else
_LEAD_SCHEMES = ("MDC", "SCPECG", "")
_TYPES = {("SS", 16): "<i2", ("US", 16): "<u2", ("SB", 8): "i1", ("UB", 8): "u1"}
_TYPES |= {("SL", 32): "<i4", ("UL", 32): "<u4"}
_PADDING_RUN_S = 0.1
_STRIP_S = 6.0
"""Groups shorter than this are taken to be one strip of a page after the other."""


def is_dicom(data: bytes) -> bool:
    """By the mark behind the preamble; without one by the first element: group 2 or 8, any order.

    Such an element's value representation is two capitals, or its length (implicit) is short.
    """
    if data[128:132] == b"DICM":
        return True
    if data[:4] in (b"\x02\0\0\0", b"\x02\0\1\0", b"\x02\0\2\0", b"\x02\0\x10\0"):
        return data[4:6].isalpha() and data[4:6].isupper()
    little, big = data[:2] == b"\x08\0", data[:2] == b"\0\x08"
    if not (little or big) or len(data) < 16:
        return False
    explicit = data[4:6].isalpha() and data[4:6].isupper()
    return explicit or (little and data[6:8] == b"\0\0" and 0 < data[4] <= 64 and data[3] == 0)


def parse_dicom(data: bytes) -> Parsed:
    """The channels of all ORIGINAL multiplex groups; averaged beats (DERIVED) are no recording.

    Raises CorruptRecordingError where an element is broken or absent; RecordingError where several
    groups do not tell when they began.
    """
    if _DEFLATED in data[:4096]:
        raise CorruptRecordingError(
            "deflated DICOM is not read", hint="export it with an uncompressed transfer syntax"
        )
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            groups = list(dataset.get("WaveformSequence") or [])
            if not groups:
                raise CorruptRecordingError("the DICOM file holds no waveform")
            kept, notes = _recorded(groups)
            big = dataset.original_encoding[1] is False
            channels = [channel for group in kept for channel in _channels(group, big)]
    except EcgAgentError:
        raise
    except Exception as error:  # pydicom parses lazily, so any element may fail, in many ways
        raise CorruptRecordingError(
            f"broken DICOM file: {type(error).__name__}: {error}"
        ) from error
    return Parsed(joined(channels), "dicom", notes=tuple(notes))


def _recorded(groups: list[Dataset]) -> tuple[list[Dataset], list[str]]:
    """The groups that are a recording rather than computed from one; checks that they tell time."""
    original = [g for g in groups if str(g.get("WaveformOriginality", "")) == "ORIGINAL"]
    kept = original or groups[:1]
    untimed = [g for g in kept if g.get("MultiplexGroupTimeOffset") is None]
    notes = []
    if len(kept) > 1 and untimed:
        seconds = min(int(g.NumberOfWaveformSamples) / float(g.SamplingFrequency) for g in kept)
        if seconds < _STRIP_S:
            raise RecordingError(
                f"the DICOM file holds {len(kept)} groups of leads and does not tell when each "
                "began (Multiplex Group Time Offset)",
                hint="export all leads in one multiplex group, or with time offsets",
            )
        notes.append("the multiplex groups tell no time offset, so they are taken to begin at once")
    return kept, notes


def _channels(group: Dataset, big_endian: bool) -> list[Channel]:
    n_channels, n_samples = int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples)
    bits, sample_type = int(group.WaveformBitsAllocated), str(group.WaveformSampleInterpretation)
    check_size(n_channels, n_samples, "the DICOM waveform")
    dtype = _TYPES.get((sample_type, bits))
    if dtype is None:
        raise CorruptRecordingError(f"DICOM samples of type {sample_type} in {bits} bits")
    buffer = _in_little_endian(group, "WaveformData", big_endian)
    if n_channels * n_samples * bits // 8 > len(buffer):
        raise CorruptRecordingError(
            f"the DICOM waveform announces {n_channels} x {n_samples} samples in {len(buffer)} "
            "bytes"
        )
    definitions = list(group.ChannelDefinitionSequence)
    if len(definitions) != n_channels:
        raise CorruptRecordingError(
            f"the DICOM waveform announces {n_channels} channels and defines {len(definitions)}"
        )
    raw = np.frombuffer(buffer, dtype, n_channels * n_samples).reshape(n_samples, n_channels).T
    rate = float(group.SamplingFrequency)
    if not rate > 0:
        raise CorruptRecordingError(f"a DICOM sampling frequency of {rate:g} Hz")
    padding = _padding(group, dtype, big_endian)
    offset_s = float(group.get("MultiplexGroupTimeOffset") or 0) / 1000
    return [
        _channel(definition, values, rate, offset_s, padding)
        for definition, values in zip(definitions, raw, strict=True)
    ]


def _in_little_endian(group: Dataset, keyword: str, big_endian: bool) -> bytes:
    """OW is a stream of words in the file's byte order, OB a stream of bytes in none."""
    element = group[keyword]
    value = element.value
    data = bytes(value) if not isinstance(value, (int, float)) else b""
    if big_endian and str(element.VR) == "OW":
        return np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()
    return data


def _padding(group: Dataset, dtype: str, big_endian: bool) -> int | None:
    if "WaveformPaddingValue" not in group:
        return None
    value = group.WaveformPaddingValue
    if isinstance(value, (int, float)):
        return int(value)
    data = _in_little_endian(group, "WaveformPaddingValue", big_endian)
    size = np.dtype(dtype).itemsize
    return int(np.frombuffer(data[:size], dtype)[0]) if len(data) >= size else None


def _channel(
    definition: Dataset,
    stored: npt.NDArray[Any],
    rate: float,
    offset_s: float,
    padding: int | None,
) -> Channel:
    sensitivity, baseline, unit = _scale(definition)
    values = stored.astype(np.float64) * sensitivity + baseline
    if padding is not None:
        values[_runs(stored == padding, round(_PADDING_RUN_S * rate))] = np.nan
    skew_s = float(definition.get("ChannelTimeSkew") or 0)
    skew_s += float(definition.get("ChannelSampleSkew") or 0) / rate
    name, is_lead = _name(definition)
    return Channel(name, values, unit, rate, offset_s + skew_s, is_lead)


def _scale(definition: Dataset) -> tuple[float, float, str | None]:
    """Sensitivity (corrected), baseline and their unit: value = stored x sensitivity + baseline."""
    if definition.get("ChannelSensitivity") is None:
        return 1.0, 0.0, None
    units = definition.get("ChannelSensitivityUnitsSequence")
    unit = str(units[0].get("CodeValue") or "") if units else ""
    correction = definition.get("ChannelSensitivityCorrectionFactor")
    factor = 1.0 if correction is None else float(correction)
    baseline = float(definition.get("ChannelBaseline") or 0)
    return float(definition.ChannelSensitivity) * factor, baseline, unit or None


def _name(definition: Dataset) -> tuple[str, bool]:
    """The lead by its code, else what the file calls the channel."""
    sources = definition.get("ChannelSourceSequence")
    source = sources[0] if sources else {}
    scheme = str(source.get("CodingSchemeDesignator") or "").upper()
    code = source.get("CodeValue") or source.get("LongCodeValue") or ""
    if scheme.startswith(_LEAD_SCHEMES[:2]) or not scheme:
        lead = lead_of_code(str(code))
        if lead is not None:
            return lead, True
    meaning = source.get("CodeMeaning") or definition.get("ChannelLabel")
    return str(meaning or "ECG"), False


def _runs(mask: npt.NDArray[np.bool_], shortest: int) -> npt.NDArray[np.bool_]:
    """Only stretches of at least ``shortest``: real samples meet a padding value of 0 too."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.view(np.int8), [0]))))
    kept = np.zeros(mask.size, dtype=bool)
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        kept[start:end] = end - start >= shortest
    return kept
