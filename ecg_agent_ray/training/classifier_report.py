"""From held-out logits to calibration, ``metrics.json`` and the model card of a classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.classifier.bundle import Calibration, Classifier
from ecg_agent_ray.classifier.calibration import fit_platt_all
from ecg_agent_ray.classifier.dataset import LabelledRecord, label_matrix
from ecg_agent_ray.classifier.labels import LABEL_INFO
from ecg_agent_ray.classifier.metrics import (
    bootstrap_intervals,
    classifier_metrics,
    reliability,
)
from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig

__all__ = ["drop_unlearned", "evaluate_logits", "write_report"]

Array = npt.NDArray[np.float64]


def evaluate_logits(
    classifier: Classifier,
    records: Sequence[LabelledRecord],
    logits: Mapping[str, Array],
    *,
    fold_of: Sequence[int] | None = None,
) -> dict[str, Any]:
    """``metrics.json`` of held-out logits: first configuration at the top, the others below it.

    With ``fold_of`` each fold is calibrated by the other folds, so that ``ece``, ``bce`` and
    ``reliability`` are honest; AUROC is of the plain logits there. Without it the classifier's own
    calibration applies, which must then be from other records. ``intervals`` are by bootstrap over
    patients.
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
    from scipy.special import expit

    labels = classifier.labels
    ranked = values
    if fold_of is None:
        if classifier.calibration is not None:
            slope, offset = classifier.calibration.arrays(leads, labels)
            ranked = values * slope + offset
        stated = ranked
    else:
        stated = _calibrated_by_others(classifier, leads, values, targets, mask, fold_of)
    metrics = classifier_metrics(targets, expit(ranked), mask, labels)
    if stated is not ranked:
        calibrated = classifier_metrics(targets, expit(stated), mask, labels)
        metrics["ece_uncalibrated"], metrics["bce_uncalibrated"] = metrics["ece"], metrics["bce"]
        metrics["ece"], metrics["bce"] = calibrated["ece"], calibrated["bce"]
    metrics["reliability"] = reliability(targets, expit(stated), mask)
    patients = [record.patient_id for record in records]
    metrics["intervals"] = bootstrap_intervals(targets, expit(ranked), mask, labels, patients)
    # of the plain or own probabilities; the calibrated ones' is not had without fitting each draw
    if stated is not ranked:
        metrics["intervals"].pop("ece", None)
    return metrics


def _calibrated_by_others(
    classifier: Classifier,
    leads: str,
    values: Array,
    targets: Any,
    mask: Any,
    fold_of: Sequence[int],
) -> Array:
    """Logits of each fold scaled by what the other folds fit."""
    folds = np.array(fold_of)
    scaled = values.copy()
    for fold in np.unique(folds):
        inside, outside = folds == fold, folds != fold
        fitted = fit_platt_all(classifier, leads, values[outside], targets[outside], mask[outside])
        slope, offset = Calibration("", {leads: fitted}).arrays(leads, classifier.labels)
        scaled[inside] = values[inside] * slope + offset
    return scaled


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
