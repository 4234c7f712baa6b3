"""Platt scaling and thresholds of a classifier from records it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.classifier.bundle import Calibration, Classifier
from ecg_agent_ray.classifier.dataset import LabelledRecord, label_matrix

__all__ = ["best_threshold", "calibrate", "choose_thresholds", "fit_platt", "fit_platt_all"]

Array = npt.NDArray[np.float64]
_SLOPE_PRIOR = 1.0


def fit_platt(logits: Array, truth: Array) -> tuple[float, float]:
    """Slope and offset that make ``sigmoid(slope * logit + offset)`` fit ``truth``.

    Platt's smoothed targets ((N+ + 1)/(N+ + 2) and 1/(N- + 2)), and a normal prior on log slope
    with mean 0: with a handful of positives the slope stays near 1, and the ranking is never
    reversed.
    """
    from scipy.optimize import minimize

    positives = float(truth.sum())
    negatives = len(truth) - positives
    targets = np.where(truth > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def cost(values: Array) -> float:
        z = np.exp(values[0]) * logits + values[1]
        loss = np.sum(np.logaddexp(0, z) - targets * z)
        return float(loss + values[0] ** 2 / (2 * _SLOPE_PRIOR**2))

    found = minimize(cost, np.zeros(2), method="L-BFGS-B", bounds=[(-3, 3), (-20, 20)])
    return float(np.exp(found.x[0])), float(found.x[1])


def best_threshold(probabilities: Array, truth: Array) -> float:
    """Threshold (a label is positive strictly above it) of greatest F1, else 0.5."""
    best, threshold = 0.0, 0.5
    ordered = np.unique(probabilities)
    candidates = np.concatenate([[ordered[0] / 2], (ordered[1:] + ordered[:-1]) / 2])
    for candidate in candidates:
        chosen = probabilities > candidate
        hits = float(truth[chosen].sum())
        f1 = 2 * hits / max(1.0, chosen.sum() + truth.sum())
        if f1 > best:
            best, threshold = f1, float(candidate)
    return threshold


def fit_platt_all(
    classifier: Classifier, leads: str, logits: Array, targets: Any, mask: Any
) -> dict[str, tuple[float, float]]:
    """:func:`fit_platt` of every label assessed from ``leads`` that has both kinds of records."""
    fitted = {}
    for code, column, rows in _usable(classifier, leads, targets, mask):
        slope, offset = fit_platt(logits[rows, column], targets[rows, column])
        fitted[code] = (round(slope, 4), round(offset, 4))
    return fitted


def _usable(
    classifier: Classifier, leads: str, targets: Any, mask: Any
) -> list[tuple[str, int, npt.NDArray[np.bool_]]]:
    found = []
    for code in classifier.assessed_for(leads):
        column = classifier.labels.index(code)
        rows = mask[:, column] > 0
        if 0 < targets[rows, column].sum() < rows.sum():
            found.append((code, column, rows))
    return found


def calibrate(
    classifier: Classifier,
    records: Sequence[LabelledRecord],
    logits: Mapping[str, Array],
    *,
    name: str,
) -> None:
    """Fit Platt scaling to held-out plain logits, per lead configuration and label, then
    :func:`choose_thresholds`. What the classifier had of either is replaced."""
    targets, mask = label_matrix(records, classifier.labels, classifier.assessed)
    classifier.calibration = Calibration(
        name,
        {
            leads: fit_platt_all(classifier, leads, values, targets, mask)
            for leads, values in logits.items()
        },
    )
    choose_thresholds(classifier, records, logits)


def choose_thresholds(
    classifier: Classifier, records: Sequence[LabelledRecord], logits: Mapping[str, Array]
) -> None:
    """Keep with the classifier each label's threshold of greatest F1 on held-out records.

    Of its probabilities, calibrated if it is calibrated; ``logits`` are plain.
    """
    from scipy.special import expit

    targets, mask = label_matrix(records, classifier.labels, classifier.assessed)
    classifier.thresholds = {}
    for leads, values in logits.items():
        if classifier.calibration is not None:
            slope, offset = classifier.calibration.arrays(leads, classifier.labels)
            values = values * slope + offset
        probabilities = expit(values)
        classifier.thresholds[leads] = {
            code: round(best_threshold(probabilities[rows, column], targets[rows, column]), 4)
            for code, column, rows in _usable(classifier, leads, targets, mask)
        }
