"""Calibration, thresholds, reliability and intervals, on made scores whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ecg_agent_ray.classifier import load_classifier
from ecg_agent_ray.classifier.calibration import (
    best_threshold,
    calibrate,
    choose_thresholds,
    fit_platt,
)
from ecg_agent_ray.classifier.dataset import LabelledRecord
from ecg_agent_ray.classifier.metrics import (
    _auroc_auprc,
    at_thresholds,
    bootstrap_intervals,
    expected_calibration_error,
    reliability,
)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_platt_undoes_a_scaling_of_the_logits() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 4000)
    truth = (rng.random(4000) < sigmoid(logits)).astype(float)
    slope, offset = fit_platt(3 * logits + 1, truth)
    assert slope == pytest.approx(1 / 3, rel=0.1)
    assert offset == pytest.approx(-1 / 3, abs=0.15)


def test_threshold_of_greatest_f1() -> None:
    probabilities = np.array([0.1, 0.2, 0.3, 0.35, 0.9])
    truth = np.array([0, 0, 1, 1, 1.0])
    threshold = best_threshold(probabilities, truth)
    assert 0.2 < threshold < 0.3
    found = at_thresholds(
        truth[:, None], probabilities[:, None], np.ones((5, 1)), ["A"], {"A": threshold}
    )
    assert found["A"] == {"threshold": threshold, "sensitivity": 1.0, "ppv": 1.0, "f1": 1.0}


def test_thresholds_are_kept_with_the_model(tmp_path: Path) -> None:
    classifier = load_classifier()
    records = [
        LabelledRecord(str(i), str(i), Path(), frozenset(["AFIB"][: i % 2]), frozenset(["AFIB"]))
        for i in range(10)
    ]
    logits = np.zeros((10, len(classifier.labels)))
    logits[1::2, classifier.labels.index("AFIB")] = -2
    logits[::2, classifier.labels.index("AFIB")] = -4
    calibrate(classifier, records, {"12-lead": logits}, name="platt-test")
    assert set(classifier.thresholds["12-lead"]) == {"AFIB"}
    slope, offset = classifier.calibration.parameters["12-lead"]["AFIB"]
    assert sigmoid(np.array(-4 * slope + offset)) < classifier.thresholds["12-lead"]["AFIB"]
    assert sigmoid(np.array(-2 * slope + offset)) > classifier.thresholds["12-lead"]["AFIB"]
    classifier.calibration = None
    choose_thresholds(classifier, records, {"12-lead": logits})
    assert sigmoid(np.array(-4.0)) < classifier.thresholds["12-lead"]["AFIB"] < 0.12
    classifier.save(tmp_path)
    assert load_classifier(tmp_path).thresholds == classifier.thresholds


def test_reliability_and_its_error() -> None:
    stated = np.array([0.05, 0.05, 0.55, 0.55])
    truth = np.array([0, 0, 1, 0.0])
    bins = reliability(truth[:, None], stated[:, None], np.ones((4, 1)))
    assert [entry["count"] for entry in bins] == [2, 2]
    assert [entry["observed"] for entry in bins] == [0, 0.5]
    assert expected_calibration_error(truth, stated) == pytest.approx(0.05)


@pytest.mark.parametrize("digits", [1, 6])
def test_areas_are_scikit_learns(digits: int) -> None:
    """With one digit there are ties."""
    rng = np.random.default_rng(digits)
    truth = (rng.random(200) < 0.3).astype(float)
    score = np.round(rng.random(200) * 0.7 + 0.3 * truth, digits)
    auroc, auprc = _auroc_auprc(truth, score)
    assert auroc == pytest.approx(roc_auc_score(truth, score))
    assert auprc == pytest.approx(average_precision_score(truth, score))
    assert _auroc_auprc(np.ones(3), score[:3]) is None


def test_intervals_hold_the_truth_and_narrow_with_more_patients() -> None:
    rng = np.random.default_rng(3)

    def interval(patients: int) -> tuple[float, float]:
        truth = (rng.random((patients, 1)) < 0.4).astype(float)
        score = sigmoid(rng.normal(0, 1, (patients, 1)) + truth)
        found = bootstrap_intervals(
            truth, score, np.ones_like(truth), ["A"], [str(i) for i in range(patients)], repeats=100
        )
        assert {"macro_auroc", "micro_auprc", "auroc/A", "auprc/A", "ece"} <= set(found)
        low, high = found["macro_auroc"]
        return low, high

    low, high = interval(1000)
    assert low < 0.76 < high  # of two normals one deviation apart
    few_low, few_high = interval(60)
    assert high - low < few_high - few_low
