"""The delineation network at run time: stretches, windows of long recordings, own models."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, resample_poly, sosfiltfilt

from ecg_agent_ray import ecg
from ecg_agent_ray.ecg.delineation import (
    WORKING_RATE_HZ,
    ClassicalLead,
    delineate,
    find_beats,
    wave_probabilities,
)
from ecg_agent_ray.ecg.delineation.decode import beat_boundaries, wave_stretches
from ecg_agent_ray.ecg.filters import band, bands, low_passes, quantile, resample
from ecg_agent_ray.errors import ModelNotFoundError


@settings(max_examples=60, deadline=None)
@given(
    edges=st.lists(st.floats(12, 40), min_size=1, max_size=8),
    outside=st.floats(0.0, 0.49),
)
def test_stretches_are_found_where_one_half_is_crossed(edges: list[float], outside: float) -> None:
    """Ramps of one sample whose crossing is known to a fraction of a sample."""
    bounds = np.round(np.cumsum(edges)).astype(int)
    probability = np.zeros(bounds[-1] + 20)
    starts, ends = bounds[::2], bounds[1::2]
    starts = starts[: len(ends)]
    for start, end in zip(starts, ends, strict=True):
        probability[start : end + 1] = 1.0
        probability[[start - 1, end + 1]] = outside
    found = wave_stretches(probability, least=5.0)
    assert len(found) == len(starts)
    reach = 0.5 / (1.0 - outside)
    for row, start, end in zip(found, starts, ends, strict=True):
        assert row.tolist() == pytest.approx([start - reach, end + reach, end - start + 1])


def test_short_dips_do_not_end_a_wave_and_short_stretches_are_none() -> None:
    probability = np.zeros(200)
    probability[50:80] = 0.9
    probability[62:65] = 0.3
    probability[120:123] = 0.9
    found = wave_stretches(probability, least=8.0)
    assert len(found) == 1
    assert found[0, 0] == pytest.approx(49.5, abs=0.5)
    assert found[0, 1] == pytest.approx(79.5, abs=0.5)
    assert wave_stretches(np.zeros(10), 1.0).shape == (0, 3)
    assert wave_stretches(np.ones(10), 1.0)[0, :2] == pytest.approx([0, 9])


def test_a_beat_takes_its_own_waves() -> None:
    probabilities = np.zeros((4, 1000))
    for start in (200, 450):
        probabilities[1, start - 45 : start - 20] = 1
        probabilities[2, start - 10 : start + 15] = 1
        probabilities[3, start + 60 : start + 100] = 1
    points = beat_boundaries(probabilities, np.array([200.0, 450.0, 800.0]))
    assert points["qrs_onset"][:2] == pytest.approx([189.5, 439.5], abs=0.6)
    assert points["p_onset"][:2] == pytest.approx([154.5, 404.5], abs=0.6)
    assert points["t_offset"][:2] == pytest.approx([299.5, 549.5], abs=0.6)
    assert all(np.isnan(column[2]) for column in points.values()), "no wave is near the third beat"


def test_probabilities_of_a_real_lead() -> None:
    record = ecg.sample(139).select(["II"])
    found = wave_probabilities(record.signal, record.sampling_rate)
    assert found.shape == (1, 4, 2500)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    assert len(wave_stretches(found[0, 2], 5.0)) == 10, "ten beats in ten seconds"


def test_leads_are_judged_each_by_itself() -> None:
    record = ecg.sample(424)
    together = wave_probabilities(record.signal, record.sampling_rate)
    alone = wave_probabilities(record.lead("V2")[np.newaxis], record.sampling_rate)
    np.testing.assert_allclose(together[record.leads.index("V2")], alone[0], atol=1e-4)


def test_long_recordings_go_through_in_windows_without_seams() -> None:
    record = ecg.sample(139).select(["II"])
    n_copies = 20
    tiled = np.tile(record.signal, n_copies)
    found = wave_probabilities(tiled, record.sampling_rate)
    assert found.shape == (1, 4, 2500 * n_copies)
    assert np.isfinite(found).all()
    copies = found[0].reshape(4, n_copies, 2500)[:, 1:-1, 250:-250]
    spread = np.abs(copies - np.median(copies, axis=1, keepdims=True))
    # copies lie differently on the network's grid of 32 samples, which moves a boundary a little
    assert np.percentile(spread, 99.5) < 0.25
    assert spread.mean() < 5e-3
    assert len(wave_stretches(found[0, 2], 5.0)) == pytest.approx(10 * n_copies, abs=n_copies)


@pytest.mark.parametrize("value", [0.0, np.nan, 5.0])
def test_leads_without_a_signal_have_no_waves(value: float) -> None:
    flat = np.full((2, 3000), value)
    found = wave_probabilities(flat, 500.0)
    assert np.isfinite(found).all()
    assert len(wave_stretches(found[0, 2], 5.0)) == 0


def test_two_independent_methods_agree_on_a_clean_record() -> None:
    record = ecg.sample(139)
    beats = find_beats(record.signal.astype(np.float64), WORKING_RATE_HZ)
    lead = record.lead("II")
    probabilities = wave_probabilities(lead[np.newaxis], WORKING_RATE_HZ)[0]
    network = delineate(lead, probabilities, beats, WORKING_RATE_HZ)
    by_hand = ClassicalLead(lead, WORKING_RATE_HZ)
    classical = by_hand.typical_beat(by_hand.align_beats(beats))
    assert network.p_present
    for start, end in (("p_onset", "qrs_onset"), ("qrs_onset", "qrs_offset")):
        mine = np.nanmedian(network.points[end] - network.points[start])
        assert mine == pytest.approx(classical[end] - classical[start], abs=10), (start, end)
    for name, column in network.points.items():
        inside = column[np.isfinite(column)]
        assert ((inside >= 0) & (inside < lead.size)).all(), name


def test_an_own_network_is_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal = ecg.sample(139).select(["II"]).signal
    monkeypatch.setenv("ECG_AGENT_DELINEATOR", str(tmp_path / "absent.onnx"))
    with pytest.raises(ModelNotFoundError, match=r"absent\.onnx"):
        wave_probabilities(signal, 500.0)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    monkeypatch.setenv("ECG_AGENT_DELINEATOR", str(broken))
    with pytest.raises(ModelNotFoundError, match=r"broken\.onnx"):
        wave_probabilities(signal, 500.0)


def test_low_passes_are_the_bands_one_after_the_other() -> None:
    signal = np.cumsum(np.random.default_rng(0).standard_normal((2, 5000)), axis=1) / 50
    level = band(signal, 500, 0.5, None)
    inner = slice(250, -250)
    for high, found in zip((45.0, 16.0), low_passes(signal, 500, 0.5, [45.0, 16.0]), strict=True):
        expected = band(level, 500, None, high)
        np.testing.assert_allclose(found[:, inner], expected[:, inner], atol=0.002)


def test_bands_of_one_spectrum_are_the_bands() -> None:
    signal = ecg.sample(139).signal.astype(np.float64)
    edges = [(1.0, 40.0), (None, 40.0), (8.0, 25.0), (None, 400.0)]
    inner = slice(250, -250)
    for (low, high), found in zip(edges, bands(signal, 500, edges), strict=True):
        expected = band(signal, 500, low, high)
        np.testing.assert_allclose(found[:, inner], expected[:, inner], atol=0.002)


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    share=st.sampled_from([0.0, 0.2, 0.5, 0.98, 1.0]),
)
def test_quantile_is_numpys(values: list[float], share: float) -> None:
    expected = np.quantile(values, share)
    assert quantile(np.array(values), share)[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rate", [100.0, 250.0, 257.0, 360.0, 1000.0])
def test_resampling_is_scipys(rate: float) -> None:
    signal = ecg.sample(139).signal[:2]
    ratio = Fraction(500.0 / rate).limit_denominator(1000)
    expected = resample_poly(
        signal.astype(np.float64), ratio.numerator, ratio.denominator, axis=-1, padtype="line"
    )
    np.testing.assert_allclose(resample(signal, rate, 500.0), expected, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), n_beats=st.integers(1, 40), n_waves=st.integers(0, 60))
def test_each_beat_gets_the_nearest_qrs_and_the_largest_t(
    seed: int, n_beats: int, n_waves: int
) -> None:
    """Against a plain loop over beats and stretches."""
    rng = np.random.default_rng(seed)
    bounds = np.sort(rng.choice(4000, 2 * n_waves, replace=False)).reshape(-1, 2)
    probabilities = np.zeros((4, 4000))
    for row, (start, end) in zip(rng.integers(1, 4, n_waves), bounds, strict=True):
        probabilities[row, start:end] = rng.uniform(0.6, 1.0)
    beats = np.sort(rng.choice(4000, n_beats, replace=False)).astype(np.float64)
    found = beat_boundaries(probabilities, beats)
    qrs, t = wave_stretches(probabilities[2], 5.0), wave_stretches(probabilities[3], 8.0)
    ends, following = [], []
    for beat, onset, offset in zip(beats, found["qrs_onset"], found["qrs_offset"], strict=True):
        away = [max(start - beat, beat - end, 0.0) for start, end, _ in qrs]
        near = [qrs[i] for i, d in enumerate(away) if d == min(away) and d <= 25.0]
        if near:
            start, end, _ = max(near, key=lambda row: row[2])
            assert (onset, offset) == (start, end)
        else:
            assert np.isnan(onset)
        ends.append(end if near else beat)
        following.append(start if near else beat)
    following = [*following[1:], 4000.0]
    for i, (end, limit) in enumerate(zip(ends, following, strict=True)):
        allowed = [
            row
            for row in t
            if end - 7.5 <= row[0] < min(end + 175.0, limit) and row[1] <= limit + 7.5
        ]
        if allowed:
            start, stop, _ = max(allowed, key=lambda row: row[2])
            assert (found["t_onset"][i], found["t_offset"][i]) == (start, stop)
        else:
            assert np.isnan(found["t_onset"][i])


@pytest.mark.parametrize(("low", "high"), [(0.5, None), (None, 40.0), (8.0, 25.0), (1.0, 40.0)])
def test_band_is_the_butterworth_filter_run_both_ways(
    low: float | None, high: float | None
) -> None:
    signal = ecg.sample(424).signal.astype(np.float64)
    edges = (low, high) if low and high else low or high
    kind = "bandpass" if low and high else "highpass" if low else "lowpass"
    sos = butter(2, edges, kind, fs=500, output="sos")
    expected = sosfiltfilt(sos, signal, padlen=1500)
    np.testing.assert_allclose(band(signal, 500, low, high), expected, atol=0.02)
    inner = slice(500, -500)
    np.testing.assert_allclose(
        band(signal, 500, low, high)[:, inner], expected[:, inner], atol=0.002
    )


@pytest.mark.parametrize("samples", [1, 2, 3, 7, 100])
def test_band_takes_the_shortest_signals(samples: int) -> None:
    signal = np.arange(samples, dtype=np.float64)[np.newaxis]
    for low, high in ((0.5, None), (None, 40.0), (1.0, 40.0)):
        out = band(signal, 500, low, high)
        assert out.shape == signal.shape
        assert np.isfinite(out).all()
