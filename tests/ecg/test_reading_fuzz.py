"""Damaged files of every format: only typed errors, no hang, no memory blow-up."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import struct
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecg_agent_ray import ecg
from ecg_agent_ray.errors import RecordingError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "ecg"
RATE = 500


@cache
def seeds() -> dict[str, bytes]:
    """One small intact file of each format."""
    import edfio

    short = ecg.sample(3).crop(0, 1)
    rows = short.signal
    found: dict[str, bytes] = {}

    def saved(write: Callable[[io.BytesIO], object]) -> bytes:
        buffer = io.BytesIO()
        write(buffer)
        return buffer.getvalue()

    found["npy"] = saved(lambda b: np.save(b, rows))
    found["npz"] = saved(lambda b: np.savez_compressed(b, ecg=rows, fs=RATE))
    found["mat4"] = saved(lambda b: scipy.io.savemat(b, {"val": rows, "fs": RATE}, format="4"))
    struct_ = {"ECG": {"sex": "F", "age": 5, "data": rows}}
    found["mat5"] = saved(lambda b: scipy.io.savemat(b, struct_))
    found["mat5z"] = saved(
        lambda b: scipy.io.savemat(b, {"feats": rows, "fs": RATE}, do_compression=True)
    )
    table = pd.DataFrame({n: short.lead(n).astype(float) for n in short.leads[:3]})
    found["csv"] = table.head(60).to_csv(index=False).encode()
    found["parquet"] = saved(lambda b: table.to_parquet(b))
    channels = [
        edfio.EdfSignal(row.astype(float), RATE, physical_dimension="mV") for row in rows[:2]
    ]
    found["edf"] = edfio.Edf(channels).to_bytes()
    wide = [edfio.BdfSignal(row.astype(float), RATE, physical_dimension="mV") for row in rows[:2]]
    found["bdf"] = edfio.Bdf(wide).to_bytes()
    found["dicom"] = (FIXTURES / "ecgtoolkit_example.dcm").read_bytes()
    aecg = gzip.decompress((FIXTURES / "ecgtoolkit_example_aecg.xml.gz").read_bytes())
    found["aecg"] = aecg
    return found


def damage(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip, overwrite with sizes, repeat or drop a stretch; headers are hit more often."""
    mutable = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        if not mutable:
            break
        limit = len(mutable) if rng.random() < 0.4 else min(len(mutable), 600)
        at = rng.randrange(limit)
        kind = rng.randrange(6)
        if kind == 0:
            mutable[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del mutable[at:]
        elif kind == 2:
            value = rng.choice((0, -1, 1 << 30, 0x7FFFFFFF, 0xFFFF, 7))
            mutable[at : at + 4] = struct.pack(rng.choice("<>") + "I", value & 0xFFFFFFFF)
        elif kind == 3:
            mutable[at : at + rng.randrange(8)] = rng.choice(
                (b"999999999", b"-1", b"1e999", b"nan")
            )
        elif kind == 4:
            mutable[at:at] = mutable[at : at + rng.randrange(200)]
        else:
            del mutable[at : at + rng.randrange(64)]
    return bytes(mutable)


def survives(source: bytes | Path) -> bool:
    """Whether it was read; anything but a recording or a typed error fails the test."""
    began = time.monotonic()
    try:
        recording = ecg.read(source, sampling_rate=RATE)
    except RecordingError as error:
        assert str(error)
        return False
    finally:
        assert time.monotonic() - began < 10, "a damaged file must not take long"
    assert recording.signal.size > 0
    return True


def damaged_wfdb(seed: int, folder: Path) -> Path:
    """A record whose header or signal file is damaged."""
    rng = random.Random(seed)
    header, signal = (ecg.samples()[0].with_suffix(s).read_bytes() for s in (".hea", ".dat"))
    header = header.replace(b" 5000", b" 500", 1)
    signal = signal[: 500 * 24]
    if rng.random() < 0.8:
        header = damage(header, rng)
    else:
        signal = damage(signal, rng)
    (folder / "00003_hr.hea").write_bytes(header)
    (folder / "00003_hr.dat").write_bytes(signal)
    return folder / rng.choice(("00003_hr.hea", "00003_hr.dat", "00003_hr"))


FORMATS = ("npy", "npz", "mat4", "mat5", "mat5z", "csv", "parquet", "edf", "bdf", "dicom", "aecg")
FEW = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_intact_seed_is_read(name: str) -> None:
    assert survives(seeds()[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
@FEW
@given(seed=st.integers(0, 2**32))
def test_damaged_file(name: str, seed: int) -> None:
    survives(damage(seeds()[name], random.Random(seed)))


@pytest.mark.filterwarnings("ignore")
@FEW
@given(seed=st.integers(0, 2**32))
def test_damaged_wfdb(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        survives(damaged_wfdb(seed, Path(folder)))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.one_of(st.binary(max_size=400), st.text(max_size=300).map(str.encode)))
def test_arbitrary_bytes(data: bytes) -> None:
    survives(data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_damaged_files(tmp_path: Path) -> None:
    """The same at length, with the memory it may take bounded."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = int(os.environ.get("ECG_FUZZ_PER_FORMAT", "900"))
    for name in FORMATS:
        for seed in range(count):
            survives(damage(seeds()[name], random.Random(f"{name} {seed}")))
    for seed in range(count):
        survives(damaged_wfdb(seed, tmp_path))
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 1500
