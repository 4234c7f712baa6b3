"""Recording's checks, lead names and derived leads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ecg_agent_ray import ecg
from ecg_agent_ray.ecg.leads import derive_limb_leads, unique_leads
from ecg_agent_ray.errors import LeadError, RecordingError


def recording(**changes: object) -> ecg.Recording:
    fields = {"signal": np.zeros((2, 500)), "sampling_rate": 500, "leads": ("I", "V1")}
    return ecg.Recording(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("AVR", "aVR"),
        ("avl", "aVL"),
        ("MDC_ECG_LEAD_AVF", "aVF"),
        ("MDC_ECG_LEAD_V3", "V3"),
        ("Lead II", "II"),
        ("ECG I", "I"),
        ("ecg_v6", "V6"),
        ("MLII", "II"),
        ("  v1 ", "V1"),
        ("MDC_ECG_LEAD_V3R", "V3R"),
        ("ECG v8", "V8"),
        ("ECG 1", "ECG 1"),
        ("ECG1", "ECG1"),
        ("vx", "vx"),
        ("", "ECG"),
    ],
)
def test_lead_names(raw: str, name: str) -> None:
    assert ecg.normalise_lead(raw) == name


def test_equal_lead_names_are_kept_apart() -> None:
    assert unique_leads(["II", "MLII", "ecg", "ecg"]) == ("II", "MLII", "ecg", "ecg_4")


def test_derived_leads_follow_einthoven_and_goldberger() -> None:
    whole = ecg.sample(3)
    stored = whole.select(["I", "II", "V1"])
    signal, leads = derive_limb_leads(stored.signal, stored.leads)
    assert leads == ("I", "II", "III", "aVR", "aVL", "aVF", "V1")
    for name in ("III", "aVR", "aVL", "aVF"):
        # PTB-XL stores all twelve, rounded to a microvolt each
        assert np.abs(signal[leads.index(name)] - whole.lead(name)).max() < 0.003, name


@pytest.mark.parametrize(
    "changes",
    [
        {"signal": np.zeros((2, 0))},
        {"signal": np.zeros((2, 3, 4))},
        {"signal": np.array([["a", "b"]]), "leads": ("I",)},
        {"sampling_rate": 0},
        {"sampling_rate": float("nan")},
        {"sampling_rate": 1e6},
        {"leads": ("I",)},
        {"leads": ("I", "lead i")},
    ],
)
def test_what_is_no_recording_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RecordingError):
        recording(**changes)


def test_signal_is_frozen_and_infinities_become_gaps() -> None:
    made = recording(signal=np.array([[0.0, np.inf, 1e30], [1.0, np.nan, 2.0]]))
    assert np.isnan(made.signal).tolist() == [[False, True, True], [False, True, False]]
    assert made.signal.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        made.signal[0, 0] = 1
    with pytest.raises(LeadError, match="no lead V6"):
        made.lead("V6")


@pytest.mark.parametrize("hz", [100, 250, 360, 1000, 2000])
def test_resampling_keeps_shape_duration_and_gaps(hz: float) -> None:
    original = ecg.sample(3).select(["II"])
    signal = original.signal.copy()
    signal[0, 2000:2100] = np.nan
    other = ecg.Recording(signal=signal, sampling_rate=500, leads=("II",)).resample(hz)
    assert other.duration_s == pytest.approx(10.0, abs=2 / hz)
    assert np.isnan(other.signal).mean() == pytest.approx(0.02, abs=0.002)
    back = original.resample(hz).resample(500).signal[0, 100:-100]
    assert np.corrcoef(back, original.signal[0, 100:-100])[0, 1] > (0.97 if hz == 100 else 0.999)


def test_importing_is_light() -> None:
    code = (
        "import sys, ecg_agent_ray.ecg;"
        "heavy = {'torch', 'ray', 'scipy', 'pandas', 'wfdb', 'matplotlib'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
