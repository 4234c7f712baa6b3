"""How well a multi-label classifier ranks and how honest its probabilities are.

Every function takes targets, scores and a cell mask, (records, labels) each: a cell that was not
assessed takes no part. AUROC is the Mann-Whitney statistic, AUPRC the average precision
(scikit-learn); a label with one class only has neither and is left out of the macro mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["bootstrap_intervals", "classifier_metrics", "expected_calibration_error"]

Array = npt.NDArray[np.floating[Any]]


def classifier_metrics(
    targets: Array, probabilities: Array, mask: Array, labels: Sequence[str]
) -> dict[str, Any]:
    """``macro_auroc, micro_auroc, macro_auprc, micro_auprc, per_label, ece, bce, n_records``.

    ``per_label`` maps a code to ``{auroc, auprc, positives, n}``. A number that cannot be had (no
    positives, no negatives) is None.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    per_label: dict[str, dict[str, Any]] = {}
    for column, code in enumerate(labels):
        rows = mask[:, column] > 0
        truth, score = targets[rows, column], probabilities[rows, column]
        if not len(truth):
            continue
        entry: dict[str, Any] = {"auroc": None, "auprc": None}
        if 0 < truth.sum() < len(truth):
            entry["auroc"] = float(roc_auc_score(truth, score))
            entry["auprc"] = float(average_precision_score(truth, score))
        per_label[code] = {**entry, "positives": int(truth.sum()), "n": len(truth)}
    cells = mask > 0
    truth, score = targets[cells], probabilities[cells]
    both = 0 < truth.sum() < len(truth)
    return {
        "macro_auroc": _mean([entry["auroc"] for entry in per_label.values()]),
        "micro_auroc": float(roc_auc_score(truth, score)) if both else None,
        "macro_auprc": _mean([entry["auprc"] for entry in per_label.values()]),
        "micro_auprc": float(average_precision_score(truth, score)) if both else None,
        "ece": expected_calibration_error(truth, score),
        "bce": _cross_entropy(truth, score),
        "n_records": len(targets),
        "per_label": per_label,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _cross_entropy(truth: Array, score: Array) -> float | None:
    if not len(truth):
        return None
    clipped = np.clip(score, 1e-7, 1 - 1e-7)
    return float(-np.mean(truth * np.log(clipped) + (1 - truth) * np.log(1 - clipped)))


def expected_calibration_error(truth: Array, score: Array, bins: int = 10) -> float | None:
    """Mean gap between stated probability and frequency over equal-width bins, weighted by count
    (Guo et al. 2017, arXiv:1706.04599); None without cells."""
    if not len(truth):
        return None
    index = np.minimum((score * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    gaps = np.abs(
        np.bincount(index, weights=score, minlength=bins)
        - np.bincount(index, weights=truth, minlength=bins)
    )
    return float(gaps.sum() / counts.sum())


def bootstrap_intervals(
    targets: Array,
    probabilities: Array,
    mask: Array,
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    repeats: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, list[float]]:
    """Percentile intervals of ``macro_auroc``, ``micro_auroc`` and ``auroc/CODE``.

    Whole groups (patients) are drawn with replacement, since a patient's records are alike. A value
    that no resample gives has no interval.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    rows_of = {name: np.flatnonzero(np.array(groups) == name) for name in names}
    values: dict[str, list[float]] = {}
    for _ in range(repeats):
        drawn = rng.choice(len(names), len(names))
        rows = np.concatenate([rows_of[names[i]] for i in drawn])
        per_label = []
        for column, code in enumerate(labels):
            chosen = rows[mask[rows, column] > 0]
            auroc = _auroc(targets[chosen, column], probabilities[chosen, column])
            if auroc is not None:
                per_label.append(auroc)
                values.setdefault(f"auroc/{code}", []).append(auroc)
        if per_label:
            values.setdefault("macro_auroc", []).append(float(np.mean(per_label)))
        cells = mask[rows] > 0
        micro = _auroc(targets[rows][cells], probabilities[rows][cells])
        if micro is not None:
            values.setdefault("micro_auroc", []).append(micro)
    tail = 50 * (1 - level)
    return {
        name: [float(v) for v in np.percentile(found, [tail, 100 - tail])]
        for name, found in values.items()
    }


def _auroc(truth: Array, score: Array) -> float | None:
    """By ranks, ties shared; quicker than scikit-learn's where it is called ten thousand times."""
    from scipy.stats import rankdata

    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    ranks = rankdata(score)
    return float(
        (ranks[truth > 0].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    )
