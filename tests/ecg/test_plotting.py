"""ECG paper: sizes to scale, every layout and file type."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ecg_agent_ray import ecg
from ecg_agent_ray.ecg.page import lay_out
from ecg_agent_ray.ecg.plotting import _thinned
from ecg_agent_ray.errors import InputError


def millimetres(path: Path) -> tuple[float, float]:
    with Image.open(path) as image:
        dpi = image.info["dpi"]
        return image.width / dpi[0] * 25.4, image.height / dpi[1] * 25.4


@pytest.mark.parametrize(
    ("leads", "layout", "size"),
    [
        # S of V2 and R of V3 would meet in rows of 20 mm, so that 12x1 is taller
        (ecg.STANDARD_LEADS, "auto", (270, 140)),
        (ecg.STANDARD_LEADS, "12x1", (270, 275)),
        (("II",), "auto", (270, 55)),
        (("I", "II"), "auto", (270, 65)),
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
    assert width and float(width[1]) / 72 * 25.4 == pytest.approx(270, abs=0.5)
    assert b"aVR" in svg
    pdf = ecg.plot(record, tmp_path / "x.pdf")
    assert Path(str(pdf)).read_bytes().startswith(b"%PDF")


def recording(signal: np.ndarray, rate: float = 500, leads: object = ("II",)) -> ecg.Recording:
    return ecg.Recording(signal=signal, sampling_rate=rate, leads=leads)  # type: ignore[arg-type]


def spikes(millivolts: float) -> np.ndarray:
    """Twelve leads of upright and inverted spikes of one height."""
    wave = np.zeros((12, 5000))
    wave[:, 100::400] = millivolts
    wave[:, 101::400] = -millivolts
    return wave


@pytest.mark.parametrize("layout", ["3x4", "12x1"])
@pytest.mark.parametrize("millivolts", [0.2, 1.5, 3.0, 4.9])
def test_rows_never_meet_and_nothing_is_cut(layout: str, millivolts: float) -> None:
    page = lay_out(recording(spikes(millivolts), leads=ecg.STANDARD_LEADS), layout, 0.0)
    reach = 10 * millivolts
    zero_lines = sorted({strip.y_mm for strip in page.strips})
    assert not page.clipped
    assert np.diff(zero_lines).min() > 2 * reach
    assert zero_lines[0] > reach
    assert zero_lines[-1] + reach < page.height_mm - 10
    assert all(y % 5 == 0 for y in zero_lines), "zero lines lie on the grid"
    for strip in page.strips:
        assert strip.trace.max() == pytest.approx(reach)


def test_names_stand_clear_of_the_traces() -> None:
    """No sample of any lead lies inside the box of a lead's name."""
    records = [ecg.sample(int(path.stem[:5])) for path in ecg.samples()]
    records.append(recording(spikes(2), leads=ecg.STANDARD_LEADS))
    for record in records:
        for layout in ("3x4", "12x1"):
            strips = lay_out(record, layout, 0.0).strips
            for named in strips:
                x, y = named.label
                for strip in strips:
                    at = strip.x_mm + np.arange(strip.trace.size) / record.sampling_rate * 25
                    near = strip.trace[(at >= x) & (at <= x + 2 * len(named.caption))] + strip.y_mm
                    assert not np.any((near >= y) & (near <= y + 2)), (record, layout, named.lead)


def test_what_goes_beyond_five_millivolts_is_cut_and_said() -> None:
    page = lay_out(recording(spikes(8), leads=ecg.STANDARD_LEADS), "3x4", 0.0)
    assert page.clipped
    svg = ecg.plot(recording(spikes(8), leads=ecg.STANDARD_LEADS), format="svg")
    assert isinstance(svg, bytes)
    assert "cut at ±5 mV" in svg.decode()


def test_fast_sampling_keeps_every_peak() -> None:
    """At 2000 Hz the lowest and highest of each few samples are drawn; a gap stays a gap."""
    wave = np.random.default_rng(0).normal(0, 5, 20_003)
    wave[4000:5000] = np.nan
    seconds, thinned = _thinned(wave, 2000)
    assert thinned.size < 0.6 * wave.size
    assert (np.diff(seconds) >= 0).all()
    for start in range(0, 20_000, 1000):
        inside = (seconds >= start / 2000) & (seconds < (start + 1000) / 2000)
        whole = wave[start : start + 1000]
        if np.isnan(whole).all():
            assert np.isnan(thinned[inside]).all()
            continue
        assert thinned[inside].max() == whole.max()
        assert thinned[inside].min() == whole.min()


@pytest.mark.parametrize("rate", [100, 250, 500, 1000, 2000])
@pytest.mark.parametrize("seconds", [2, 10, 120])
def test_rates_and_lengths(rate: int, seconds: int) -> None:
    wave = np.sin(np.arange(rate * seconds) / rate * 7)
    svg = ecg.plot(recording(wave, rate), format="svg")
    assert isinstance(svg, bytes)
    facts = f"{rate} Hz · " + ("0 to 80 s of 120.0 s" if seconds == 120 else f"{seconds}.0 s")
    assert facts in svg.decode()
    assert len(svg) < 2_500_000


def test_missing_leads_are_said_to_be_so() -> None:
    signal = np.array(ecg.sample(3).signal)
    signal[7] = np.nan
    svg = ecg.plot(recording(signal, leads=ecg.STANDARD_LEADS), format="svg")
    assert isinstance(svg, bytes)
    assert svg.decode().count("no signal") == 1


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
