"""The explanation tool: right places, faithful cells, the text of dialogues."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import numpy as np
import pytest

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import ConfigError, LeadError, ToolError
from ecg_agent_ray.tools.spectrogram_cells import rank_cells

KEYS = {"record_id", "label", "probability", "lead", "method", "cells", "regions", "text"}
LINE = re.compile(r"SR \(\d+\.\d\d%\) \| time=\d+\.\d{3}-\d+\.\d{3}s, freq=\d+\.\d-\d+\.\dHz")


def test_contract() -> None:
    result = tools.explain(ecg.sample(3), "SR", None, "12-lead")
    values = result.to_dict()
    assert set(values) >= KEYS
    assert json.loads(json.dumps(values)) == values
    assert (values["lead"], values["method"]) == ("II", "spectralx-fia-combined")
    assert values["probability"] == tools.classify(ecg.sample(3)).labels["SR"]
    assert LINE.fullmatch(result.text)
    assert result.to_dialogue() == result.text
    (cell,) = values["cells"]
    assert 0 <= cell["start_s"] < cell["end_s"] <= 10
    assert 0 <= cell["low_hz"] < cell["high_hz"] <= 51
    assert len(values["regions"]) == 120
    scores = [region["score"] for region in values["regions"]]
    assert scores == sorted(scores, reverse=True)


def test_same_recording_same_explanation_and_more_cells_on_request() -> None:
    one = tools.explain(ecg.sample(3), "SR")
    assert one == tools.explain(ecg.sample(3), "SR")
    three = tools.explain(ecg.sample(3), "SR", lead="V2", top_k=3)
    assert three.lead == "V2"
    assert len({(c.start_s, c.low_hz) for c in three.cells}) == 3
    assert len(three.text.splitlines()) == 3
    assert tools.explain(ecg.sample(3), "SR", leads="I").lead == "I"


def bursts(at_s: float, hz: float) -> np.ndarray[Any, Any]:
    """(1, 5000): low noise, and one second of a sine at ``at_s``."""
    time_s = np.arange(5000) / 500
    signal = 0.01 * np.random.default_rng(0).normal(size=5000)
    signal += np.where(np.abs(time_s - at_s) < 0.5, np.sin(2 * np.pi * hz * time_s), 0)
    return signal[None].astype(np.float32)


@pytest.mark.parametrize(("at_s", "hz"), [(2.0, 12.0), (5.0, 30.0), (8.0, 20.0)])
def test_the_place_is_where_the_classifier_looks(at_s: float, hz: float) -> None:
    """A classifier that measures a band's power at a known time is explained by that very place."""

    def score(windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        part = windows[:, 0, int((at_s - 0.5) * 500) : int((at_s + 0.5) * 500)]
        power = np.abs(np.fft.rfft(part, axis=1))
        band = power[:, round(hz) - 2 : round(hz) + 3].max(axis=1)
        return band / 250

    ranked = rank_cells(bursts(at_s, hz), 0, score, top_k=3, perturbations=200)
    for (bin_, frame), _ in ranked:
        assert abs(frame * 128 / 500 - at_s) < 1.0
        assert abs(bin_ * 500 / 512 - hz) < 3.0


def test_long_and_short_recordings_keep_their_own_time() -> None:
    recording = ecg.sample(3)
    other = ecg.sample(263)  # sinus tachycardia
    signal = np.concatenate([other.signal, recording.signal, other.signal], axis=1)
    long = Recording(signal=signal, sampling_rate=500, leads=recording.leads)
    result = tools.explain(long, "SR")
    # the middle window is the one in sinus rhythm of usual rate
    assert result.probability == tools.classify(recording).labels["SR"]
    assert all(10 <= region.start_s < region.end_s <= 20 for region in result.regions)
    assert 10 <= result.cells[0].start_s < result.cells[0].end_s <= 20
    short = tools.explain(recording.crop(0, 3), "SR")
    assert max(region.end_s for region in short.regions) <= 3
    assert short.cells[0].end_s <= 3
    assert "only 3.0 s long" in short.notes[0]


def test_what_cannot_be_explained() -> None:
    with pytest.raises(ConfigError, match="has no label 'XYZ'"):
        tools.explain(ecg.sample(3), "XYZ")
    with pytest.raises(ToolError, match="WPW is not assessed"):
        tools.explain(ecg.sample(3), "WPW")
    with pytest.raises(ToolError, match="NORM is not assessed by builtin: from I"):
        tools.explain(ecg.sample(3), "NORM", leads="I")
    with pytest.raises(LeadError, match="lead V9"):
        tools.explain(ecg.sample(3), "SR", lead="V9")
    with pytest.raises(ConfigError, match="top_k"):
        tools.explain(ecg.sample(3), "SR", top_k=0)


def test_under_five_seconds_of_one_core() -> None:
    recording = ecg.sample(3)
    tools.explain(recording, "SR")
    started = time.process_time()
    tools.explain(recording, "SR")
    assert time.process_time() - started < 5
