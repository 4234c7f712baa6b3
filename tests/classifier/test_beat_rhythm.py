"""The shipped network's parameter-free part finds beats and rhythm; the rest has the interface."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ecg_agent_ray import ecg
from ecg_agent_ray.classifier import BeatRhythmClassifier, BeatRhythmConfig
from ecg_agent_ray.classifier.beat_rhythm import find_beats


def spikes(period_s: float, jitter: float = 0.0) -> torch.Tensor:
    """(1, 12, 5000): a narrow triangle of 1 mV at each beat."""
    rng = np.random.default_rng(0)
    signal = np.zeros(5000, dtype=np.float32)
    at = 0.4
    while at < 9.6:
        centre = round(at * 500)
        signal[centre - 20 : centre + 21] += 1 - np.abs(np.arange(-20, 21)) / 21
        at += period_s * (1 + jitter * rng.uniform(-1, 1))
    return torch.from_numpy(np.tile(signal, (1, 12, 1)))


@pytest.fixture(scope="module")
def network() -> BeatRhythmClassifier:
    torch.manual_seed(0)
    return BeatRhythmClassifier(BeatRhythmConfig()).eval()


def rhythm(network: BeatRhythmClassifier, signal: torch.Tensor) -> torch.Tensor:
    x = torch.nn.functional.avg_pool1d(signal, 5)
    with torch.inference_mode():
        return network.rhythm(x, find_beats(x, 100.0))[0]


@pytest.mark.parametrize("bpm", [45, 60, 80, 110, 150])
def test_rate_is_read_in_both_ways(network: BeatRhythmClassifier, bpm: int) -> None:
    values = rhythm(network, spikes(60 / bpm))
    for column in (0, 6):
        assert float(values[column]) * 40 + 80 == pytest.approx(bpm, rel=0.04)


def test_irregular_rhythm_differs_from_regular(network: BeatRhythmClassifier) -> None:
    regular, irregular = rhythm(network, spikes(0.7)), rhythm(network, spikes(0.7, jitter=0.3))
    assert irregular[9] > regular[9] + 0.3  # successive differences
    assert irregular[4] < regular[4] - 0.3  # height of the autocorrelation


@pytest.mark.parametrize("record_id", [p.stem for p in ecg.samples()])
def test_beats_of_real_records(record_id: str) -> None:
    from ecg_agent_ray import tools

    recording = ecg.sample(record_id)
    x = torch.nn.functional.avg_pool1d(torch.tensor(recording.signal)[None], 5)
    count = int(find_beats(x, 100.0).sum())
    assert count == pytest.approx(tools.measure(recording).n_beats, abs=2)


def test_interface(network: BeatRhythmClassifier) -> None:
    source = torch.tensor(np.stack([ecg.sample(3).signal, ecg.sample(351).signal]))
    with torch.inference_mode():
        output = network(source)
        alone = network(source[1:])
        scaled = network(torch.cat([source, torch.zeros_like(source)], dim=2))
    assert output.logits.shape == (2, 71)
    assert output.encoder_out.ndim == 3
    torch.testing.assert_close(output.logits[1:], alone.logits)
    assert scaled.logits.shape == (2, 71)


@pytest.mark.parametrize("signal", [torch.zeros(1, 12, 5000), torch.randn(1, 12, 500) * 1e-3])
def test_no_beats_is_no_error(network: BeatRhythmClassifier, signal: torch.Tensor) -> None:
    with torch.inference_mode():
        assert torch.isfinite(network(signal).logits).all()
