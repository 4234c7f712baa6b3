"""Training the delineation network: examples, the job, and its resumption."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from ecg_agent_ray.ecg.delineation.network import NETWORK_RATE_HZ, wave_probabilities
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.delineator import train_delineator
from ecg_agent_ray.training.delineator_augment import (
    EXAMPLE_SAMPLES,
    annotated_example,
    free_example,
)
from ecg_agent_ray.training.delineator_config import (
    AnnotatedSource,
    DelineatorTrainConfig,
    HoldOut,
)
from ecg_agent_ray.training.delineator_data import FreeLead, held_out, read_annotated
from ecg_agent_ray.training.delineator_network import WaveUNet, export_onnx

LUDB = Path(__file__).resolve().parents[1] / "fixtures" / "ludb"
SOURCE = AnnotatedSource(database="ludb", path=str(LUDB), share=1.0)
SINUS, FIBRILLATION, BLOCK = "1", "38", "108"


@pytest.fixture(scope="module")
def leads() -> list:
    return read_annotated(SOURCE, None)


def lead_of(leads: list, record: str, name: str = "II"):
    return next(x for x in leads if (x.record_id, x.lead) == (record, name))


def test_every_lead_is_read_with_its_waves(leads: list) -> None:
    assert len(leads) == 36
    assert {x.record_id for x in leads} == {SINUS, FIBRILLATION, BLOCK}
    assert not (lead_of(leads, FIBRILLATION).waves[:, 0] == 1).any(), "no P wave is marked"
    waves = lead_of(leads, SINUS).waves
    durations = {kind: np.median(np.diff(waves[waves[:, 0] == kind][:, [1, 3]])) for kind in (1, 2)}
    assert 0.06 < durations[1] < 0.14
    assert 0.06 < durations[2] < 0.12


def test_a_fold_is_kept_out_of_training() -> None:
    fold = HoldOut(folds=3, fold=1)
    kept_out = {record.record_id for record in held_out(SOURCE, fold)}
    assert kept_out == {FIBRILLATION}
    assert {x.record_id for x in read_annotated(SOURCE, fold)} == {SINUS, BLOCK}


@pytest.mark.parametrize("seed", range(12))
def test_examples_are_what_the_network_takes(leads: list, seed: int) -> None:
    rng = np.random.default_rng(seed)
    signal, target, known = annotated_example(leads[rng.integers(len(leads))], rng)
    assert signal.shape == known.shape == (EXAMPLE_SAMPLES,)
    assert target.shape == (4, EXAMPLE_SAMPLES)
    np.testing.assert_allclose(target.sum(axis=0), 1.0, atol=1e-5)
    assert target.min() >= 0
    assert set(np.unique(known)) <= {0.0, 1.0}
    assert known.mean() > 0.2
    assert np.isfinite(signal).all()


def test_the_same_generator_gives_the_same_example(leads: list) -> None:
    first, second = (annotated_example(leads[5], np.random.default_rng(3)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_waves_stay_where_the_target_says_however_time_is_stretched(leads: list) -> None:
    """The steepest samples of a clean lead lie inside the QRS complexes of the target."""
    lead, hits = lead_of(leads, SINUS), []
    for seed in range(20):
        signal, target, known = annotated_example(lead, np.random.default_rng(seed))
        slope = np.abs(np.gradient(signal)) * known
        steepest = np.argsort(slope)[-30:]
        hits.append(target[2, steepest].mean())
    assert np.median(hits) > 0.9


def test_examples_cover_slow_and_fast_hearts_and_long_qt(leads: list) -> None:
    lead = lead_of(leads, SINUS)
    qt, without_p = [], 0
    for seed in range(80):
        _, target, known = annotated_example(lead, np.random.default_rng(seed))
        onsets = np.flatnonzero(np.diff(((target[2] > 0.5) & (known > 0)).astype(int)) == 1)
        ends = np.flatnonzero(np.diff(((target[3] > 0.5) & (known > 0)).astype(int)) == -1)
        if onsets.size and (later := ends[ends > onsets[0]]).size:
            qt.append((later[0] - onsets[0]) / NETWORK_RATE_HZ)
        without_p += not (target[1] > 0.5).any()
    assert np.percentile(qt, 95) > 1.3 * np.median(qt)
    assert np.percentile(qt, 5) < 0.8 * np.median(qt)
    assert without_p > 3


def test_free_examples_differ_by_noise_only(leads: list) -> None:
    lead = FreeLead(lead_of(leads, SINUS).signal, no_p=False)
    alike = []
    for seed in range(20):
        clean, noisy = free_example(lead, np.random.default_rng(seed))
        assert clean.shape == noisy.shape == (EXAMPLE_SAMPLES,)
        alike.append(abs(np.corrcoef(clean, noisy)[0, 1]))
    assert np.median(alike) > 0.6


def test_the_exported_network_computes_what_torch_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leads: list
) -> None:
    torch.manual_seed(0)
    network = WaveUNet((6, 8, 8, 8, 8, 8))
    network(torch.randn(8, 1, 320))  # batch norms that are not the identity
    monkeypatch.setenv("ECG_AGENT_DELINEATOR", str(export_onnx(network, tmp_path / "model.onnx")))
    from ecg_agent_ray.ecg.delineation.network import prepare_lead
    from ecg_agent_ray.ecg.filters import resample

    signal = lead_of(leads, SINUS).signal[np.newaxis]
    found = wave_probabilities(signal, 500.0)
    prepared = prepare_lead(resample(signal, 500.0, NETWORK_RATE_HZ))
    padded = np.pad(prepared, ((0, 0), (0, -prepared.shape[-1] % 32)), mode="edge")
    with torch.inference_mode():
        expected = torch.softmax(network.eval()(torch.from_numpy(padded)[:, None]), dim=1)
    np.testing.assert_allclose(found, expected[..., : found.shape[-1]].numpy(), atol=1e-4)


def config(output: Path, **changes: object) -> DelineatorTrainConfig:
    values: dict[str, object] = {
        "output": str(output),
        "annotated": [SOURCE.model_dump()],
        "widths": (6, 8, 8, 8, 8, 8),
        "steps": 6,
        "batch_size": 3,
        "checkpoint_every": 2,
        "precision": "fp32",
    }
    return DelineatorTrainConfig.model_validate(values | changes)


def test_bad_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        train_delineator(
            config(tmp_path, annotated=[SOURCE.model_dump() | {"path": str(tmp_path / "no")}])
        )
    with pytest.raises(ConfigError, match="no fold 7"):
        train_delineator(config(tmp_path, hold_out={"folds": 3, "fold": 7}))
    with pytest.raises(ConfigError, match="stepz"):
        load_config(DelineatorTrainConfig, None, ["output=x", "stepz=3"])


@pytest.mark.slow
def test_a_job_trains_exports_and_judges_the_held_out_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECG_AGENT_HOME", str(tmp_path / "state"))
    result = train_delineator(
        config(tmp_path / "out", hold_out={"folds": 3, "fold": 1}, evaluate_leads=["II"])
    )
    assert result.model.is_file()
    assert set(result.metrics) == {"ludb"}
    assert set(result.metrics["ludb"]["II"]["mae_ms"]) == {"pr", "qrs", "qt", "qtc"}


@pytest.mark.slow
def test_a_killed_worker_resumes_to_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed half way; the weights at the end are those of an undisturbed run."""
    monkeypatch.setenv("ECG_AGENT_HOME", str(tmp_path / "state"))
    undisturbed = train_delineator(config(tmp_path / "a", steps=30))
    killed: list[int] = []
    stop = threading.Event()

    def kill_a_worker() -> None:
        folder = tmp_path / "b" / "checkpoints"
        while not stop.is_set() and not list(folder.rglob("network.pt")):
            time.sleep(0.05)
        me = psutil.Process()
        workers = [p for p in me.children(recursive=True) if "RayTrainWorker" in _title(p)]
        if workers:
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.append(workers[0].pid)

    watcher = threading.Thread(target=kill_a_worker)
    watcher.start()
    try:
        disturbed = train_delineator(config(tmp_path / "b", steps=30))
    finally:
        stop.set()
        watcher.join()
    assert killed, "no worker was there to be killed"
    assert disturbed.model.read_bytes() == undisturbed.model.read_bytes()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
