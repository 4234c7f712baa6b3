"""Sample for sample against an independent reader: wfdb, pydicom, edfio, MNE, pyEDFlib.

The EDF and DICOM files that vary are written here by hand, from the specifications.
"""

from __future__ import annotations

import gzip
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ecg_agent_ray import ecg
from ecg_agent_ray.errors import CorruptRecordingError, RecordingError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SOME = settings(max_examples=60, deadline=None, derandomize=True)
VOLTS = {"mV": 1.0, "uV": 1e-3, "V": 1e3, "nV": 1e-6}


def unpacked(folder: Path, target: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".gz":
            (target / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
            yield target / path.stem
        elif path.is_file() and path.suffix in (".dcm", ".hea", ".dat", ".edf"):
            (target / path.name).write_bytes(path.read_bytes())
            yield target / path.name


def same(read: ecg.Recording, name: str, reference: np.ndarray) -> None:
    row = read.lead(name)
    assert len(row) == len(reference), name
    assert np.allclose(row, reference, atol=2e-6, rtol=1e-6, equal_nan=True), name


def test_every_fixture_by_an_independent_reader(tmp_path: Path) -> None:
    by_suffix: dict[str, int] = {}
    for path in list(unpacked(FIXTURES, tmp_path)):
        if path.suffix == ".hea":
            against_wfdb(path)
        elif path.suffix == ".dcm":
            against_pydicom(path)
        elif path.suffix == ".edf":
            against_mne(path)
            against_pyedflib(path)
        else:
            continue
        by_suffix[path.suffix] = by_suffix.get(path.suffix, 0) + 1
    assert by_suffix[".hea"] >= 7
    assert by_suffix[".dcm"] >= 8
    assert by_suffix[".edf"] >= 2


def test_shared_records_by_the_wfdb_library(shared_data: Path) -> None:
    compared = 0
    for folder in ("ludb", "qtdb", "cinc2021"):
        for path in sorted((shared_data / folder).rglob("*.hea"))[:8]:
            against_wfdb(path)
            compared += 1
    assert compared


def against_wfdb(path: Path) -> None:
    record = wfdb.rdrecord(str(path.with_suffix("")), smooth_frames=False)
    read = ecg.read(path)
    seen = set()
    for name, unit, row in zip(record.sig_name, record.units, record.e_p_signal, strict=True):
        if name in read.other_channels:
            continue
        lead = ecg.normalise_lead(name)
        seen.add(lead)
        same(read, lead, row * {"mv": 1.0, "uv": 1e-3, "v": 1e3}[unit.lower()])
    assert set(read.leads) - seen <= set(ecg.LIMB_LEADS), "what is derived"


def against_pydicom(path: Path) -> None:
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        if dataset.original_encoding[1] is False:
            for group in dataset.WaveformSequence:  # pydicom leaves words of OW as they are stored
                swapped = np.frombuffer(group.WaveformData, ">i2").astype("<i2")
                group.WaveformData = swapped.tobytes()
        arrays = [dataset.waveform_array(i) for i in range(len(dataset.WaveformSequence))]
    read = ecg.read(path)
    at: dict[str, Any] = {}
    for group, array in zip(dataset.WaveformSequence, arrays, strict=True):
        if group.WaveformOriginality != "ORIGINAL":
            continue
        start = round(float(group.get("MultiplexGroupTimeOffset") or 0) * read.sampling_rate / 1000)
        for channel, row in zip(group.ChannelDefinitionSequence, array.T, strict=True):
            unit = channel.ChannelSensitivityUnitsSequence[0].CodeValue
            lead = ecg.leads.lead_of_code(channel.ChannelSourceSequence[0].CodeValue)
            at.setdefault(lead, np.full(read.n_samples, np.nan))[start : start + len(row)] = (
                row * VOLTS[unit]
            )
    for lead, row in at.items():
        known = np.isfinite(read.lead(lead))  # padding is a gap here and a number there
        assert known.mean() > 0.2
        assert np.allclose(read.lead(lead)[known], row[known], atol=2e-6)
    assert set(read.leads) - set(at) <= set(ecg.LIMB_LEADS)


def against_mne(path: Path) -> None:
    import mne

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = mne.io.read_raw_edf(path, preload=True, verbose="error", encoding="latin1")
    read = ecg.read(path)
    there = read.signal[:, np.isfinite(read.signal[0])]
    for name in read.leads:
        row = raw.get_data([name])[0] * 1e3  # volts; records stand together, without their gaps
        assert np.allclose(there[read.leads.index(name)], row, atol=2e-6), name


def against_pyedflib(path: Path) -> None:
    import pyedflib

    try:
        reader = pyedflib.EdfReader(str(path))
    except OSError:
        return  # it refuses files with gaps and header fields beyond ASCII
    with reader:
        read = ecg.read(path)
        for i, name in enumerate(reader.getSignalLabels()):
            if name in read.leads:
                same(read, name, reader.readSignal(i) * VOLTS[reader.getPhysicalDimension(i)])


def field(value: object, width: int) -> bytes:
    text = value if isinstance(value, bytes) else str(value).encode()
    return text[:width].ljust(width)


def edf(
    digits: list[np.ndarray],
    *,
    labels: list[str],
    units: list[bytes],
    gains: list[float],
    offsets: list[float] | None = None,
    record_s: object = 1,
    starts: list[float] | None = None,
    n_records: int | None = None,
    comma: bool = False,
) -> bytes:
    """An EDF file; ``digits`` hold (records, samples) for each signal. ``starts`` makes EDF+D."""
    offsets = offsets or [0.0] * len(digits)
    count = len(digits[0])
    columns: dict[str, list[object]] = {
        "label": list(labels),
        "transducer": [""] * len(digits),
        "unit": list(units),
        "pmin": [f"{-1000 * g + o:.6g}" for g, o in zip(gains, offsets, strict=True)],
        "pmax": [f"{1000 * g + o:.6g}" for g, o in zip(gains, offsets, strict=True)],
        "dmin": [-1000] * len(digits),
        "dmax": [1000] * len(digits),
        "filter": [""] * len(digits),
        "samples": [d.shape[1] for d in digits],
        "reserved": [""] * len(digits),
    }
    if starts is not None:
        extra = ["EDF Annotations", "", "", -1, 1, -32768, 32767, "", 16, ""]
        for values, value in zip(columns.values(), extra, strict=True):
            values.append(value)
    widths = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
    fields = b"".join(
        field(str(v).replace(".", ",") if comma and name in ("pmin", "pmax") else v, width)
        for (name, values), width in zip(columns.items(), widths, strict=True)
        for v in values
    )
    n_signals = len(columns["label"])
    head = field("0", 8) + field("X", 80) + field("X", 80) + b"01.01.2000.00.00"
    head += field(256 * (n_signals + 1), 8) + field("EDF+D" if starts is not None else "", 44)
    head += field(count if n_records is None else n_records, 8) + field(record_s, 8)
    body = b""
    for i in range(count):
        body += b"".join(d[i].astype("<i2").tobytes() for d in digits)
        if starts is not None:
            body += f"+{starts[i]:g}\x14\x14\0".encode().ljust(32, b"\0")
    return head + field(n_signals, 4) + fields + body


@SOME
@given(
    seed=st.integers(0, 999),
    records=st.integers(2, 12),
    per_second=st.sampled_from([100, 250, 500]),
    unit=st.sampled_from([b"uV", b"mV", b"V", b"\xb5V", b"\xe6V", "µV".encode(), b"microV"]),
    gaps=st.booleans(),
    comma=st.booleans(),
    unknown_count=st.booleans(),
)
def test_edf(
    seed: int,
    records: int,
    per_second: int,
    unit: bytes,
    gaps: bool,
    comma: bool,
    unknown_count: bool,
) -> None:
    rng = np.random.default_rng(seed)
    ii, v5 = (rng.integers(-900, 900, (records, per_second)) for _ in range(2))
    breath = rng.integers(-900, 900, (records, 25))
    scale = {b"mV": 1.0, b"V": 1e3}.get(unit, 1e-3)
    gain = 0.0025 / scale
    starts = np.cumsum(rng.integers(1, 9, records)).tolist() if gaps else None
    data = edf(
        [breath, ii, v5],
        labels=["Resp nasal", "ECG II", "V5"],
        units=[unit, unit, unit],
        gains=[1.0, gain, gain],
        starts=starts,
        comma=comma,
        n_records=-1 if unknown_count else None,
    )
    read = ecg.read(data)
    assert (read.leads, read.sampling_rate) == (("II", "V5"), per_second)
    assert list(read.other_channels) == ["Resp nasal"]
    for lead, digits in (("II", ii), ("V5", v5)):
        row = read.lead(lead)
        for i in range(records):
            first = round((starts[i] - starts[0] if starts else i) * per_second)
            assert np.allclose(row[first : first + per_second], digits[i] * 0.0025, atol=1e-5)
        assert np.isfinite(row).sum() == digits.size


def test_edf_of_several_rates_tells_what_it_leaves_out() -> None:
    rng = np.random.default_rng(0)
    fast, slow = rng.integers(-900, 900, (5, 500)), rng.integers(-900, 900, (5, 125))
    data = edf(
        [slow, fast, fast],
        labels=["ECG I", "ECG II", "ECG V1"],
        units=[b"mV"] * 3,
        gains=[0.001] * 3,
    )
    read = ecg.read(data)
    assert (read.leads, read.sampling_rate) == (("II", "V1"), 500.0)
    assert "125 Hz" in read.other_channels["ECG I"]


def test_edf_without_scale_or_unit_asks_for_it() -> None:
    digits = np.random.default_rng(0).integers(-900, 900, (5, 250))
    flat = edf([digits], labels=["ECG"], units=[b"mV"], gains=[0.0])
    with pytest.raises(RecordingError, match="--gain"):
        ecg.read(flat)
    assert np.allclose(ecg.read(flat, gain=200).signal[0], digits.reshape(-1) / 200)
    blank = edf([digits], labels=["ECG"], units=[b""], gains=[0.001])
    with pytest.raises(RecordingError, match="--unit"):
        ecg.read(blank)
    assert np.allclose(ecg.read(blank, unit="uV").signal[0], digits.reshape(-1) * 1e-6)
    lost = edf([digits], labels=["ECG"], units=[b"mV"], gains=[0.001], starts=[0, 1, 2, 3, 4])
    with pytest.raises(CorruptRecordingError, match="when it begins"):
        ecg.read(lost.replace(b"\x14\x14", b"\0\0"))
    with pytest.raises(CorruptRecordingError, match="overlap"):
        ecg.read(
            edf([digits], labels=["ECG"], units=[b"mV"], gains=[1.0], starts=[0, 1, 1.2, 3, 4])
        )


CODES = {"I": 1, "II": 2, "V1": 3, "V2": 4, "V3": 5, "V4": 6, "V5": 7, "V6": 8, "III": 61}
CODES |= {"aVR": 62, "aVL": 63, "aVF": 64}


def channel(lead: str, scheme: str, unit: str, sensitivity: str, **further: Any) -> Dataset:
    item, source, units = Dataset(), Dataset(), Dataset()
    prefix = {"SCPECG": "5.6.3-9-", "MDC": "2:"}[scheme]
    source.CodeValue, source.CodingSchemeDesignator = f"{prefix}{CODES[lead]}", scheme
    source.CodeMeaning = "Ableitung"
    units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = unit, "UCUM", unit
    item.ChannelSourceSequence = Sequence([source])
    item.ChannelSensitivity = sensitivity
    item.ChannelSensitivityUnitsSequence = Sequence([units])
    item.WaveformBitsStored = 16
    for name, value in further.items():
        setattr(item, name, value)
    return item


def group(channels: list[Dataset], stored: np.ndarray, rate: float, offset_ms: float) -> Dataset:
    """``stored`` (channels, samples) of int16."""
    item = Dataset()
    item.WaveformOriginality = "ORIGINAL"
    item.MultiplexGroupTimeOffset = str(offset_ms)
    item.NumberOfWaveformChannels, item.NumberOfWaveformSamples = stored.shape
    item.SamplingFrequency = str(rate)
    item.ChannelDefinitionSequence = Sequence(channels)
    item.WaveformBitsAllocated, item.WaveformSampleInterpretation = 16, "SS"
    item.WaveformData = stored.T.astype("<i2").tobytes()
    item["WaveformData"].VR = "OW"
    return item


def dicom(groups: list[Dataset], syntax: str, *, preamble: bool = True) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.9.1.1", "1.2.3"
    dataset.PatientName = "X"
    dataset.WaveformSequence = Sequence(groups)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if syntax == ExplicitVRBigEndian:
        for item in groups:
            words = np.frombuffer(item.WaveformData, "<i2")
            item.WaveformData = words.astype(">i2").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(
        buffer,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    data = buffer.getvalue()
    return data if preamble else data[132:]


@SOME
@given(
    seed=st.integers(0, 999),
    syntax=st.sampled_from([ExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian]),
    scheme=st.sampled_from(["SCPECG", "MDC"]),
    preamble=st.booleans(),
    unit=st.sampled_from(["uV", "mV"]),
    sensitivity=st.sampled_from(["1.25", "4.88", "-2.5"]),
    correction=st.sampled_from([None, "1", "1.02"]),
    baseline=st.sampled_from([None, "0", "12.5"]),
    strips=st.sampled_from([1, 2, 4]),
)
def test_dicom(
    seed: int,
    syntax: str,
    scheme: str,
    preamble: bool,
    unit: str,
    sensitivity: str,
    correction: str | None,
    baseline: str | None,
    strips: int,
) -> None:
    rng = np.random.default_rng(seed)
    names = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]
    further = {
        key: value
        for key, value in (
            ("ChannelSensitivityCorrectionFactor", correction),
            ("ChannelBaseline", baseline),
        )
        if value is not None
    }
    length, rate = 1000, 500.0
    groups, expected = [], {}
    for i in range(strips):
        part = names[i * len(names) // strips : (i + 1) * len(names) // strips]
        stored = rng.integers(-3000, 3000, (len(part), length))
        channels = [channel(n, scheme, unit, sensitivity, **further) for n in part]
        groups.append(group(channels, stored, rate, 2000 * i))
        for name, row in zip(part, stored, strict=True):
            factor = float(sensitivity) * float(correction or 1)
            values = (row * factor + float(baseline or 0)) * VOLTS[unit]
            expected[name] = (i * length, values)
    read = ecg.read(dicom(groups, syntax, preamble=preamble))
    if {"I", "II"} <= set(expected):
        assert read.leads == ecg.STANDARD_LEADS
    assert (read.sampling_rate, read.n_samples) == (rate, length * strips)
    for name, (first, values) in expected.items():
        row = read.lead(name)
        assert np.allclose(row[first : first + length], values, rtol=1e-5, atol=1e-5), name
        assert np.isfinite(row).sum() == length


def test_dicom_keeps_averages_and_pressures_apart() -> None:
    stored = np.random.default_rng(0).integers(-3000, 3000, (2, 1000))
    pressure = channel("II", "MDC", "mm[Hg]", "1")
    pressure.ChannelSourceSequence[0].CodeValue = "2:18949"
    pressure.ChannelSourceSequence[0].CodeMeaning = "Arterial pressure"
    rhythm = group([channel("II", "MDC", "uV", "1"), pressure], stored, 500, 0)
    beat = group([channel("V1", "MDC", "uV", "1")], stored[:1], 500, 0)
    beat.WaveformOriginality = "DERIVED"
    read = ecg.read(dicom([beat, rhythm], ExplicitVRLittleEndian))
    assert read.leads == ("II",)
    assert list(read.other_channels) == ["Arterial pressure"]


@SOME
@given(
    seed=st.integers(0, 999),
    fmt=st.sampled_from([16, 24, 32, 61, 80, 160, 212]),
    per_frame=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    frames=st.integers(40, 80),
)
def test_wfdb_samples_per_frame(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    fmt: int,
    per_frame: list[int],
    frames: int,
) -> None:
    rng = np.random.default_rng(seed)
    total = sum(per_frame) * frames
    low, high = (-127, 127) if fmt == 80 else (-2000, 2000)
    values = rng.integers(low, high, (frames, sum(per_frame)))
    flat = values.reshape(-1)
    if fmt == 212:
        flat = np.pad(flat, (0, total % 2)).reshape(-1, 2) & 0xFFF
        packed = np.stack(
            [flat[:, 0] & 0xFF, (flat[:, 0] >> 8) | ((flat[:, 1] >> 8) << 4), flat[:, 1] & 0xFF], 1
        )
        data = packed.astype(np.uint8).tobytes()
    elif fmt == 24:
        data = b"".join(struct.pack("<i", int(v))[:3] for v in flat)
    else:
        shift = {160: 32768, 80: 128}.get(fmt, 0)
        data = (flat + shift).astype({61: ">i2", 160: "<u2", 80: "u1", 32: "<i4"}.get(fmt, "<i2"))
        data = data.tobytes()
    folder = tmp_path_factory.mktemp("frames")
    (folder / "f.dat").write_bytes(data)
    names = ["II", "V1", "V5"][: len(per_frame)]
    lines = [
        f"f.dat {fmt}x{n} 200(7)/mV 12 0 0 0 0 {name}"
        for n, name in zip(per_frame, names, strict=True)
    ]
    (folder / "f.hea").write_text("\n".join([f"f {len(names)} 100 {frames}", *lines]) + "\n")
    read = ecg.read(folder / "f")
    ends = np.cumsum(per_frame)
    expected = {
        name: (values[:, end - n : end].reshape(-1) - 7) / 200
        for name, end, n in zip(names, ends, per_frame, strict=True)
    }
    kept = max(per_frame, key=lambda n: (per_frame.count(n), n))
    assert read.sampling_rate == 100 * kept
    for name, n in zip(names, per_frame, strict=True):
        if n == kept:
            same(read, name, expected[name])
        else:
            assert f"{100 * n} Hz" in read.other_channels[name]
    if fmt != 61:  # the library's reader of it is left out of some versions
        record = wfdb.rdrecord(str(folder / "f"), smooth_frames=False)
        for name, row in zip(names, record.e_p_signal, strict=True):
            assert np.allclose(row, expected[name], equal_nan=True)
