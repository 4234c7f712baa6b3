"""What devices and archives export: EDF and BDF, DICOM waveforms, HL7 annotated ECG."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.formats.markup import parse_document
from ecg_agent_ray.ecg.formats.parsed import Parsed, check_size, millivolts_per
from ecg_agent_ray.ecg.leads import STANDARD_LEADS, normalise_lead
from ecg_agent_ray.errors import CorruptRecordingError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["parse_aecg", "parse_dicom", "parse_edf"]

_DEFLATED = b"1.2.840.10008.1.2.1.99"
# ISO/IEEE 11073-10101 codes of the standard leads, as DICOM CID 3001 lists them
_MDC_LEADS = {"2:1": "I", "2:2": "II", "2:61": "III", "2:62": "aVR", "2:63": "aVL", "2:64": "aVF"}
_MDC_LEADS |= {f"2:{2 + i}": f"V{i}" for i in range(1, 7)}
_DICOM_TYPES = {("SS", 16): "<i2", ("US", 16): "<u2", ("SB", 8): "i1", ("UB", 8): "u1"}
_DICOM_TYPES |= {("SL", 32): "<i4", ("UL", 32): "<u4"}
_PADDING_RUN_S = 0.1


def parse_edf(data: bytes) -> Parsed:
    """EDF or BDF: the channels in volts; where some are named like leads or "ECG", only those.

    Channels at another rate than the first ECG channel are left out.
    """
    _check_edf_claims(data)
    import edfio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = edfio.read_bdf if data[:1] == b"\xff" else edfio.read_edf
            signals: list[Any] = list(read(io.BytesIO(data)).signals)
            volts = [s for s in signals if millivolts_per(s.physical_dimension) is not None]
            named = [s for s in volts if _is_ecg_label(s.label)] or volts
            kept = [s for s in named if s.sampling_frequency == named[0].sampling_frequency]
            rows = [_edf_millivolts(s) for s in kept]
            rate = float(kept[0].sampling_frequency) if kept else 0.0
            labels = [s.label for s in kept]
    except Exception as error:  # the library raises what a damaged header makes of its parsing
        raise CorruptRecordingError(
            f"broken EDF/BDF file: {type(error).__name__}: {error}"
        ) from error
    if not rows:
        raise CorruptRecordingError("no channel of the EDF/BDF file is in volts")
    return Parsed(np.stack(rows), labels, rate, "bdf" if data[:1] == b"\xff" else "edf")


def _edf_millivolts(signal: Any) -> npt.NDArray[np.float32]:
    scale = millivolts_per(signal.physical_dimension) or 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.asarray(signal.data, dtype=np.float64) * scale, dtype=np.float32)


def _is_ecg_label(label: str) -> bool:
    return normalise_lead(label) in STANDARD_LEADS or bool(re.search(r"\b(?:ecg|ekg)", label, re.I))


def _check_edf_claims(data: bytes) -> None:
    """The header's counts against the bytes there are, before a library believes them."""
    width = 3 if data[:1] == b"\xff" else 2
    try:
        header_bytes, n_records = int(data[184:192]), int(data[236:244])
        n_signals = int(data[252:256])
        at = 256 + n_signals * 216
        counts = [int(data[at + 8 * i : at + 8 * i + 8]) for i in range(n_signals)]
    except ValueError as error:
        raise CorruptRecordingError(f"broken EDF/BDF header: {error}") from error
    check_size(n_signals, max(counts, default=0) * max(n_records, 1), "the EDF/BDF header")
    needed = header_bytes + sum(counts) * max(n_records, 1) * width
    if min(counts) < 0 or header_bytes != 256 * (n_signals + 1) or needed > len(data):
        raise CorruptRecordingError(
            f"the EDF/BDF header announces {needed} bytes, the file has {len(data)} (truncated?)"
        )


def parse_dicom(data: bytes) -> Parsed:
    """A DICOM waveform object: its first ORIGINAL multiplex group with a channel in volts."""
    if _DEFLATED in data[:4096]:
        raise CorruptRecordingError(
            "deflated DICOM is not read", hint="export it with an uncompressed transfer syntax"
        )
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = list(
                pydicom.dcmread(io.BytesIO(data), force=False).get("WaveformSequence") or []
            )
            groups.sort(key=lambda g: str(g.get("WaveformOriginality", "")) != "ORIGINAL")
            for group in groups:
                if parsed := _dicom_group(group):
                    return parsed
    except CorruptRecordingError:
        raise
    except Exception as error:  # pydicom parses lazily, so any element may fail, in many ways
        raise CorruptRecordingError(
            f"broken DICOM file: {type(error).__name__}: {error}"
        ) from error
    raise CorruptRecordingError("the DICOM file holds no ECG waveform in volts")


def _dicom_group(group: Dataset) -> Parsed | None:
    n_leads, n_samples = int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples)
    bits, sample_type = int(group.WaveformBitsAllocated), str(group.WaveformSampleInterpretation)
    check_size(n_leads, n_samples, "the DICOM waveform")
    dtype = _DICOM_TYPES.get((sample_type, bits))
    if dtype is None:
        raise CorruptRecordingError(f"DICOM samples of type {sample_type} in {bits} bits")
    buffer = bytes(group.WaveformData)
    if n_leads * n_samples * bits // 8 > len(buffer):
        raise CorruptRecordingError(
            f"the DICOM waveform announces {n_leads} x {n_samples} samples in {len(buffer)} bytes"
        )
    raw = np.frombuffer(buffer, dtype, n_leads * n_samples).reshape(n_samples, n_leads).T
    rate = float(group.SamplingFrequency)
    padding = group.get("WaveformPaddingValue")
    if isinstance(padding, bytes):
        padding = np.frombuffer(padding[: bits // 8], dtype)[0]
    rows, names = [], []
    for channel, values in zip(group.ChannelDefinitionSequence, raw, strict=False):
        factor = _dicom_factor(channel)
        if factor is None:
            continue
        row = (values.astype(np.float64) + float(channel.get("ChannelBaseline") or 0)) * factor
        if padding is not None:
            row[_runs(values == padding, round(_PADDING_RUN_S * rate))] = np.nan
        rows.append(row.astype(np.float32))
        names.append(_dicom_lead(channel))
    return Parsed(np.stack(rows), names, rate, "dicom") if rows else None


def _dicom_factor(channel: Dataset) -> float | None:
    """mV per stored unit; None for a channel that is no voltage."""
    units = channel.get("ChannelSensitivityUnitsSequence")
    scale = millivolts_per(str(units[0].CodeValue)) if units else None
    if scale is None:
        return None
    correction = float(channel.get("ChannelSensitivityCorrectionFactor") or 1)
    return float(channel.ChannelSensitivity) * correction * scale


def _dicom_lead(channel: Dataset) -> str:
    source = channel.ChannelSourceSequence[0]
    code = _MDC_LEADS.get(str(source.get("CodeValue")))
    return code or str(source.get("CodeMeaning") or channel.get("ChannelLabel") or "ECG")


def _runs(mask: npt.NDArray[np.bool_], shortest: int) -> npt.NDArray[np.bool_]:
    """Only stretches of at least ``shortest``: real samples meet a padding value of 0 too."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.view(np.int8), [0]))))
    kept = np.zeros(mask.size, dtype=bool)
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        kept[start:end] = end - start >= shortest
    return kept


def parse_aecg(data: bytes) -> Parsed:
    """HL7 annotated ECG (FDA): the first series' first sequence set, not the derived beats."""
    root = parse_document(data)
    for series in root.findall(".//{*}series"):
        for sequences in series.findall(".//{*}sequenceSet"):
            if parsed := _sequence_set(sequences):
                return parsed
    raise CorruptRecordingError("the aECG holds no series with leads")


def _sequence_set(sequences: ElementTree.Element) -> Parsed | None:
    rate: float | None = None
    rows: list[npt.NDArray[np.float32]] = []
    names: list[str] = []
    for sequence in sequences.findall(".//{*}sequence"):
        code = sequence.find("{*}code")
        value = sequence.find("{*}value")
        if code is None or value is None:
            continue
        name = code.get("code", "")
        if name.startswith("TIME_"):
            rate = _aecg_rate(value)
        elif name.startswith("MDC_ECG_LEAD_") and (row := _aecg_row(value)) is not None:
            rows.append(row)
            names.append(name)
    if not rows:
        return None
    if rate is None:
        raise CorruptRecordingError("the aECG gives no time increment")
    length = max(map(len, rows))
    check_size(len(rows), length, "the aECG")
    signal = np.full((len(rows), length), np.nan, dtype=np.float32)
    for target, row in zip(signal, rows, strict=True):
        target[: len(row)] = row
    return Parsed(signal, names, rate, "aecg")


def _aecg_rate(value: ElementTree.Element) -> float | None:
    increment = value.find("{*}increment")
    if increment is None:
        return None
    scale = {"s": 1.0, "ms": 1e-3, "us": 1e-6}.get(increment.get("unit", "s"))
    step = _quantity(increment.get("value")) * (scale or 0)
    return 1.0 / step if step > 0 else None


def _aecg_row(value: ElementTree.Element) -> npt.NDArray[np.float32] | None:
    origin, scale, digits = (value.find(f"{{*}}{name}") for name in ("origin", "scale", "digits"))
    if scale is None or digits is None or not digits.text:
        return None
    try:
        numbers = np.array(digits.text.split(), dtype=np.float64)
    except ValueError as error:
        raise CorruptRecordingError(f"the aECG's digits are no numbers: {error}") from error
    unit = millivolts_per(scale.get("unit", "uV"))
    zero_unit = millivolts_per(origin.get("unit", "uV")) if origin is not None else 1.0
    if unit is None or zero_unit is None:
        return None
    zero = _quantity(origin.get("value")) * zero_unit if origin is not None else 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        return (numbers * _quantity(scale.get("value")) * unit + zero).astype(np.float32)


def _quantity(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError as error:
        raise CorruptRecordingError(f"the aECG's {text!r} is no number") from error
