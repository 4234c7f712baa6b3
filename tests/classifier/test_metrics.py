"""Metrics against values worked out by hand and by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ecg_agent_ray.classifier.metrics import (
    bootstrap_intervals,
    classifier_metrics,
    expected_calibration_error,
)


def test_masked_cells_take_no_part() -> None:
    targets = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=float)
    scores = np.array([[0.9, 0.2], [0.1, 0.9], [0.8, 0.3], [0.2, 0.6]])
    everything = np.ones_like(targets)
    full = classifier_metrics(targets, scores, everything, ["A", "B"])
    assert full["per_label"]["A"] == {"auroc": 1.0, "auprc": 1.0, "positives": 2, "n": 4}
    assert full["per_label"]["B"]["auroc"] == 0.75
    assert full["macro_auroc"] == 0.875
    mask = everything.copy()
    mask[2, 1] = 0
    assert classifier_metrics(targets, scores, mask, ["A", "B"])["per_label"]["B"]["auroc"] == 1.0
    mask[:, 1] = 0
    assert set(classifier_metrics(targets, scores, mask, ["A", "B"])["per_label"]) == {"A"}


def test_a_label_of_one_class_has_no_auroc() -> None:
    targets = np.array([[1.0], [1.0]])
    result = classifier_metrics(targets, targets * 0.5, np.ones((2, 1)), ["A"])
    assert result["per_label"]["A"]["auroc"] is None
    assert result["macro_auroc"] is None
    assert result["bce"] == pytest.approx(np.log(2))


def test_calibration_error() -> None:
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0.0
    # one bin, stated 0.75, seen 0.5
    error = expected_calibration_error(np.array([1.0, 0.0]), np.array([0.75, 0.75]))
    assert error == pytest.approx(0.25)
    assert expected_calibration_error(np.array([]), np.array([])) is None


def test_intervals_hold_the_value_and_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    targets = (rng.random((200, 1)) < 0.3).astype(float)
    scores = np.round(targets * 0.3 + rng.random((200, 1)), 1)  # rounded: ties count half
    mask = np.ones_like(targets)
    patients = [str(index // 2) for index in range(200)]
    intervals = bootstrap_intervals(targets, scores, mask, ["A"], patients, repeats=200)
    value = roc_auc_score(targets[:, 0], scores[:, 0])
    low, high = intervals["auroc/A"]
    assert low < value < high
    assert 0.05 < high - low < 0.25
    assert intervals == bootstrap_intervals(targets, scores, mask, ["A"], patients, repeats=200)
