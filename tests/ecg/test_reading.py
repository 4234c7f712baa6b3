"""Every format, by content: the same ECG written in each must come back the same."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import wfdb

from ecg_agent_ray import ecg
from ecg_agent_ray.errors import CorruptRecordingError, RecordingError, UnsupportedFormatError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "ecg"


@pytest.fixture(scope="module")
def original() -> ecg.Recording:
    return ecg.sample(3)


def close(read: ecg.Recording, original: ecg.Recording, tolerance: float = 1e-6) -> None:
    assert read.leads == original.leads
    assert read.sampling_rate == original.sampling_rate
    assert np.allclose(read.signal, original.signal, atol=tolerance, equal_nan=True)


def test_shipped_records_agree_with_the_wfdb_library() -> None:
    assert len(ecg.samples()) == 12
    for path in ecg.samples():
        recording = ecg.read(path)
        reference = wfdb.rdrecord(str(path.with_suffix(""))).p_signal.T
        assert np.allclose(recording.signal, reference, atol=1e-6), path.stem
        assert recording.record_id == path.stem
        assert set(recording.leads) == set(ecg.STANDARD_LEADS)
    metadata = ecg.sample_metadata()
    assert metadata["patient_id"].is_unique
    assert [p.stem for p in ecg.samples()] == sorted(metadata["filename"])


@pytest.mark.parametrize("suffix", [".hea", ".dat", ""])
def test_wfdb_by_header_signal_file_or_stem(suffix: str, original: ecg.Recording) -> None:
    path = ecg.samples()[0].with_suffix(suffix)
    read = ecg.read(path)
    assert read == original
    assert (read.record_id, read.format) == ("00003_hr", "wfdb")


@pytest.mark.parametrize("fmt", ["16", "24", "32", "80", "516"])
def test_wfdb_sample_formats(fmt: str, tmp_path: Path, original: ecg.Recording) -> None:
    part = original.select(["I", "II", "V1"])
    gain = 40.0 if fmt == "80" else 400.0
    wfdb.wrsamp(
        "r",
        fs=500,
        units=["mV"] * 3,
        sig_name=list(part.leads),
        p_signal=part.signal.T.astype(float),
        fmt=[fmt] * 3,
        adc_gain=[gain] * 3,
        baseline=[3] * 3,
        write_dir=str(tmp_path),
    )
    reference = wfdb.rdrecord(str(tmp_path / "r")).p_signal.T
    read = ecg.read(tmp_path / "r")
    for row, name in enumerate(part.leads):
        assert np.allclose(read.lead(name), reference[row], atol=1e-6)


@pytest.mark.parametrize("fmt", ["61", "160", "212"])
def test_wfdb_sample_formats_packed_by_hand(fmt: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(-2000, 2000, (501, 2))
    if fmt == "212":
        low, high = values[:, 0] & 0xFFF, values[:, 1] & 0xFFF
        packed = np.stack([low & 0xFF, (low >> 8) | ((high >> 8) << 4), high & 0xFF], axis=1)
        data = packed.astype(np.uint8).tobytes()
    else:
        shifted = values + (32768 if fmt == "160" else 0)
        data = shifted.astype("<u2" if fmt == "160" else ">i2").tobytes()
    (tmp_path / "p.dat").write_bytes(data)
    lines = "".join(f"p.dat {fmt} 200/mV 16 0 0 0 0 {name}\n" for name in ("I", "V1"))
    (tmp_path / "p.hea").write_text(f"p 2 360 501\n{lines}")
    assert np.allclose(ecg.read(tmp_path / "p").signal, values.T / 200)
    assert np.allclose(wfdb.rdrecord(str(tmp_path / "p")).p_signal, values / 200)


def test_wfdb_invalid_samples_are_gaps(tmp_path: Path) -> None:
    values = np.array([[0, -32768, 200, 400]], dtype="<i2").T
    (tmp_path / "g.dat").write_bytes(values.tobytes())
    (tmp_path / "g.hea").write_text("g 1 250 4\ng.dat 16 200/mV 16 0 0 0 0 II\n")
    assert ecg.read(tmp_path / "g").signal.tolist()[0][2:] == [1.0, 2.0]
    assert np.isnan(ecg.read(tmp_path / "g").signal[0, 1])


def test_challenge_2017_header_with_the_date_before_the_time(tmp_path: Path) -> None:
    values = np.arange(-600, 600, dtype=np.int16)[np.newaxis]
    scipy.io.savemat(tmp_path / "A1.mat", {"val": values}, format="4")
    header = "A1 1 300 1200 1/05/2000 05:05:15 \r\nA1.mat 16+24 1000/mV 16 0 -600 0 0 ECG \r\n"
    (tmp_path / "A1.hea").write_bytes(header.encode())
    for name in ("A1.hea", "A1.mat", "A1"):
        read = ecg.read(tmp_path / name)
        assert (read.sampling_rate, read.leads, read.format) == (300.0, ("ECG",), "wfdb")
        assert np.allclose(read.signal, values / 1000)


@pytest.mark.parametrize("compress", [False, True])
def test_matlab_variables(compress: bool, original: ecg.Recording) -> None:
    feats = {"feats": original.signal, "curr_sample_rate": 500}
    val = {"val": np.round(original.signal * 1000).astype(np.int16), "fs": 500.0}
    cpsc = {"ECG": {"sex": "Male", "age": 55, "data": original.signal.astype(float)}}
    for content in (feats, val, cpsc):
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, content, do_compression=compress)
        close(ecg.read(buffer.getvalue()), original)


def test_tables_and_arrays(tmp_path: Path, original: ecg.Recording) -> None:
    time = np.arange(original.n_samples) / 500
    columns = {f"{name} (uV)": original.lead(name).astype(float) * 1000 for name in original.leads}
    table = pd.DataFrame({"time": time} | columns)
    table.to_csv(tmp_path / "a.txt", index=False)
    table.to_csv(tmp_path / "b.ecg", sep="\t", index=False)
    table.to_parquet(tmp_path / "c.bin")
    for name in ("a.txt", "b.ecg", "c.bin"):
        close(ecg.read(tmp_path / name), original, 1e-5)
    np.save(tmp_path / "d.npy", original.signal.T)
    close(ecg.read(tmp_path / "d.npy", sampling_rate=500), original)
    np.savez_compressed(tmp_path / "e.npz", ecg=original.signal, fs=500, leads=original.leads)
    close(ecg.read(tmp_path / "e.npz"), original)


def test_csv_without_names_needs_a_rate_and_keeps_gaps(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("0.1,0.2\n0.3,\n" + "0.5,0.6\n" * 50)
    with pytest.raises(RecordingError, match="sampling rate"):
        ecg.read(path)
    read = ecg.read(path, sampling_rate=250)
    assert read.leads == ("ECG 1", "ECG 2")
    assert np.isnan(read.signal[1, 1])
    assert read.signal[0, 1] == pytest.approx(0.3)


def test_edf_and_bdf(tmp_path: Path, original: ecg.Recording) -> None:
    import edfio

    signals = [
        edfio.EdfSignal(
            original.lead(n).astype(float) * 1000, 500, label=f"ECG {n}", physical_dimension="uV"
        )
        for n in original.leads
    ]
    breath = edfio.EdfSignal(np.sin(np.arange(250) / 20), 25, label="Resp", physical_dimension="L")
    edfio.Edf([*signals, breath]).write(tmp_path / "one")
    close(ecg.read(tmp_path / "one"), original, 1e-3)
    assert ecg.read(tmp_path / "one").format == "edf"
    bdf = [
        edfio.BdfSignal(original.lead(n).astype(float), 500, label=n, physical_dimension="mV")
        for n in original.leads
    ]
    edfio.Bdf(bdf).write(tmp_path / "two")
    close(ecg.read((tmp_path / "two").read_bytes()), original, 1e-5)


def test_streams_are_read() -> None:
    with (FIXTURES / "ecgtoolkit_example.dcm").open("rb") as stream:
        assert ecg.read(stream).record_id == "ecgtoolkit_example"


def test_formats_not_read_are_named() -> None:
    for data, word in (
        (b'<?xml version="1.0"?><!DOCTYPE html><html/>', "'html'"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "HDF5"),
        (b"%PDF-1.7" + bytes(range(256)), "no ECG format"),
    ):
        with pytest.raises(UnsupportedFormatError, match=word) as caught:
            ecg.read(data)
        for name in ecg.SUPPORTED_FORMATS:
            assert name in str(caught.value)


def test_every_development_file_is_read(shared_data: Path) -> None:
    """547 records or more, each by every file that holds signal or names it."""
    suffixes = (".hea", ".dat", ".mat", ".dcm", ".scp", ".xml")
    paths = [p for p in sorted(shared_data.rglob("*")) if p.suffix in suffixes]
    formats: Counter[str] = Counter()
    for path in paths:
        recording = ecg.read(path)
        formats[recording.format] += path.suffix != ".hea"
        assert 2 <= recording.duration_s <= 1800, path
        assert 100 <= recording.sampling_rate <= 1000, path
        assert np.isfinite(recording.signal).mean() > 0.9, path
    assert formats.pop("wfdb") >= 540  # more PhysioNet records may lie beside the others
    assert formats == {
        "matlab": 1,
        "dicom": 1,
        "scp-ecg": 1,
        "aecg": 1,
        "muse-xml": 1,
        "philips-xml": 2,
    }
    assert len(paths) >= 1087


def test_entities_are_refused() -> None:
    bomb = (
        '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>'
        '<AnnotatedECG xmlns="urn:hl7-org:v3">&c;</AnnotatedECG>'
    )
    for data in (bomb.encode(), bomb.encode("utf-16")):
        with pytest.raises(CorruptRecordingError, match="document type"):
            ecg.read(data)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptRecordingError, match="never unpickled"):
        ecg.read(tmp_path / "p.npy", sampling_rate=500)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("h 12 500 99999999999\n" + "h.dat 16 200 16 0 0 0 0 I\n" * 12, "claims 12 leads"),
        ("h 1 500 5000\nh.dat 16 200 16 0 0 0 0 I\n", "truncated"),
        ("h 1 500 10\n../h.dat 16 200 16 0 0 0 0 I\n", "not beside the header"),
        ("h 1 500 10\nabsent.dat 16 200 16 0 0 0 0 I\n", "missing"),
        ("h 3 500 10\nh.dat 16 200 16 0 0 0 0 I\n", "3 signals announced"),
        ("h/900000 1 500 90000000\na 100\nb 100\n", "cannot hold"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: str, message: str) -> None:
    (tmp_path / "h.hea").write_text(header)
    (tmp_path / "h.dat").write_bytes(b"\0" * 40)
    with pytest.raises(CorruptRecordingError, match=message):
        ecg.read(tmp_path / "h.hea")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.hea", tmp_path, "\0"):
        with pytest.raises(RecordingError):
            ecg.read(path)
    (tmp_path / "empty.csv").touch()
    with pytest.raises(CorruptRecordingError, match="empty"):
        ecg.read(tmp_path / "empty.csv")
    with pytest.raises(UnsupportedFormatError, match="header alone"):
        ecg.read(ecg.samples()[0].read_bytes())


def test_a_rate_that_contradicts_the_file_is_refused() -> None:
    with pytest.raises(RecordingError, match="500 Hz, not the 250 Hz"):
        ecg.read(ecg.samples()[0], sampling_rate=250)
