"""The Challenge's score against its definition, record by record, and its classes."""

from __future__ import annotations

import csv
from importlib import resources

import numpy as np
import pytest

from ecg_agent_ray.classifier.challenge import (
    CLASSES,
    SINUS_RHYTHM,
    challenge_classes,
    challenge_score,
    classes_of_labels,
)
from ecg_agent_ray.classifier.labels import LABELS


def weights() -> np.ndarray:
    text = resources.files("ecg_agent_ray").joinpath("_data/challenge2021/weights.csv").read_text()
    return np.array([row[1:] for row in list(csv.reader(text.splitlines()))[1:]], dtype=float)


def by_definition(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Reyna et al. 2021: loops over records and pairs of classes."""

    def credit(answer: np.ndarray) -> float:
        total = 0.0
        for row, said in zip(truth, answer, strict=True):
            size = max(1, np.count_nonzero(row + said))
            total += sum(
                weights()[i, j] / size for i in np.flatnonzero(row) for j in np.flatnonzero(said)
            )
        return total

    sinus = np.zeros_like(truth)
    sinus[:, CLASSES.index(SINUS_RHYTHM)] = 1
    inactive = credit(sinus)
    return (credit(predicted) - inactive) / (credit(truth) - inactive)


def test_score_is_the_definition() -> None:
    rng = np.random.default_rng(1)
    truth = (rng.random((30, 26)) < 0.1).astype(np.float32)
    predicted = (rng.random((30, 26)) < 0.1).astype(np.float32)
    assert challenge_score(truth, predicted) == pytest.approx(by_definition(truth, predicted))
    assert challenge_score(truth, truth) == pytest.approx(1)
    sinus = np.zeros_like(truth)
    sinus[:, CLASSES.index(SINUS_RHYTHM)] = 1
    assert challenge_score(truth, sinus) == pytest.approx(0)
    assert challenge_score(sinus, predicted) is None


def test_confusing_like_diagnoses_costs_less() -> None:
    truth = np.zeros((1, 26))
    truth[0, CLASSES.index("427172004|17338001")] = 1  # ventricular premature beats

    def score(name: str) -> float:
        predicted = np.zeros((1, 26))
        predicted[0, CLASSES.index(name)] = 1
        value = challenge_score(truth, predicted)
        assert value is not None
        return value

    assert 1 > score("427084000") > score(SINUS_RHYTHM) > score("164917005")


def test_weights_are_symmetric_and_a_class_earns_most_by_itself() -> None:
    assert weights().shape == (26, 26)
    assert (weights() == weights().T).all()
    assert (weights().diagonal() == 1).all()
    assert weights().max() == 1


def test_codes_scored_as_one_are_one_class() -> None:
    assert challenge_classes(["59118001", "713427006", "1"]) == {"713427006|59118001"}
    assert classes_of_labels(["CRBBB", "NORM", "59118001"]) == {
        "CRBBB": "713427006|59118001",
        "59118001": "713427006|59118001",
    }
    assert len(set(classes_of_labels(LABELS).values())) == 21
