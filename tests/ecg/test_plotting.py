"""ECG paper: sizes to scale, every layout and file type."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ecg_agent_ray import ecg
from ecg_agent_ray.errors import InputError


def millimetres(path: Path) -> tuple[float, float]:
    with Image.open(path) as image:
        dpi = image.info["dpi"]
        return image.width / dpi[0] * 25.4, image.height / dpi[1] * 25.4


@pytest.mark.parametrize(
    ("leads", "layout", "size"),
    [
        (ecg.STANDARD_LEADS, "auto", (271, 137)),
        (ecg.STANDARD_LEADS, "12x1", (271, 257)),
        (("II",), "auto", (271, 52)),
        (("I", "II"), "auto", (271, 57)),
    ],
)
def test_page_is_true_to_scale(
    leads: tuple[str, ...], layout: str, size: tuple[float, float], tmp_path: Path
) -> None:
    path = ecg.plot(ecg.sample(3).select(leads), tmp_path / "x.png", layout=layout)  # type: ignore[arg-type]
    assert isinstance(path, Path)
    assert millimetres(path) == pytest.approx(size, abs=0.3)


def test_calibration_pulse_and_trace_lie_on_the_scale(tmp_path: Path) -> None:
    """A square wave of 1 mV for one second must be 10 mm high and 25 mm long on the page."""
    wave = np.zeros((1, 5000))
    wave[0, 1000:1500] = 1.0
    path = tmp_path / "square.png"
    ecg.plot(ecg.Recording(signal=wave, sampling_rate=500, leads=("II",)), path)
    dark = np.asarray(Image.open(path).convert("L")) < 90
    per_mm = 150 / 25.4
    trace = dark[:, round(20 * per_mm) : round(260 * per_mm)]
    rows = np.flatnonzero(trace[round(12 * per_mm) : round(45 * per_mm)].sum(axis=1) > 20 * per_mm)
    assert (rows.max() - rows.min()) / per_mm == pytest.approx(10, abs=0.5)
    top = np.flatnonzero(trace[round(12 * per_mm) + rows.min() + 1])
    assert (top.max() - top.min()) / per_mm == pytest.approx(25, abs=0.5)


def test_bytes_formats_marks_and_regions(tmp_path: Path) -> None:
    record = ecg.sample(3)
    plain = ecg.plot(record)
    assert isinstance(plain, bytes)
    assert plain == ecg.plot(record), "the same picture gives the same bytes"
    marks = [{"p_onset": 100, "r_peak": 200, "t_offset": None}, {"r_peak": 10**9}]
    regions = [
        {"lead": "V1", "start_s": 5.0, "end_s": 6.0, "score": 1.0},
        {"start_s": 1, "end_s": 2},
    ]
    marked = ecg.plot(record, marks=marks, regions=regions)
    assert marked != plain
    svg = ecg.plot(record, format="svg")
    assert isinstance(svg, bytes)
    width = re.search(rb'width="([\d.]+)pt"', svg)
    assert width and float(width[1]) / 72 * 25.4 == pytest.approx(271, abs=0.5)
    assert b"aVR" in svg
    pdf = ecg.plot(record, tmp_path / "x.pdf")
    assert Path(str(pdf)).read_bytes().startswith(b"%PDF")


def test_long_and_broken_recordings_are_drawn() -> None:
    record = ecg.sample(3).select(["II"])
    signal = np.tile(record.signal, (1, 4))
    signal[0, 3000:4000] = np.nan
    assert ecg.plot(ecg.Recording(signal=signal, sampling_rate=500, leads=("II",)))
    empty = np.full((1, 100), np.nan)
    assert ecg.plot(ecg.Recording(signal=empty, sampling_rate=500, leads=("X",)))


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    record = ecg.sample(3)
    for arguments in (
        {"out": tmp_path / "x.gif"},
        {"out": tmp_path / "absent" / "x.png"},
        {"layout": "6x2"},
        {"start_s": 10.0},
    ):
        with pytest.raises(InputError):
            ecg.plot(record, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="twelve"):
        ecg.plot(record.select(["I"]), layout="3x4")
