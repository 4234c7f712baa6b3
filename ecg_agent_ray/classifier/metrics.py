"""How well a multi-label classifier ranks and how honest its probabilities are.

Every function takes targets, scores and a cell mask, (records, labels) each: a cell that was not
assessed takes no part. AUROC is the Mann-Whitney statistic, AUPRC the average precision
(scikit-learn); a label with one class only has neither and is left out of the macro mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "at_thresholds",
    "bootstrap_intervals",
    "classifier_metrics",
    "expected_calibration_error",
    "reliability",
]

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
    counts, stated, observed = _binned(truth, score, bins)
    return float(np.abs(stated - observed).sum() / counts.sum())


def _binned(truth: Array, score: Array, bins: int) -> tuple[Array, Array, Array]:
    """Of each equal-width bin: cells, sum of their probabilities, positives."""
    index = np.minimum((score * bins).astype(int), bins - 1)
    counts, stated, observed = (
        np.bincount(index, weights=weights, minlength=bins).astype(np.float64)
        for weights in (None, score, truth)
    )
    return counts, stated, observed


def reliability(
    targets: Array, probabilities: Array, mask: Array, bins: int = 10
) -> list[dict[str, float]]:
    """What was stated and what was so: per bin that holds cells ``count, stated`` (mean
    probability), ``observed`` (share of positives), and its ``low`` and ``high`` edge."""
    cells = mask > 0
    counts, stated, observed = _binned(targets[cells], probabilities[cells], bins)
    return [
        {
            "low": index / bins,
            "high": (index + 1) / bins,
            "count": int(counts[index]),
            "stated": float(stated[index] / counts[index]),
            "observed": float(observed[index] / counts[index]),
        }
        for index in np.flatnonzero(counts)
    ]


def at_thresholds(
    targets: Array,
    probabilities: Array,
    mask: Array,
    labels: Sequence[str],
    thresholds: Mapping[str, float],
) -> dict[str, dict[str, float | None]]:
    """``threshold, sensitivity, ppv, f1`` of each assessed label that has a threshold; a label is
    positive strictly above it. None where nothing is to be divided by."""
    result: dict[str, dict[str, float | None]] = {}
    for column, code in enumerate(labels):
        rows = mask[:, column] > 0
        if code not in thresholds or not rows.any():
            continue
        truth, chosen = targets[rows, column] > 0, probabilities[rows, column] > thresholds[code]
        hits, true, called = int((truth & chosen).sum()), int(truth.sum()), int(chosen.sum())
        result[code] = {
            "threshold": thresholds[code],
            "sensitivity": hits / true if true else None,
            "ppv": hits / called if called else None,
            "f1": 2 * hits / (true + called) if true + called else None,
        }
    return result


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
    """Percentile intervals of ``macro_`` and ``micro_auroc`` and ``_auprc``, ``ece``,
    ``auroc/CODE`` and ``auprc/CODE``.

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
        for name, value in _areas(targets[rows], probabilities[rows], mask[rows] > 0, labels):
            values.setdefault(name, []).append(value)
    tail = 50 * (1 - level)
    return {
        name: [float(v) for v in np.percentile(found, [tail, 100 - tail])]
        for name, found in values.items()
    }


def _areas(
    targets: Array, scores: Array, cells: npt.NDArray[np.bool_], labels: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Everything :func:`bootstrap_intervals` gives an interval for, of one resample."""
    by_label = []
    for column, code in enumerate(labels):
        chosen = cells[:, column]
        found = _auroc_auprc(targets[chosen, column], scores[chosen, column])
        if found is not None:
            by_label.append(found)
            yield f"auroc/{code}", found[0]
            yield f"auprc/{code}", found[1]
    if by_label:
        macro = np.mean(by_label, axis=0)
        yield "macro_auroc", float(macro[0])
        yield "macro_auprc", float(macro[1])
    micro = _auroc_auprc(targets[cells], scores[cells])
    if micro is not None:
        yield "micro_auroc", micro[0]
        yield "micro_auprc", micro[1]
    error = expected_calibration_error(targets[cells], scores[cells])
    if error is not None:
        yield "ece", error


def _auroc_auprc(truth: Array, score: Array) -> tuple[float, float] | None:
    """Both from one sort, ties shared as scikit-learn does, for where it is called ten thousand
    times; None with one class only."""
    positives = float(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    hits = np.cumsum(truth[order], dtype=np.float64)[last]
    called = last + 1.0
    false_alarms = called - hits
    new_hits, new_false = np.diff(hits, prepend=0), np.diff(false_alarms, prepend=0)
    # a false alarm is outranked by the positives before it, and by half of those tied with it
    auroc = float((new_false * (hits - new_hits / 2)).sum() / (positives * negatives))
    return auroc, float((new_hits * hits / called).sum() / positives)
