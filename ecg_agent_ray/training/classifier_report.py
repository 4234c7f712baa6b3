"""From held-out logits to calibration, ``metrics.json`` and the model card of a classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.classifier.bundle import Calibration, Classifier
from ecg_agent_ray.classifier.dataset import LabelledRecord, label_matrix
from ecg_agent_ray.classifier.labels import LABEL_INFO
from ecg_agent_ray.classifier.metrics import bootstrap_intervals, classifier_metrics
from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig

__all__ = [
    "best_threshold",
    "calibrate",
    "drop_unlearned",
    "evaluate_logits",
    "fit_platt",
    "write_report",
]

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


def calibrate(
    classifier: Classifier,
    records: Sequence[LabelledRecord],
    logits: Mapping[str, Array],
    *,
    name: str,
) -> None:
    """Fit Platt scaling and F1 thresholds to held-out logits, per lead configuration and label."""
    targets, mask = label_matrix(records, classifier.labels, classifier.assessed)
    parameters: dict[str, dict[str, tuple[float, float]]] = {}
    for leads, values in logits.items():
        fitted = _fit_all(classifier, leads, values, targets, mask)
        parameters[leads] = fitted
        thresholds = classifier.thresholds.setdefault(leads, {})
        for code, (slope, offset) in fitted.items():
            column = classifier.labels.index(code)
            rows = mask[:, column] > 0
            probabilities = _sigmoid(values[rows, column] * slope + offset)
            thresholds[code] = round(best_threshold(probabilities, targets[rows, column]), 4)
    classifier.calibration = Calibration(name, parameters)


def _fit_all(
    classifier: Classifier, leads: str, values: Array, targets: Any, mask: Any
) -> dict[str, tuple[float, float]]:
    fitted = {}
    for code in classifier.assessed_for(leads):
        column = classifier.labels.index(code)
        rows = mask[:, column] > 0
        truth = targets[rows, column]
        if 0 < truth.sum() < len(truth):
            slope, offset = fit_platt(values[rows, column], truth)
            fitted[code] = (round(slope, 4), round(offset, 4))
    return fitted


def evaluate_logits(
    classifier: Classifier,
    records: Sequence[LabelledRecord],
    logits: Mapping[str, Array],
    *,
    fold_of: Sequence[int] | None = None,
) -> dict[str, Any]:
    """``metrics.json`` of held-out logits: first configuration at the top, the others below it.

    With ``fold_of`` (cross-validation) each fold is calibrated by the other folds, so that ``ece``
    and ``bce`` are honest, and bootstrap intervals over patients are added. AUROC is of the plain
    logits there. Without it the classifier's own calibration applies.
    """
    if not records:
        return {"n_records": 0}
    per_configuration = {}
    for leads, values in logits.items():
        assessed = classifier.assessed_for(leads)
        targets, mask = label_matrix(records, classifier.labels, assessed)
        per_configuration[leads] = _evaluate_one(
            classifier, leads, values, targets, mask, records, fold_of
        )
    first, *others = per_configuration
    return {
        "lead_configuration": first,
        **per_configuration[first],
        "configurations": {leads: per_configuration[leads] for leads in others},
    }


def _evaluate_one(
    classifier: Classifier,
    leads: str,
    values: Array,
    targets: Any,
    mask: Any,
    records: Sequence[LabelledRecord],
    fold_of: Sequence[int] | None,
) -> dict[str, Any]:
    labels = classifier.labels
    if fold_of is None:
        if classifier.calibration is not None:
            slope, offset = classifier.calibration.arrays(leads, labels)
            values = values * slope + offset
        return classifier_metrics(targets, _sigmoid(values), mask, labels)
    plain = _sigmoid(values)
    metrics = classifier_metrics(targets, plain, mask, labels)
    if classifier.calibration is not None:
        folds = np.array(fold_of)
        scaled = values.copy()
        for fold in np.unique(folds):
            inside, outside = folds == fold, folds != fold
            fitted = _fit_all(classifier, leads, values[outside], targets[outside], mask[outside])
            slope, offset = Calibration("", {leads: fitted}).arrays(leads, labels)
            scaled[inside] = values[inside] * slope + offset
        calibrated = classifier_metrics(targets, _sigmoid(scaled), mask, labels)
        metrics["ece_uncalibrated"], metrics["bce_uncalibrated"] = metrics["ece"], metrics["bce"]
        metrics["ece"], metrics["bce"] = calibrated["ece"], calibrated["bce"]
    patients = [record.patient_id for record in records]
    metrics["intervals"] = bootstrap_intervals(targets, plain, mask, labels, patients)
    return metrics


def _sigmoid(x: Array) -> Array:
    from scipy.special import expit

    result: Array = expit(x)
    return result


def drop_unlearned(classifier: Classifier, metrics: Mapping[str, Any]) -> None:
    """Take back the labels that held-out records do not show to have been learned.

    A label stays if the 95 % interval of its AUROC, in the first configuration, is above chance.
    Its metrics stay in ``metrics.json`` either way.
    """
    intervals = metrics["intervals"]
    unlearned = [
        code for code in classifier.assessed if intervals.get(f"auroc/{code}", (0.0, 0.0))[0] <= 0.5
    ]
    classifier.assessed = tuple(c for c in classifier.assessed if c not in unlearned)
    classifier.metadata = {**classifier.metadata, "taught_but_not_learned": unlearned}


def write_report(
    classifier: Classifier,
    folder: Path,
    config: ClassifierFinetuneConfig,
    metrics: dict[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Save the classifier with its card, ``metrics.json`` and ``history.json``."""
    headline = {
        name: metrics[name]
        for name in ("macro_auroc", "micro_auroc", "macro_auprc", "ece", "bce", "n_records")
        if metrics.get(name) is not None
    }
    classifier.metadata = {**classifier.metadata, "metrics": headline}
    classifier.card = _card(classifier, config, metrics)
    classifier.save(folder)
    for name, value in (("metrics.json", metrics), ("history.json", list(history))):
        (folder / name).write_text(json.dumps(value, indent=1, default=float) + "\n", "utf-8")


def _card(
    classifier: Classifier, config: ClassifierFinetuneConfig, metrics: Mapping[str, Any]
) -> str:
    meta = classifier.metadata
    introduction = "# ECG classifier\n"
    if config.card:
        introduction = Path(config.card).read_text(encoding="utf-8").rstrip() + "\n"
    parameters = sum(p.numel() for p in classifier.network.parameters())
    unlearned = meta.get("taught_but_not_learned")
    folds = config.cross_validation_folds
    how = f"{folds}-fold cross-validation grouped by patient" if folds else "held-out patients"
    lines = [
        introduction,
        "## Facts\n",
        f"- Network: {classifier.network.architecture}, {parameters:,} parameters; started from "
        f"{meta.get('base')}",
        f"- Data: {meta.get('records')} records from "
        + ", ".join(f"{source.kind}" for source in config.data),
        f"- Lead configurations: {', '.join(classifier.lead_configurations)}",
        f"- Labels it can say anything about: {len(classifier.assessed)} of "
        f"{len(classifier.labels)}; the others are reported as not assessed",
        f"- Too few positives (below {config.min_positives}) for the rest"
        + (f"; taught but not learned: {', '.join(unlearned)}" if unlearned else ""),
        "- Calibration: "
        + (classifier.calibration.name if classifier.calibration else "none (plain sigmoid)"),
        f"- Training: {config.epochs} epochs, batch {config.batch_size}, peak learning rate "
        f"{config.optimizer.lr:g}, seed {config.seed}",
        f"\n## Metrics ({how}, {metrics.get('n_records', 0)} records)\n",
    ]
    if metrics.get("per_label"):
        lines += _metric_tables(classifier, metrics)
    return "\n".join(lines) + "\n"


def _metric_tables(classifier: Classifier, metrics: Mapping[str, Any]) -> list[str]:
    configurations = {metrics["lead_configuration"]: metrics, **metrics["configurations"]}
    lines = ["| leads | macro AUROC | micro AUROC | macro AUPRC | ECE |", "|---|---|---|---|---|"]
    for leads, values in configurations.items():
        cells = [
            _number(values.get(name), values.get("intervals", {}).get(name))
            for name in ("macro_auroc", "micro_auroc", "macro_auprc", "ece")
        ]
        lines.append(f"| {leads} | {' | '.join(cells)} |")
    lines += [
        f"\nPer label ({metrics['lead_configuration']}; 95 % intervals by bootstrap over patients "
        "where given):\n",
        "| label | meaning | positives | AUROC | AUPRC |",
        "|---|---|---|---|---|",
    ]
    for code, values in metrics["per_label"].items():
        interval = metrics.get("intervals", {}).get(f"auroc/{code}")
        name = LABEL_INFO[code].name if code in LABEL_INFO else ""
        lines.append(
            f"| {code} | {name} | {values['positives']} of {values['n']} | "
            f"{_number(values['auroc'], interval)} | {_number(values['auprc'])} |"
        )
    return lines


def _number(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "–"
    text = f"{value:.3f}"
    return f"{text} ({interval[0]:.3f}–{interval[1]:.3f})" if interval else text
