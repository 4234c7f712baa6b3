"""What is wrong with a lead is said, and only where something is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ecg_agent_ray import ecg

Signal = np.ndarray


def spoiled(change: Callable[[Signal], None]) -> ecg.LeadQuality:
    """Quality of lead II of a clean record after ``change`` did something to it."""
    clean = ecg.sample(139)
    signal = clean.signal.copy()
    change(signal[clean.leads.index("II")])
    made = ecg.Recording(signal=signal, sampling_rate=500, leads=clean.leads)
    return ecg.assess_quality(made)["II"]


def test_clean_records_are_usable() -> None:
    for path in ecg.samples():
        found = ecg.assess_quality(ecg.read(path))
        usable = sum(quality.status == "usable" for quality in found.values())
        assert usable >= 10, (path.stem, found)
        assert all(quality.reason == "" for quality in found.values() if quality.status == "usable")


def set_to(value: float, start: int = 0, stop: int = 5000) -> Callable[[Signal], None]:
    def change(row: Signal) -> None:
        row[start:stop] = value

    return change


def add(values: Signal) -> Callable[[Signal], None]:
    def change(row: Signal) -> None:
        row += values.astype(np.float32)

    return change


def clip(low: float, high: float) -> Callable[[Signal], None]:
    def change(row: Signal) -> None:
        np.clip(row, low, high, out=row)

    return change


NOISE = np.random.default_rng(7).normal(0, 1, 5000)


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        (set_to(0.0), "unusable", "flat"),
        (set_to(0.3, 500, 2500), "doubtful", "flat"),
        (set_to(np.nan), "unusable", "missing"),
        (set_to(np.nan, 1000, 2000), "doubtful", "missing"),
        (clip(-0.1, 0.05), "unusable", "saturated"),
        (add(NOISE * 0.2), "doubtful", "noise"),
        (add(NOISE * 3), "unusable", ""),
        (add(np.sin(np.arange(5000) / 500) * 1.5), "doubtful", "baseline"),
        (add(np.where(np.arange(5000) == 2500, 30.0, 0.0)), "unusable", "swing"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Signal], None], status: str, word: str) -> None:
    found = spoiled(change)
    assert (found.status, word in found.reason) == (status, True), found


def test_leads_off_in_a_real_record(shared_data: Path) -> None:
    found = ecg.assess_quality(ecg.read(shared_data / "cinc2021" / "JS20004.hea"))
    assert {name for name, quality in found.items() if quality.status == "unusable"} == {
        "V2",
        "V4",
        "V6",
    }
