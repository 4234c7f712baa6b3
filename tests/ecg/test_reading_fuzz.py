"""Damaged files of every format: only typed errors, no hang, no memory blow-up."""

from __future__ import annotations

import base64
import gzip
import io
import logging
import os
import random
import re
import resource
import signal
import struct
import tempfile
import time
from collections import Counter
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

logger = logging.getLogger(__name__)
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
    for name, file in (
        ("aecg", "ecgtoolkit_example_aecg.xml"),
        ("scp", "ecgtoolkit_example.scp"),
        ("muse", "ge_muse_example.xml"),
        ("philips103", "philips_sierra_1_03.xml"),
        ("philips104", "philips_sierra_1_04.xml"),
    ):
        found[name] = gzip.decompress((FIXTURES / f"{file}.gz").read_bytes())
    # cut to what is read, so that the damage falls on it
    found["muse"] = only(found["muse"], b"<Waveform>", b"</Waveform>", b"RestingECG")
    for name in ("philips103", "philips104"):
        text = found[name].decode("utf-16" if name == "philips104" else "utf-8").encode()
        wanted = (b"<signalcharacteristics>", b"</signalcharacteristics>")
        facts = only(text, *wanted, b"restingecgdata")
        waveform = only(text, b"<parsedwaveforms", b"</parsedwaveforms>", b"restingecgdata")
        found[name] = facts.removesuffix(b"</restingecgdata>") + waveform.removeprefix(
            b"<restingecgdata>"
        )
    return found


def only(document: bytes, start: bytes, end: bytes, root: bytes) -> bytes:
    """The last element from ``start`` to ``end`` as a document of its own."""
    first = document.rindex(start)
    part = document[first : document.index(end, first) + len(end)]
    return b"<" + root + b">" + part + b"</" + root + b">"


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


def damaged(name: str, rng: random.Random) -> bytes:
    """A damaged seed; of base64 in XML, half the time the bytes that it encodes."""
    data = seeds()[name]
    if not name.startswith(("muse", "philips")) or rng.random() < 0.5:
        return damage(data, rng)
    payloads = list(re.finditer(rb">([A-Za-z0-9+/=\s]{400,})<", data))
    start, end = rng.choice(payloads).span(1)
    inner = damage(base64.b64decode(data[start:end]), rng)
    return data[:start] + base64.b64encode(inner) + data[end:]


def survives(source: bytes | Path) -> bool:
    """Whether it was read; anything but a recording or a typed error fails the test."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS_PER_FILE)
    try:
        recording = ecg.read(source, sampling_rate=RATE)
    except RecordingError as error:
        assert str(error)
        return False
    finally:
        signal.alarm(0)
    assert recording.signal.size > 0
    return True


def _too_long(*_: object) -> None:
    raise AssertionError(f"a damaged file took more than {SECONDS_PER_FILE} s")


def damaged_wfdb(seed: int, folder: Path) -> Path:
    """A record whose header or signal file is damaged."""
    rng = random.Random(seed)
    header, values = (ecg.samples()[0].with_suffix(s).read_bytes() for s in (".hea", ".dat"))
    header = header.replace(b" 5000", b" 500", 1)
    values = values[: 500 * 24]
    if rng.random() < 0.8:
        header = damage(header, rng)
    else:
        values = damage(values, rng)
    (folder / "00003_hr.hea").write_bytes(header)
    (folder / "00003_hr.dat").write_bytes(values)
    return folder / rng.choice(("00003_hr.hea", "00003_hr.dat", "00003_hr"))


FORMATS = ("npy", "npz", "mat4", "mat5", "mat5z", "csv", "parquet", "edf", "bdf", "dicom", "aecg")
FORMATS += ("scp", "muse", "philips103", "philips104")
SECONDS_PER_FILE = 10
FEW = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
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
    survives(damaged(name, random.Random(seed)))


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
    count = int(os.environ.get("ECG_FUZZ_PER_FORMAT", "750"))
    was_read: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for name in (*FORMATS, "wfdb"):
        began = time.monotonic()
        for seed in range(count):
            if name == "wfdb":
                was_read[name] += survives(damaged_wfdb(seed, tmp_path))
            else:
                was_read[name] += survives(damaged(name, random.Random(f"{name} {seed}")))
        seconds[name] = time.monotonic() - began
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for name in seconds:
        logger.info("%s: %d of %d read, %.0f s", name, was_read[name], count, seconds[name])
    logger.info("memory grew by %.0f MiB", grown_mib)
    assert grown_mib < 1500
