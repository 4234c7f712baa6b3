"""Evaluating classifier and explanation on labelled recordings, and on the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.classifier import Classifier, load_classifier, prepare
from ecg_agent_ray.classifier.dataset import read_source
from ecg_agent_ray.cli import run
from ecg_agent_ray.errors import ConfigError, LeadError
from ecg_agent_ray.evaluation import evaluate_classifier, evaluate_explanation
from ecg_agent_ray.evaluation.classifier_data import source_kind
from ecg_agent_ray.evaluation.faithfulness import _products, integrated_gradients
from ecg_agent_ray.tools.spectrogram_cells import stft_cells

SAMPLES = ecg.samples()[0].parent


@pytest.fixture(scope="module")
def builtin() -> Classifier:
    return load_classifier()


def test_the_shipped_records_as_a_manifest(builtin: Classifier, tmp_path: Path) -> None:
    metrics = evaluate_classifier(builtin, SAMPLES, output=tmp_path, resamples=20, track=False)
    assert {"macro_auroc", "micro_auroc", "macro_auprc", "per_label", "ece"} <= set(metrics)
    assert metrics["n_records"] == 12
    assert metrics["lead_configuration"] == "12-lead"
    assert set(metrics["configurations"]) == {"I", "II"}
    assert metrics["macro_auroc"] > 0.8
    low, high = metrics["intervals"]["micro_auroc"]
    assert low <= metrics["micro_auroc"] <= high
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert sum(entry["count"] for entry in metrics["reliability"]) == 12 * 21
    assert metrics["thresholds"]["AFIB"]["threshold"] == builtin.thresholds["12-lead"]["AFIB"]
    assert "challenge" not in metrics  # PTB-XL's records do not have the Challenge's labels
    for plot in ("reliability.png", "auroc.png"):
        assert (tmp_path / "plots" / plot).read_bytes().startswith(b"\x89PNG")


def test_a_calibrated_copy_keeps_its_thresholds(builtin: Classifier, tmp_path: Path) -> None:
    plain = replace(builtin, calibration=None, thresholds={})
    metrics = evaluate_classifier(
        plain,
        SAMPLES,
        output=tmp_path,
        leads=["II"],
        resamples=0,
        track=False,
        calibrated=tmp_path / "calibrated",
    )
    copy = load_classifier(tmp_path / "calibrated")
    assert copy.lead_configurations == ("II",)
    assert copy.calibration is not None
    assert "AFIB" in copy.thresholds["II"]
    again = evaluate_classifier(copy, SAMPLES, output=tmp_path, resamples=0, track=False)
    assert again["bce"] < metrics["bce"]
    assert again["thresholds"]["AFIB"]["f1"] >= metrics["thresholds"]["AFIB"]["f1"]
    assert tools.classify(ecg.sample(3), copy, threshold="model", leads="II").calibration


def test_a_data_sets_own_split(builtin: Classifier, shared_data: Path, tmp_path: Path) -> None:
    metrics = evaluate_classifier(
        builtin,
        shared_data / "ptbxl",
        output=tmp_path,
        leads=["II"],
        split="valid",
        resamples=0,
        track=False,
    )
    assert metrics["n_records"] == 11


def test_challenge_score(builtin: Classifier, shared_data: Path, tmp_path: Path) -> None:
    metrics = evaluate_classifier(
        builtin, shared_data / "cinc2021", output=tmp_path, resamples=20, track=False
    )
    challenge = metrics["challenge"]
    low, high = challenge["interval"]
    assert low <= challenge["score"] <= high <= 1
    assert challenge["thresholds"] == "model"
    assert challenge["n_records"] == metrics["n_records"]
    # the shipped classifier assesses some classes only, the others count as never predicted
    assert 5 < challenge["classes_assessed"] < 26


def test_auroc_is_of_the_tools_probabilities(builtin: Classifier, tmp_path: Path) -> None:
    metrics = evaluate_classifier(
        builtin, SAMPLES, output=tmp_path, leads=["II"], resamples=0, track=False
    )
    truth, score = [], []
    for record in read_source("manifest", SAMPLES):
        found = tools.classify(ecg.read(record.path), builtin, leads="II")
        score.append(found.labels["AFIB"])
        truth.append("AFIB" in record.positives)
    positive = np.array(score)[truth]
    negative = np.array(score)[~np.array(truth)]
    wins = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert metrics["per_label"]["AFIB"]["auroc"] == pytest.approx(wins, abs=0.01)
    assert "intervals" not in metrics


def test_a_recording_that_cannot_be_read_is_listed(builtin: Classifier, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(SAMPLES, data)
    broken = ecg.samples()[0].with_suffix(".dat").name
    (data / broken).write_bytes(b"\0" * 100)
    metrics = evaluate_classifier(
        builtin, data, output=tmp_path, leads=["II"], resamples=0, track=False
    )
    assert metrics["n_records"] == 11
    assert [failure["record_id"] for failure in metrics["failed"]] == [Path(broken).stem]


def test_bad_input(builtin: Classifier, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no labelled recordings"):
        evaluate_classifier(builtin, tmp_path, output=tmp_path, track=False)
    with pytest.raises(LeadError):
        evaluate_classifier(builtin, SAMPLES, output=tmp_path, leads=["V1"], track=False)
    with pytest.raises(ConfigError, match="no record 7"):
        evaluate_classifier(builtin, SAMPLES, output=tmp_path, records=["7"], track=False)
    with pytest.raises(ConfigError, match="no records of split 'test'"):
        evaluate_classifier(builtin, SAMPLES, output=tmp_path, split="test", track=False)
    with pytest.raises(ConfigError, match="does not assess"):
        evaluate_explanation(builtin, SAMPLES, output=tmp_path, label="XYZ")


def test_kinds_of_data(shared_data: Path) -> None:
    assert source_kind(shared_data / "ptbxl") == "ptbxl"
    assert source_kind(shared_data / "ludb") == "ludb"
    assert source_kind(shared_data / "cinc2021") == "physionet"
    assert source_kind(SAMPLES / "records.csv") == "manifest"


def test_highlighted_regions_matter_more_than_random_ones(
    builtin: Classifier, tmp_path: Path
) -> None:
    metrics = evaluate_explanation(builtin, SAMPLES, output=tmp_path, leads="II", limit=6, draws=4)
    assert metrics["n_records"] == 6
    assert sum(metrics["labels"].values()) == 6
    for name in ("deletion", "insertion"):
        assert metrics[name]["highlighted"] > metrics[name]["random"]
        low, high = metrics[name]["interval"]
        assert low <= metrics[name]["difference"] <= high

    faithfulness = metrics["faithfulness"]
    assert faithfulness["k"] == [1, 2, 4]
    low, high = faithfulness["against"]["random"]["interval"]
    assert low <= faithfulness["against"]["random"]["difference"] <= high
    assert np.mean(faithfulness["tool"]) > np.mean(faithfulness["random"])


def test_integrated_gradients_add_up_to_the_change(builtin: Classifier) -> None:
    """Completeness (axiom of Sundararajan et al. 2017), over samples and over all cells."""
    window = prepare(ecg.sample(3)).windows[0]
    row, column = 1, builtin.labels.index("SR")
    gradient = integrated_gradients(builtin, window, row, column, "12-lead")
    emptied = window.copy()
    emptied[row] = 0
    whole, nothing = builtin.probabilities(np.stack([window, emptied]))[:, column]
    change = float(gradient @ window[row])
    assert change == pytest.approx(whole - nothing, abs=0.15)
    spectrum = stft_cells(window[row])
    every = [(f, t) for f in range(spectrum.shape[0]) for t in range(spectrum.shape[1])]
    parts = _products(spectrum, every, gradient)
    assert parts.sum() == pytest.approx(change, abs=1e-4)


def test_command_line(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    common = ["--model", "builtin:", "--data", str(SAMPLES), "--output", str(tmp_path)]
    options = ["--leads", "II", "--resamples", "0"]
    assert run(["evaluate", "classifier", *common, *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (logged,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert logged.data.metrics["II/macro_auroc"] == pytest.approx(printed["macro_auroc"])
    assert run(["evaluate", "classifier", *common, *options, "--no-track"]) == 0
    assert run(["evaluate", "explanation", *common, "--leads", "II", "--limit", "1"]) == 0
    assert "deletion" in capsys.readouterr().out
    assert run(["evaluate", "classifier", *common[2:], "--model", str(tmp_path / "no")]) == 2
    assert run(["evaluate", "explanation", *common, "--leads", "V1"]) == 2
