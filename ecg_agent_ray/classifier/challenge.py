"""The PhysioNet/CinC Challenge 2021: its 26 scored classes, and its metric.

A wrong diagnosis earns a part of the right one's credit where both call for like treatment or are
as easily confused (Reyna et al. 2021, doi:10.23919/CinC53138.2021.9662687). 1 is a perfect answer,
0 the answer "sinus rhythm" to every recording; below 0 is worse than that.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CLASSES", "SINUS_RHYTHM", "challenge_classes", "challenge_score", "classes_of_labels"]

CLASSES = (
    "164889003",
    "164890007",
    "6374002",
    "426627000",
    "733534002|164909002",
    "713427006|59118001",
    "270492004",
    "713426002",
    "39732003",
    "445118002",
    "164947007",
    "251146004",
    "111975006",
    "698252002",
    "426783006",
    "284470004|63593006",
    "10370003",
    "365413008",
    "427172004|17338001",
    "164917005",
    "47665007",
    "427393009",
    "426177001",
    "427084000",
    "164934002",
    "59931005",
)
"""SNOMED CT codes in the order of the Challenge's ``weights.csv``; codes joined by ``|`` are scored
as one."""
SINUS_RHYTHM = "426783006"

_CLASS_OF_CODE = {code: name for name in CLASSES for code in name.split("|")}

# PTB-XL's statements with the meaning of a class. Axis deviation, bradycardia and bundle branch
# block without further word, and poor R wave progression are no statements of PTB-XL.
_CLASS_OF_STATEMENT = {
    "1AVB": "270492004",
    "AFIB": "164889003",
    "AFLT": "164890007",
    "CLBBB": "733534002|164909002",
    "CRBBB": "713427006|59118001",
    "INVT": "59931005",
    "IRBBB": "713426002",
    "IVCD": "698252002",
    "LAFB": "445118002",
    "LNGQT": "111975006",
    "LPR": "164947007",
    "LVOLT": "251146004",
    "PAC": "284470004|63593006",
    "PACE": "10370003",
    "PVC": "427172004|17338001",
    "QWAVE": "164917005",
    "SARRH": "427393009",
    "SBRAD": "426177001",
    "SR": SINUS_RHYTHM,
    "STACH": "427084000",
    "TAB_": "164934002",
}

Array = npt.NDArray[np.floating[Any]]


def challenge_classes(codes: Iterable[str]) -> frozenset[str]:
    """The scored classes among SNOMED CT codes."""
    return frozenset(_CLASS_OF_CODE[code] for code in codes if code in _CLASS_OF_CODE)


def classes_of_labels(labels: Sequence[str]) -> Mapping[str, str]:
    """Class of each label that has one: the label is a class or one of its codes, or a statement of
    PTB-XL with its meaning."""
    known = {name: name for name in CLASSES} | _CLASS_OF_CODE | _CLASS_OF_STATEMENT
    return {code: known[code] for code in labels if code in known}


@lru_cache(maxsize=1)
def _weights() -> npt.NDArray[np.float64]:
    """(26, 26): credit for predicting the column's class where the row's is true."""
    source = resources.files("ecg_agent_ray").joinpath("_data/challenge2021/weights.csv")
    header, *rows = csv.reader(source.read_text(encoding="utf-8").splitlines())
    if tuple(header[1:]) != CLASSES or tuple(row[0] for row in rows) != CLASSES:
        raise AssertionError("weights.csv is not in the order of CLASSES")
    return np.array([row[1:] for row in rows], dtype=np.float64)


def challenge_score(truth: Array, predicted: Array) -> float | None:
    """The Challenge's normalised score of (records, 26) 0/1 matrices in the order of `CLASSES`.

    Each record spreads a credit of 1 over its pairs of a true and a predicted class, divided by the
    number of classes true or predicted. None where the right answer is "sinus rhythm" throughout,
    so that there is nothing to normalise by.
    """
    sinus = np.zeros_like(truth)
    sinus[:, CLASSES.index(SINUS_RHYTHM)] = 1
    observed, correct, inactive = (_credit(truth, answer) for answer in (predicted, truth, sinus))
    return (observed - inactive) / (correct - inactive) if correct != inactive else None


def _credit(truth: Array, answer: Array) -> float:
    divisor = np.maximum(((truth > 0) | (answer > 0)).sum(axis=1, keepdims=True), 1)
    confusion = (truth / divisor).T @ answer
    return float((_weights() * confusion).sum())
