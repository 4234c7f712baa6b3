"""What carts export: GE MUSE XML, Philips Sierra XML, and one ECG as DICOM, SCP-ECG and aECG."""

from __future__ import annotations

import base64
import gzip
import re
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.ecg.formats.xli import decode_xli, expand_lzw
from ecg_agent_ray.errors import CorruptRecordingError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "ecg"
LZW_CODES = 1023


def fixture(name: str) -> bytes:
    return gzip.decompress((FIXTURES / f"{name}.gz").read_bytes())


def text(name: str) -> str:
    data = fixture(name)
    return data.decode("utf-16" if data[:2] == b"\xff\xfe" else "latin-1")


def test_one_ecg_as_dicom_scp_and_aecg_is_one_recording() -> None:
    dicom = ecg.read(FIXTURES / "ecgtoolkit_example.dcm")
    scp = ecg.read(fixture("ecgtoolkit_example.scp"))
    aecg = ecg.read(fixture("ecgtoolkit_example_aecg.xml"))
    assert (dicom.format, scp.format, aecg.format) == ("dicom", "scp-ecg", "aecg")
    assert dicom.signal.shape == (12, 5000)
    assert dicom.leads == scp.leads == aecg.leads == ecg.STANDARD_LEADS
    for lead in ecg.STANDARD_LEADS:
        assert np.array_equal(dicom.lead(lead), scp.lead(lead)), lead
        assert np.array_equal(dicom.lead(lead), aecg.lead(lead)), lead
    assert dicom == scp == aecg


def test_muse_stores_eight_leads_and_the_rest_follows() -> None:
    recording = ecg.read(fixture("ge_muse_example.xml"))
    assert (recording.format, recording.sampling_rate) == ("muse-xml", 500)
    assert recording.leads == ecg.STANDARD_LEADS
    assert recording.signal.shape == (12, 5000), "the rhythm, not the 600 samples of the median"
    payloads = re.findall(
        r"<LeadID>(\w+)</LeadID>.*?<WaveFormData>(.*?)</WaveFormData>",
        text("ge_muse_example.xml"),
        re.S,
    )
    assert len(payloads) == 16
    for name, payload in payloads[8:]:
        stored = np.frombuffer(base64.b64decode(payload), "<i2")
        assert np.allclose(recording.lead(name), stored * 4.88e-3, atol=1e-6)
    one, two = recording.lead("I"), recording.lead("II")
    assert np.allclose(recording.lead("III"), two - one, atol=1e-5)
    assert np.allclose(recording.lead("aVF"), two - one / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rate_bpm", "qt_ms"),
    [
        ("ge_muse_example.xml", (56, 56), 434),
        ("philips_sierra_1_03.xml", (41, 41), 476),
        # the heart slows down from 104 to 70 bpm within this recording
        ("philips_sierra_1_04.xml", (70, 104), 352),
    ],
)
def test_measured_as_the_device_did(name: str, rate_bpm: tuple[int, int], qt_ms: int) -> None:
    measured = tools.measure(ecg.read(fixture(name)), lead="global").to_dict()
    assert rate_bpm[0] - 3 <= measured["heart_rate_bpm"] <= rate_bpm[1] + 3
    assert measured["qt_ms"] == pytest.approx(qt_ms, abs=30)


@pytest.mark.parametrize("name", ["philips_sierra_1_03.xml", "philips_sierra_1_04.xml"])
def test_philips_amplitudes_are_those_the_device_measured(name: str) -> None:
    """Peak to peak of the QRS in each lead, also those that are stored as differences only."""
    recording = ecg.read(fixture(name))
    assert (recording.format, recording.sampling_rate) == ("philips-xml", 500)
    assert recording.signal.shape == (12, 5500)
    stated = dict(
        re.findall(r'<leadmeasurement leadname="(\w+)".*?<qrsppk>(\d+)<', text(name), re.S)
    )
    assert tuple(stated) == ecg.STANDARD_LEADS
    beats = tools.measure(recording, lead="II", beats=True).to_dict()["beats"]
    peaks = [beat["r_peak"] for beat in beats if beat["r_peak"]]
    if "1_03" in name:
        # its aVF measurement stops at the Q wave, where a raised ST segment follows
        del stated["aVF"]
    for lead, microvolts in stated.items():
        row = recording.lead(lead)
        heights = [np.ptp(row[peak - 30 : peak + 40]) for peak in peaks[1:-1]]
        assert np.median(heights) * 1000 == pytest.approx(int(microvolts), rel=0.1), lead


def test_philips_calibration_pulse_is_a_gap() -> None:
    early = ecg.read(fixture("philips_sierra_1_03.xml"))
    late = ecg.read(fixture("philips_sierra_1_04.xml"))
    assert np.isnan(late.signal[:, 5300:]).all()
    assert np.isfinite(late.signal[:, :5300]).all()
    assert np.isnan(early.signal[:, 5300:]).all()
    assert np.isfinite(early.signal[:, :5200]).all()


@pytest.mark.parametrize("encoding", ["Base64", "Plain"])
def test_philips_without_compression(encoding: str) -> None:
    units = np.random.default_rng(3).integers(-500, 500, (12, 600))
    payload = (
        base64.b64encode(units.astype("<i2").tobytes()).decode()
        if encoding == "Base64"
        else " ".join(map(str, units.reshape(-1)))
    )
    data = (
        '<restingecgdata xmlns="http://www3.medical.philips.com"><dataacquisition>'
        "<signalcharacteristics><samplingrate>200</samplingrate><signalresolution>2.5"
        "</signalresolution><numberchannelsvalid>12</numberchannelsvalid></signalcharacteristics>"
        f'</dataacquisition><waveforms><parsedwaveforms dataencoding="{encoding}" '
        f'compressflag="False" compressmethod="XLI" durationperchannel="3000">{payload}'
        "</parsedwaveforms></waveforms></restingecgdata>"
    )
    recording = ecg.read(data.encode())
    assert recording.sampling_rate == 200
    assert np.allclose(recording.signal, units * 2.5e-3, atol=1e-6)


def compress_lzw(data: bytes) -> bytes:
    """Ten-bit LZW, the inverse of what is tested."""
    table = {bytes((value,)): value for value in range(256)}
    codes, current = [], b""
    for octet in data:
        longer = current + bytes((octet,))
        if longer in table:
            current = longer
            continue
        codes.append(table[current])
        if len(table) < LZW_CODES:
            table[longer] = len(table)
        current = bytes((octet,))
    bits = "".join(format(code, "010b") for code in [*codes, table[current], LZW_CODES])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def compress_xli(lead: npt.NDArray[np.int64]) -> bytes:
    bends = np.diff(lead, n=2)
    numbers = np.concatenate((lead[:2], 64 - bends[1:], [64])).astype(">i2")
    octets = np.frombuffer(numbers.tobytes(), np.uint8).reshape(-1, 2).T.tobytes()
    chunk = compress_lzw(octets)
    return struct.pack("<ihh", len(chunk), 1, -bends[0]) + chunk


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(min_size=1, max_size=3000), repeats=st.integers(1, 5))
def test_lzw_round_trip(data: bytes, repeats: int) -> None:
    data *= repeats
    assert expand_lzw(compress_lzw(data), len(data)) == data
    with pytest.raises(CorruptRecordingError, match="more than"):
        expand_lzw(compress_lzw(data), len(data) - 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), length=st.integers(3, 6000))
def test_xli_round_trip(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    leads = np.cumsum(rng.integers(-40, 40, (2, length)), axis=1)
    data = b"".join(map(compress_xli, leads))
    assert np.array_equal(decode_xli(data, 2, length), leads)


def changed(name: str, *replacements: tuple[str, str]) -> bytes:
    content = text(name)
    for pattern, new in replacements:
        content, count = re.subn(pattern, new, content, flags=re.S)
        assert count, pattern
    return content.replace("utf-16", "utf-8").encode()


@pytest.mark.parametrize(
    ("name", "pattern", "new", "message"),
    [
        ("ge_muse_example.xml", "<WaveformType>Rhythm<", "<WaveformType>Median<", "averaged beat"),
        ("ge_muse_example.xml", "CountTotal>5000<", "CountTotal>5001<", "truncated"),
        ("ge_muse_example.xml", "MICROVOLTS", "mmHg", "unknown size or unit"),
        ("ge_muse_example.xml", "<SampleBase>500", "<SampleBase>fast", "no number"),
        ("ge_muse_example.xml", "<WaveFormData>.{9}", "<WaveFormData>****", "base64"),
        ("philips_sierra_1_03.xml", "parsedwaveforms", "otherwaveforms", "no parsedwaveforms"),
        ("philips_sierra_1_03.xml", 'compressmethod="XLI"', 'compressmethod="ZIP"', "only XLI"),
        ("philips_sierra_1_03.xml", 'channel="11000"', 'channel="12000"', "truncated"),
        ("philips_sierra_1_03.xml", 'channel="11000"', 'channel="9e15"', "claims 12 leads"),
        ("philips_sierra_1_04.xml", 'resolution="5"', 'resolution="-5"', "-5 uV"),
        ("philips_sierra_1_04.xml", 'numberofleads="12"', 'numberofleads="9999"', "9999 leads"),
    ],
)
def test_broken_exports_are_refused(name: str, pattern: str, new: str, message: str) -> None:
    with pytest.raises(CorruptRecordingError, match=message):
        ecg.read(changed(name, (pattern, new)))


def test_documents_cannot_grow() -> None:
    muse = text("ge_muse_example.xml")
    bare = '<!DOCTYPE RestingECG SYSTEM "restecg.dtd">'
    assert bare in muse
    declared = muse.replace(bare, bare[:-1] + ' [<!ENTITY a "aaaa">]>')
    many = f"<restingecgdata>{'<a/>' * 1_100_000}</restingecgdata>"
    for document, message in ((declared, "document type"), (many, "more elements")):
        with pytest.raises(CorruptRecordingError, match=message):
            ecg.read(document.encode())


def test_a_stale_checksum_is_reported_and_read(reader_log: list[str]) -> None:
    read = ecg.read(
        changed("ge_muse_example.xml", ("<LeadDataCRC32>3638567657<", "<LeadDataCRC32>7<"))
    )
    assert "the MUSE lead I does not match its checksum" in reader_log
    assert read == ecg.read(fixture("ge_muse_example.xml"))
