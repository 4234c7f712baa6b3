"""Every format at the rates, lengths and numbers of leads that recorders use, gaps included."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import wfdb

from ecg_agent_ray import ecg

EXTRA = ("V3R", "V4R", "V7", "V8", "V9")
STEP_MV = 0.0025
Source = Path | bytes


def write_wfdb(record: ecg.Recording, folder: Path) -> Source:
    wfdb.wrsamp(
        "r",
        fs=record.sampling_rate,
        units=["mV"] * len(record.leads),
        sig_name=list(record.leads),
        p_signal=record.signal.T.astype(float),
        fmt=["16"] * len(record.leads),
        adc_gain=[1 / STEP_MV] * len(record.leads),
        baseline=[0] * len(record.leads),
        write_dir=str(folder),
    )
    return folder / "r"


def write_npz(record: ecg.Recording, folder: Path) -> Source:
    np.savez(folder / "r", ecg=record.signal, fs=record.sampling_rate, leads=record.leads)
    return folder / "r.npz"


def write_matlab(record: ecg.Recording, folder: Path) -> Source:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"feats": record.signal, "curr_sample_rate": record.sampling_rate})
    return buffer.getvalue()


def table(record: ecg.Recording) -> pd.DataFrame:
    columns = {name: record.lead(name).astype(float) for name in record.leads}
    return pd.DataFrame({"time": np.arange(record.n_samples) / record.sampling_rate} | columns)


def write_csv(record: ecg.Recording, folder: Path) -> Source:
    return table(record).to_csv(index=False).encode()


def write_parquet(record: ecg.Recording, folder: Path) -> Source:
    table(record).to_parquet(folder / "r.parquet")
    return folder / "r.parquet"


def write_edf(record: ecg.Recording, folder: Path) -> Source:
    import edfio

    channels = [
        edfio.EdfSignal(
            record.lead(name).astype(float),
            record.sampling_rate,
            label=f"ECG {name}",
            physical_dimension="mV",
            physical_range=(-32768 * STEP_MV, 32767 * STEP_MV),
        )
        for name in record.leads
    ]
    return edfio.Edf(channels).to_bytes()


def stored(record: ecg.Recording, name: str) -> str:
    units = np.round(record.lead(name) / STEP_MV).astype("<i2")
    return base64.b64encode(units.tobytes()).decode()


def write_muse(record: ecg.Recording, folder: Path) -> Source:
    leads = "".join(
        f"<LeadData><LeadSampleCountTotal>{record.n_samples}</LeadSampleCountTotal>"
        f"<LeadAmplitudeUnitsPerBit>{STEP_MV * 1000}</LeadAmplitudeUnitsPerBit>"
        f"<LeadAmplitudeUnits>MICROVOLTS</LeadAmplitudeUnits><LeadID>{name}</LeadID>"
        f"<LeadSampleSize>2</LeadSampleSize><WaveFormData>{stored(record, name)}</WaveFormData>"
        "</LeadData>"
        for name in record.leads
    )
    rate = f"<SampleBase>{record.sampling_rate:g}</SampleBase><SampleExponent>0</SampleExponent>"
    waveform = f"<Waveform><WaveformType>Rhythm</WaveformType>{rate}{leads}</Waveform>"
    return f"<RestingECG>{waveform}</RestingECG>".encode()


def write_philips(record: ecg.Recording, folder: Path) -> Source:
    data = b"".join(base64.b64decode(stored(record, name)) for name in record.leads)
    return (
        '<restingecgdata><waveforms><parsedwaveforms dataencoding="Base64" compression="None" '
        f'numberofleads="{len(record.leads)}" leadlabels="{" ".join(record.leads)}" '
        f'durationperchannel="{round(record.duration_s * 1000)}" '
        f'samplespersecond="{record.sampling_rate:g}" resolution="{STEP_MV * 1000}" '
        f'bitspersample="16">{base64.b64encode(data).decode()}</parsedwaveforms></waveforms>'
        "</restingecgdata>"
    ).encode("utf-16")


WRITERS: dict[str, tuple[Callable[[ecg.Recording, Path], Source], bool]] = {
    "wfdb": (write_wfdb, True),
    "numpy": (write_npz, True),
    "matlab": (write_matlab, True),
    "csv": (write_csv, True),
    "parquet": (write_parquet, True),
    "edf": (write_edf, False),
    "muse-xml": (write_muse, False),
    "philips-xml": (write_philips, False),
}


def wave(rate: float, seconds: float, leads: tuple[str, ...], *, gap: bool) -> ecg.Recording:
    """Different beats in each lead, one lead flat, one saturated, one with a gap."""
    time = np.arange(round(rate * seconds)) / rate
    rows = [np.sin(2 * np.pi * (1 + 0.1 * i) * time) ** 31 * (1 + i / 4) for i in range(len(leads))]
    rows[len(rows) // 2] *= 0
    rows[-1] = np.clip(rows[-1] * 3, -1, 1)
    if gap:
        rows[0][len(time) // 4 : len(time) // 3] = math.nan
    signal = np.round(np.array(rows) / STEP_MV) * STEP_MV
    return ecg.Recording(signal=signal, sampling_rate=rate, leads=leads)


@pytest.mark.parametrize("file_format", WRITERS)
@pytest.mark.parametrize(
    ("rate", "seconds", "leads"),
    [
        (100, 2, ("II",)),
        (2000, 2, (*ecg.STANDARD_LEADS, *EXTRA)),
        (360, 30, ("I", "V2")),
        (1000, 10, ecg.STANDARD_LEADS),
    ],
)
def test_shapes(
    file_format: str, rate: float, seconds: float, leads: tuple[str, ...], tmp_path: Path
) -> None:
    write, gaps = WRITERS[file_format]
    original = wave(rate, seconds, leads, gap=gaps)
    read = ecg.read(write(original, tmp_path))
    assert read.format == file_format
    if file_format != "matlab":  # these files hold no names
        assert read.leads == original.leads
    assert read.sampling_rate == pytest.approx(rate)
    assert read.signal.shape == original.signal.shape
    assert np.allclose(read.signal, original.signal, atol=STEP_MV / 10, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", [name for name in WRITERS if name not in ("csv",)])
def test_half_an_hour(file_format: str, tmp_path: Path) -> None:
    original = wave(500, 1800, ecg.STANDARD_LEADS, gap=False)
    read = ecg.read(WRITERS[file_format][0](original, tmp_path))
    assert read.duration_s == 1800
    assert np.allclose(read.signal[:, ::97], original.signal[:, ::97], atol=STEP_MV / 10)
