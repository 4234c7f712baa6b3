"""Any recording becomes windows the classifier was made for, and what was done is said."""

from __future__ import annotations

import numpy as np
import pytest

from ecg_agent_ray import ecg
from ecg_agent_ray.classifier.preprocessing import MAX_WINDOWS, STANDARD_LEADS, prepare
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import LeadError, RecordingError


def made(seconds: float, rate: float = 500.0, leads: tuple[str, ...] = STANDARD_LEADS) -> Recording:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(len(leads), round(seconds * rate))).astype(np.float32)
    return Recording(signal=signal, sampling_rate=rate, leads=leads, record_id="made")


def test_a_standard_recording_is_passed_as_it_is() -> None:
    recording = ecg.sample(3)
    prepared = prepare(recording)
    assert prepared.windows.shape == (1, 12, 5000)
    np.testing.assert_array_equal(prepared.windows[0], recording.signal)
    assert prepared.notes == ()
    assert prepared.padding_mask is None


@pytest.mark.parametrize("leads", ["I", "II"])
def test_single_lead_configurations_zero_the_others(leads: str) -> None:
    prepared = prepare(ecg.sample(3), leads)
    assert prepared.leads == (leads,)
    rows = np.flatnonzero(np.abs(prepared.windows[0]).sum(1))
    assert rows.tolist() == [STANDARD_LEADS.index(leads)]


def test_order_of_leads_is_the_models() -> None:
    recording = ecg.sample(3)
    turned = recording.select(tuple(reversed(recording.leads)))
    np.testing.assert_array_equal(prepare(turned).windows, prepare(recording).windows)


def test_short_recording_is_padded_masked_and_said() -> None:
    prepared = prepare(made(3))
    assert prepared.windows.shape == (1, 12, 5000)
    assert prepared.padding_mask is not None
    assert (~prepared.padding_mask).sum() == 1500
    assert "only 3.0 s long" in prepared.notes[0]
    with pytest.raises(RecordingError, match="too short"):
        prepare(made(0.5))


def test_long_recording_becomes_windows_that_cover_it() -> None:
    prepared = prepare(made(25))
    assert prepared.starts_s == (0.0, 7.5, 15.0)
    assert "mean over 3 windows" in prepared.notes[0]
    assert len(prepare(made(10.5)).windows) == 1
    assert len(prepare(made(900, leads=("II",)), "II").windows) == MAX_WINDOWS


def test_other_rates_are_resampled() -> None:
    prepared = prepare(made(10, rate=250))
    assert prepared.windows.shape == (1, 12, 5000)
    assert prepared.notes[0] == "resampled from 250 Hz to 500 Hz"


def test_gaps_flat_and_absent_leads() -> None:
    signal = np.array(made(10).signal)
    signal[2, 100:200] = np.nan
    signal[3] = np.nan
    signal[4] = 0.7
    recording = Recording(
        signal=signal[:8], sampling_rate=500, leads=STANDARD_LEADS[:8], record_id="gaps"
    )
    prepared = prepare(recording)
    assert np.isfinite(prepared.windows).all()
    assert prepared.leads == ("I", "II", "III", "aVF", "V1", "V2")
    text = " | ".join(prepared.notes)
    assert "lead III: 2.0% of samples missing, interpolated" in text
    assert "lead aVR is missing for 100%" in text
    assert "lead aVL is flat" in text
    assert "leads absent and fed as zero: V3, V4, V5, V6" in text


def test_what_cannot_be_prepared() -> None:
    with pytest.raises(LeadError, match="none of the leads I holds"):
        prepare(made(10, leads=("II", "V1")), "I")
    with pytest.raises(LeadError, match="unknown lead configuration 'III'"):
        prepare(made(10), "III")
