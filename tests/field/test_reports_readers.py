"""Public reports on other readers of ECG files, their inputs built anew (see README.md)."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import wfdb

from ecg_agent_ray import ecg
from ecg_agent_ray.errors import CorruptRecordingError, RecordingError

RNG = np.random.default_rng(5)
SIGNAL = np.round(np.sin(2 * np.pi * 1.2 * np.arange(5000) / 500) ** 31 * 1000).astype(int)


def wfdb_record(
    folder: Path, header: str | bytes, values: np.ndarray, suffix: str = ".dat"
) -> Path:
    data = header.encode() if isinstance(header, str) else header
    stem = data.split()[0].decode("latin-1")
    (folder / f"{stem}.hea").write_bytes(data)
    (folder / f"{stem}{suffix}").write_bytes(values.astype("<i2").tobytes())
    return folder / stem


def test_challenge_2021_header_with_a_date_before_the_time(tmp_path: Path) -> None:
    """MIT-LCP/wfdb-python#351."""
    values = np.stack([SIGNAL, SIGNAL // 2], axis=1)
    header = (
        "E07835 2 500 5000 05-May-2020 09:49:17\n"
        "E07835.dat 16 1000/mV 16 0 -268 14726 0 I\nE07835.dat 16 1000/mV 16 0 -107 -21563 0 II\n"
        "#Age: 71\n#Sex: Female\n#Dx: 270492004,39732003\n"
    )
    read = ecg.read(wfdb_record(tmp_path, header, values))
    assert np.allclose(read.lead("II"), values[:, 1] / 1000)


def test_header_with_signs_beyond_ascii(tmp_path: Path) -> None:
    """MIT-LCP/wfdb-python#219: a polysomnogram whose header holds a degree sign."""
    lines = (
        "psg 3 500 5000",
        "psg.dat 16 1000/mV 16 0 0 0 0 ECG",
        "psg.dat 16 100/\xb0C 16 0 0 0 0 Temp\xe9rature",
        "psg.dat 16 1000/cmH2O 16 0 0 0 0 CPAP Pressure",
    )
    values = np.stack([SIGNAL, SIGNAL, SIGNAL], axis=1)
    read = ecg.read(wfdb_record(tmp_path, "\n".join(lines).encode("latin-1"), values))
    assert read.leads == ("ECG",)
    assert set(read.other_channels) == {"Temp\xe9rature", "CPAP Pressure"}


def test_segments_of_other_gains_with_a_gap_between(tmp_path: Path) -> None:
    """MIT-LCP/wfdb-python#7: each segment by its own header's gain, and the gap is missing."""
    for name, gain in (("s1", 200), ("s2", 400)):
        wfdb_record(
            tmp_path, f"{name} 1 500 5000\n{name}.dat 16 {gain}/mV 16 0 0 0 0 II\n", SIGNAL[:, None]
        )
    (tmp_path / "m.hea").write_text("m/3 1 500 11000\ns1 5000\n~ 1000\ns2 5000\n")
    read = ecg.read(tmp_path / "m")
    assert read.n_samples == 11_000
    assert np.allclose(read.signal[0, :5000], SIGNAL / 200, atol=1e-6)
    assert np.isnan(read.signal[0, 5000:6000]).all()
    assert np.allclose(read.signal[0, 6000:], SIGNAL / 400, atol=1e-6)


def test_format_212_of_an_odd_number_of_samples(tmp_path: Path) -> None:
    """MIT-LCP/wfdb-python#160."""
    values = RNG.integers(-2000, 2000, 501)
    wfdb.wrsamp(
        "odd", fs=360, units=["mV"], sig_name=["MLII"], d_signal=values[:, None], fmt=["212"],
        adc_gain=[200], baseline=[0], write_dir=str(tmp_path),
    )  # fmt: skip
    assert np.allclose(ecg.read(tmp_path / "odd").signal[0], values / 200)


def test_baseline_in_brackets_and_unit_behind_the_slash(tmp_path: Path) -> None:
    """kvnlng/Murmur#360."""
    header = "g 1 360 5000\ng.dat 16 200(1024)/mV 11 1024 995 0 0 MLII\n"
    read = ecg.read(wfdb_record(tmp_path, header, SIGNAL[:, None] + 1024))
    assert np.allclose(read.signal[0], SIGNAL / 200)


def edf_of(
    *signals: dict[str, object], records: int = 10, record_s: object = 1, extra: bytes = b""
) -> bytes:
    """EDF with header fields as they are given; ``digits`` are (records, samples)."""
    names = (
        "label",
        "transducer",
        "unit",
        "pmin",
        "pmax",
        "dmin",
        "dmax",
        "filter",
        "samples",
        "reserved",
    )
    widths = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
    defaults = {"unit": "mV", "pmin": -10, "pmax": 10, "dmin": -10000, "dmax": 10000}
    fields = b""
    for name, width in zip(names, widths, strict=True):
        for signal in signals:
            value = signal.get(name, defaults.get(name, ""))
            if name == "samples":
                value = np.shape(signal["digits"])[1]
            fields += str(value).encode("latin-1").ljust(width)
    head = b"0".ljust(168) + b"01.01.2000.00.00" + str(256 * (len(signals) + 1)).encode().ljust(8)
    head += b" " * 44 + str(records).encode().ljust(8) + str(record_s).encode().ljust(8)
    body = b"".join(
        np.asarray(signal["digits"])[i].astype("<i2").tobytes()
        for i in range(max(records, 0))
        for signal in signals
    )
    return head + str(len(signals)).encode().ljust(4) + fields + body + extra


RECORDS = SIGNAL.reshape(10, 500)


def test_polysomnogram_with_every_kind_of_signal() -> None:
    """mne-tools/mne-python#8251: the labels of its file."""
    others = ["EOG Left Horiz", "EMG Chin1", "EEG F3-CLE", "EMG Ant Tibial L", "Resp Thermistor"]
    others += ["Resp Belt Thor", "SaO2 SaO2"]
    signals = [{"label": name, "digits": RECORDS, "unit": "uV"} for name in others]
    read = ecg.read(edf_of(*signals[:3], {"label": "ECG ECGI", "digits": RECORDS}, *signals[3:]))
    assert len(read.leads) == 1
    assert np.allclose(read.signal[0], SIGNAL / 1000, atol=1e-6)
    assert list(read.other_channels) == others


def test_annotations_alone_of_no_duration() -> None:
    """mne-tools/mne-python#1805, holgern/pyedflib#112: a hypnogram or a list of events."""
    data = edf_of(
        {"label": "EDF Annotations", "digits": np.zeros((1, 100), int)}, records=1, record_s=0
    )
    with pytest.raises(RecordingError, match="annotations only"):
        ecg.read(data)


@pytest.mark.parametrize("lost", [{"pmin": 0, "pmax": 0}, {"dmin": 0, "dmax": 0}, {"unit": ""}])
@pytest.mark.parametrize("label", ["V3", "-", "E1001"])
def test_one_signal_without_scale_does_not_spoil_the_rest(
    lost: dict[str, object], label: str
) -> None:
    """holgern/pyedflib#113, #256, #14; mne-tools/mne-python#8076."""
    read = ecg.read(
        edf_of({"label": "ECG I", "digits": RECORDS}, {"label": label, "digits": RECORDS, **lost})
    )
    assert read.leads == ("I",)
    assert list(read.other_channels) == [label]


def test_more_bytes_than_the_header_announces() -> None:
    """holgern/pyedflib#17."""
    read = ecg.read(edf_of({"label": "ECG", "digits": RECORDS}, extra=b"\1" * 300))
    assert np.allclose(read.signal[0], SIGNAL / 1000, atol=1e-6)


def test_unit_that_is_not_told_is_not_presumed() -> None:
    """mne-tools/mne-python#12964: a file in microvolts without saying so, read as volts."""
    data = edf_of({"label": "ECG", "digits": RECORDS, "unit": "", "pmin": -10000, "pmax": 10000})
    with pytest.raises(RecordingError, match="--unit"):
        ecg.read(data)
    assert np.allclose(ecg.read(data, unit="uV").signal[0], SIGNAL / 1000, atol=1e-6)


def test_data_records_of_thirty_seconds() -> None:
    """EtienneCmb/visbrain#14: samples in a record are not samples in a second."""
    read = ecg.read(
        edf_of({"label": "ECG", "digits": np.tile(SIGNAL, (2, 1))}, records=2, record_s=10)
    )
    assert (read.sampling_rate, read.duration_s) == (500.0, 20.0)


def test_polar_sensor_logger() -> None:
    """PIA-Group/BioSPPy#80, polarofficial/polar-ble-sdk#101: 130 Hz, microvolts, three clocks."""
    n = 1300
    times = 599_616_000_000_000_000 + np.arange(n) * 7_692_307
    phone = pd.Timestamp("2024-05-01T10:00:00") + pd.to_timedelta(times - times[0])
    lines = ["Phone timestamp;sensor timestamp [ns];timestamp [ms];ecg [uV]"]
    lines += [
        f"{phone[i].isoformat(timespec='milliseconds')};{t};{(t - times[0]) / 1e6:.3f};{SIGNAL[i]}"
        for i, t in enumerate(times)
    ]
    read = ecg.read("\n".join(lines).encode())
    assert (read.sampling_rate, read.n_samples) == (130.0, n)
    assert np.allclose(read.signal[0], SIGNAL[:n] / 1000)
    assert len(read.other_channels) == 3


def test_heart_rates_are_no_ecg() -> None:
    """paulvangentcom/heartrate_analysis_python#28: heart rates at two a second."""
    text = "\n".join(f"{80 + 5 * np.sin(i / 20):.4f}" for i in range(1800)).encode()
    with pytest.raises(RecordingError, match="--sampling-rate"):
        ecg.read(text)
    with pytest.raises(RecordingError, match="outside"):
        ecg.read(text, sampling_rate=2)
    with pytest.raises(RecordingError, match="no channel is an ECG"):
        ecg.read(
            b"time (s),heart rate\n"
            + b"\n".join(f"{i / 100},{v}".encode() for i, v in enumerate(text.decode().split()))
        )


def test_watch_log_of_large_numbers() -> None:
    """Protocentral/healthypi-move-fw#72: a converter's counts without a unit, then zeros."""
    counts = np.concatenate([SIGNAL[:3000] * 40 - 1_200_000, np.zeros(1000, int)])
    text = "\n".join(["ecg", *map(str, counts)]).encode()
    with pytest.raises(RecordingError, match="--gain"):
        ecg.read(text, sampling_rate=128)


def neurokit_table() -> pd.DataFrame:
    index = np.arange(5000)
    raw = SIGNAL / 1000
    peaks = (raw > 0.999).astype(int)
    return pd.DataFrame(
        {
            "ECG_Raw": raw, "ECG_Clean": raw, "ECG_Rate": 72 + np.sin(index / 300),
            "ECG_Quality": np.clip(np.sin(index / 700), 0, 1), "ECG_R_Peaks": peaks,
            "ECG_Phase_Atrial": peaks.astype(float), "RSP_Rate": 15.0 + np.sin(index / 99),
        }
    )  # fmt: skip


def test_what_a_toolbox_adds_to_an_ecg_is_none(tmp_path: Path) -> None:
    """neuropsychology/NeuroKit#304: its tables hold rates, qualities and peaks beside the ECG."""
    table = neurokit_table()
    for write in (table.to_csv, table.to_parquet):
        buffer = io.BytesIO()
        write(buffer, index=write.__name__ == "to_csv")
        read = ecg.read(buffer.getvalue(), sampling_rate=500)
        assert read.leads == ("ECG_Raw", "ECG_Clean")
        assert {"ECG_Rate", "ECG_Quality", "ECG_R_Peaks", "RSP_Rate"} <= set(read.other_channels)


def test_times_of_parquet_tables() -> None:
    times = pd.Timestamp("2024-05-01") + pd.to_timedelta(np.arange(5000) * 2, unit="ms")
    buffer = io.BytesIO()
    pd.DataFrame({"when": times, "II": SIGNAL / 1000}).to_parquet(buffer)
    read = ecg.read(buffer.getvalue())
    assert (read.leads, read.sampling_rate) == (("II",), 500.0)


EXPORTS = {
    "elapsed": (
        "'Elapsed time','MLII','V5'",
        "'hh:mm:ss.mmm','mV','mV'",
        "'{m}:{s:06.3f}',{a:.3f},{b:.3f}",
    ),
    "interval": (
        "'sample interval','MLII','V5'",
        "'0.002777 sec','mV','mV'",
        "{i},{a:.3f},{b:.3f}",
    ),
    "columns": (
        "   Elapsed time       MLII         V5",
        "      (seconds)       (mV)       (mV)",
        "     {t:9.3f}     {a:7.3f}     {b:7.3f}",
    ),
    "absolute": (
        "Time and date\tMLII\tV5",
        "(hh:mm:ss.mmm)\t(mV)\t(mV)",
        "[22:{m:02d}:{s:06.3f} 01/02/1990]\t{a:.3f}\t{b:.3f}",
    ),
}


@pytest.mark.parametrize("form", EXPORTS)
def test_rdsamp_and_atm_exports(form: str) -> None:
    """ikarosilva/wfdb-app-toolbox#119: PhysioNet's ATM and rdsamp, a line of units and clocks."""
    head, unit_line, row = EXPORTS[form]
    lines = [head, unit_line]
    for i in range(3600):
        t = i / 360
        a, b = SIGNAL[i] / 1000, SIGNAL[i] / 2000
        lines.append(row.format(i=i, t=t, m=int(t // 60), s=t % 60, a=a, b=b))
    read = ecg.read("\n".join(lines).encode())
    assert (read.leads, read.sampling_rate) == (("II", "V5"), 360)
    assert np.allclose(read.lead("II"), SIGNAL[:3600] / 1000, atol=6e-4)


def test_opensignals_of_two_sensors() -> None:
    """PIA-Group/BioSPPy's own input: respiration beside the ECG, named in JSON only."""
    device = {
        "sampling rate": 1000, "resolution": [10, 10], "label": ["A1", "A2"],
        "column": ["nSeq", "I1", "A1", "A2"], "sensor": ["ECG", "RESP"],
    }  # fmt: skip
    lines = [
        "# OpenSignals Text File Format",
        f"# {json.dumps({'00:07:80': device})}",
        "# EndOfHeader",
    ]
    lines += [f"{i % 16}\t0\t{512 + v // 4}\t{500 + i // 50 % 20}\t" for i, v in enumerate(SIGNAL)]
    read = ecg.read("\n".join(lines).encode(), gain=150)
    assert (read.leads, read.sampling_rate) == (("ECG",), 1000.0)
    assert np.allclose(read.signal[0], (SIGNAL // 4) / 150)
    assert {"nSeq", "I1", "RESP"} == set(read.other_channels)


def test_signal_of_a_holter_in_a_file_without_its_header(tmp_path: Path) -> None:
    """MIT-LCP/wfdb-python#139's second half: a .dat alone is no recording."""
    (tmp_path / "100.dat").write_bytes(RNG.integers(0, 255, 3000, dtype=np.uint8).tobytes())
    with pytest.raises(RecordingError):
        ecg.read(tmp_path / "100.dat")
    with pytest.raises(CorruptRecordingError, match="missing"):
        (tmp_path / "200.hea").write_text("200 1 360 10\n200.dat 16 200 11 0 0 0 0 MLII\n")
        ecg.read(tmp_path / "200")


def test_rows_of_beats_are_no_recording() -> None:
    """Kaggle's heartbeat tables: 187 samples and a label a row, no names."""
    rows = [",".join(f"{v:.3e}" for v in RNG.random(188)) for _ in range(300)]
    with pytest.raises(RecordingError, match="rows of many beats"):
        ecg.read("\n".join(rows).encode(), sampling_rate=125)


def test_whole_numbers_in_a_challenge_file_and_in_another() -> None:
    """PhysioNet's ATM writes counts into ``val``, whose gain stands in a file beside it."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"val": np.stack([SIGNAL, SIGNAL]).astype(np.int16)})
    presumed = ecg.read(buffer.getvalue(), sampling_rate=360)
    assert np.allclose(presumed.signal, SIGNAL / 1000)
    assert "1000 counts per mV" in presumed.notes[0]
    given = ecg.read(buffer.getvalue(), sampling_rate=360, gain=200)
    assert not any("1000" in note for note in given.notes)
    assert np.allclose(np.ptp(given.signal), np.ptp(SIGNAL) / 200)
