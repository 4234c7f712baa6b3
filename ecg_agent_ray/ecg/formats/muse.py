"""GE MUSE XML (``RestingECG``): eight leads of base64 samples, the other limb leads follow.

The format is as carts and MUSE servers export it; GE publishes no specification, the field names
say what they hold. Of the patient nothing is read.
"""

from __future__ import annotations

import logging
import zlib
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.formats.markup import decode_base64, number, parse_document, text_of
from ecg_agent_ray.ecg.formats.parsed import Parsed, check_size, parsed_rows
from ecg_agent_ray.ecg.units import millivolts_per
from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["parse_muse"]

_logger = logging.getLogger(__name__)
_SAMPLE_TYPES: dict[int, np.dtype[np.signedinteger[Any]]] = {
    1: np.dtype(np.int8),
    2: np.dtype("<i2"),
    4: np.dtype("<i4"),
}


def parse_muse(data: bytes) -> Parsed:
    """The rhythm waveform of a MUSE export; its averaged (median) beat is no recording.

    Raises CorruptRecordingError where there is no rhythm waveform or its samples do not fit what
    is said of them.
    """
    root = parse_document(data)
    waveforms = root.findall("{*}Waveform")
    kinds = [text_of(waveform, "WaveformType").lower() for waveform in waveforms]
    for waveform, kind in zip(waveforms, kinds, strict=True):
        if kind == "rhythm":
            return _waveform(waveform)
    if "median" in kinds:
        raise CorruptRecordingError("the MUSE file holds only an averaged beat, no rhythm waveform")
    raise CorruptRecordingError("the MUSE file holds no rhythm waveform")


def _waveform(waveform: ElementTree.Element) -> Parsed:
    base = number(text_of(waveform, "SampleBase"), "the MUSE SampleBase")
    exponent = number(text_of(waveform, "SampleExponent"), "the MUSE SampleExponent", 0.0)
    if not 0 < base < 1e6 or abs(exponent) > 6:
        raise CorruptRecordingError(f"a MUSE sampling rate of {base:g}e{exponent:g} Hz")
    leads = waveform.findall("{*}LeadData")
    names = [text_of(lead, "LeadID") or "ECG" for lead in leads]
    check_size(len(leads), 1, "the MUSE waveform")
    rows = [_millivolts(lead, name) for lead, name in zip(leads, names, strict=True)]
    length = max(map(len, rows))
    check_size(len(rows), length, "the MUSE waveform")
    signal = np.full((len(rows), length), np.nan, dtype=np.float32)
    for target, row in zip(signal, rows, strict=True):
        target[: len(row)] = row
    return parsed_rows(signal, names, base * 10.0**exponent, "muse-xml")


def _millivolts(lead: ElementTree.Element, name: str) -> npt.NDArray[np.float32]:
    """One lead's samples, in mV."""
    what = f"the MUSE lead {name}"
    raw = decode_base64(text_of(lead, "WaveFormData"), what)
    dtype = _SAMPLE_TYPES.get(int(number(text_of(lead, "LeadSampleSize"), f"{what}'s size", 2.0)))
    unit = millivolts_per(text_of(lead, "LeadAmplitudeUnits") or "MICROVOLTS")
    if dtype is None or unit is None:
        raise CorruptRecordingError(f"{what} has samples of an unknown size or unit")
    held = len(raw) // dtype.itemsize
    claimed = number(text_of(lead, "LeadSampleCountTotal"), f"{what}'s count", float(held))
    if not 0 < claimed <= held:
        raise CorruptRecordingError(
            f"{what} announces {claimed:g} samples and holds {held} (truncated?)"
        )
    crc = text_of(lead, "LeadDataCRC32")
    if crc.isascii() and crc.isdigit() and int(crc[:12]) not in (0, zlib.crc32(raw)):
        # not refused: programs that edit exports leave a stale or invented checksum behind
        _logger.warning("%s does not match its checksum", what)
    scale = number(text_of(lead, "LeadAmplitudeUnitsPerBit"), f"{what}'s scale") * unit
    baseline = number(text_of(lead, "FirstSampleBaseline"), f"{what}'s baseline", 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        units = np.frombuffer(raw, dtype, int(claimed)).astype(np.float64)
        return ((units - baseline) * scale).astype(np.float32)
