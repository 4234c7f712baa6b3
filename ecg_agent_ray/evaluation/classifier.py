"""How good a classifier is on a labelled data set, asked as the classification tool asks it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray import __version__
from ecg_agent_ray.classifier import Classifier, classifier_metrics
from ecg_agent_ray.classifier.calibration import calibrate
from ecg_agent_ray.classifier.challenge import CLASSES, challenge_score, classes_of_labels
from ecg_agent_ray.classifier.dataset import LabelledRecord, label_matrix
from ecg_agent_ray.classifier.metrics import at_thresholds, bootstrap_intervals, reliability
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import ConfigError, LeadError, RecordingError
from ecg_agent_ray.evaluation.classifier_data import labelled_records, readable
from ecg_agent_ray.evaluation.classifier_plots import plot_classifier

__all__ = ["evaluate_classifier"]

_CHUNK = 64
_EXPERIMENT = "classifier-evaluation"
_HEADLINE = ("macro_auroc", "micro_auroc", "macro_auprc", "micro_auprc", "ece", "bce", "n_records")
Probabilities = npt.NDArray[np.float64]


def evaluate_classifier(
    classifier: Classifier,
    data: str | Path,
    *,
    output: str | Path,
    leads: Sequence[str] | None = None,
    records: Sequence[str] | None = None,
    split: str | None = None,
    resamples: int = 200,
    calibrated: str | Path | None = None,
    track: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score the tool's probabilities (calibrated, mean over windows) against the labels.

    Parameters
    ----------
    data
        A PTB-XL or LUDB tree, PhysioNet/CinC Challenge headers, or a manifest; see
        :mod:`ecg_agent_ray.classifier.dataset`. What the data set has no word for, or the
        classifier was not taught, takes no part.
    output
        Folder that takes ``metrics.json`` and ``plots``.
    leads
        Lead configurations; None takes all that the classifier was made for.
    records
        Only these record ids or file stems, such as a held-out fold.
    split
        Only the data set's own ``valid``, ``test`` or ``train`` split.
    resamples
        Of patients, for the 95 % intervals; 0 leaves them out.
    calibrated
        Folder for a copy of the classifier with Platt scaling and thresholds fitted to these
        records. The metrics are of the classifier as it was.
    track
        Log options and metrics to MLflow.
    progress
        Called with records done and in all.

    Returns
    -------
    dict
        As :func:`~ecg_agent_ray.classifier.metrics.classifier_metrics` with ``intervals``,
        ``reliability``, ``thresholds`` (what each label's threshold gives) and, on data with the
        Challenge's classes, ``challenge``; of the first lead configuration at the top, the others
        under ``configurations``; beside them ``model, lead_configuration, data_kind, failed``.

    Raises
    ------
    ConfigError
        No labelled recordings there, none of them usable, or none with a label it assesses.
    LeadError
        A lead configuration the classifier was not made for.
    ServiceError
        MLflow does not answer.
    """
    configurations = tuple(leads) if leads else classifier.lead_configurations
    for configuration in configurations:
        classifier.assessed_for(configuration)
    kind, every = labelled_records(data, records, split)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "model": classifier.uri,
        "data_kind": kind,
        "split": split,
        "n_listed": len(every),
        "lead_configurations": ", ".join(configurations),
    }
    with _tracked(options, every) if track else nullcontext() as run:
        used, probabilities, failed = _predict(classifier, every, configurations, progress)
        scored = {
            name: _score(classifier, used, values, name, resamples)
            for name, values in probabilities.items()
        }
        first, *others = configurations
        if all(entry["auroc"] is None for entry in scored[first]["per_label"].values()):
            raise ConfigError(
                f"{data} has no label with positives and negatives that {classifier.uri} assesses "
                f"from {first}"
            )
        metrics = {
            "model": classifier.uri,
            "package_version": __version__,
            "data_kind": kind,
            "lead_configuration": first,
            **scored[first],
            "configurations": {name: scored[name] for name in others},
            "failed": failed,
        }
        text = json.dumps(metrics, indent=2, allow_nan=False)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
        plot_classifier(metrics, folder / "plots")
        if calibrated is not None:
            _write_calibrated(classifier, used, probabilities, Path(calibrated), Path(data))
        if run is not None:
            for name, values in scored.items():
                numbers = {key: values[key] for key in _HEADLINE if values[key] is not None}
                if (score := values.get("challenge", {}).get("score")) is not None:
                    numbers["challenge_score"] = score
                run.log_metrics({name: numbers})
            # which recordings failed stays here
            run.log_dict({**metrics, "failed": len(failed)}, "metrics.json")
            run.log_artifacts(folder / "plots", "plots")
    return metrics


def _predict(
    classifier: Classifier,
    records: Sequence[LabelledRecord],
    configurations: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> tuple[list[LabelledRecord], dict[str, Probabilities], list[dict[str, str]]]:
    """Records that every configuration could be asked about, (records, labels) for each, and the
    others with the reason."""
    failed: list[dict[str, str]] = []

    def fail(record: LabelledRecord, error: Exception) -> None:
        failed.append({"record_id": record.record_id, "error": str(error)})

    used: list[LabelledRecord] = []
    rows: dict[str, list[Probabilities]] = {name: [] for name in configurations}
    found = readable(records, fail)
    while chunk := list(islice(found, _CHUNK)):
        for record, values in _of_chunk(classifier, chunk, configurations, fail):
            used.append(record)
            for name in configurations:
                rows[name].append(values[name])
        if progress is not None:
            progress(len(used) + len(failed), len(records))
    if not used:
        raise ConfigError(
            f"none of {len(records)} recordings could be classified, the first: "
            f"{failed[0]['error']}"
        )
    return used, {name: np.stack(values) for name, values in rows.items()}, failed


def _of_chunk(
    classifier: Classifier,
    chunk: Sequence[tuple[LabelledRecord, Recording]],
    configurations: Sequence[str],
    fail: Callable[[LabelledRecord, Exception], None],
) -> Iterator[tuple[LabelledRecord, dict[str, Probabilities]]]:
    """In shared batches; one by one where a recording of the chunk cannot be classified."""
    recordings = [recording for _, recording in chunk]
    try:
        every = {
            name: [values for values, _ in classifier.predict(recordings, leads=name)]
            for name in configurations
        }
    except (LeadError, RecordingError) as error:
        if len(chunk) == 1:
            fail(chunk[0][0], error)
            return
        for item in chunk:
            yield from _of_chunk(classifier, [item], configurations, fail)
        return
    for index, (record, _) in enumerate(chunk):
        yield record, {name: values[index] for name, values in every.items()}


def _score(
    classifier: Classifier,
    records: Sequence[LabelledRecord],
    probabilities: Probabilities,
    leads: str,
    resamples: int,
) -> dict[str, Any]:
    labels = classifier.labels
    targets, mask = label_matrix(records, labels, classifier.assessed_for(leads))
    metrics = classifier_metrics(targets, probabilities, mask, labels)
    metrics["reliability"] = reliability(targets, probabilities, mask)
    thresholds = classifier.thresholds.get(leads) or dict.fromkeys(labels, 0.5)
    metrics["thresholds"] = at_thresholds(targets, probabilities, mask, labels, thresholds)
    if challenge := _challenge(classifier, records, probabilities, leads, resamples):
        metrics["challenge"] = challenge
    if resamples:
        patients = [record.patient_id for record in records]
        metrics["intervals"] = bootstrap_intervals(
            targets, probabilities, mask, labels, patients, repeats=resamples
        )
    return metrics


def _challenge(
    classifier: Classifier,
    records: Sequence[LabelledRecord],
    probabilities: Probabilities,
    leads: str,
    resamples: int,
) -> dict[str, Any] | None:
    """The Challenge's score on the records that were labelled with its classes.

    A class without a label that the classifier assesses counts as never predicted.
    """
    rows = [row for row, record in enumerate(records) if set(CLASSES) <= record.assessed]
    class_of = classes_of_labels(classifier.assessed_for(leads))
    if not rows or not class_of:
        return None
    truth, _ = label_matrix([records[row] for row in rows], CLASSES)
    thresholds = classifier.thresholds.get(leads, {})
    predicted = np.zeros_like(truth)
    for code, name in class_of.items():
        called = probabilities[rows, classifier.labels.index(code)] > thresholds.get(code, 0.5)
        column = CLASSES.index(name)
        predicted[:, column] = np.maximum(predicted[:, column], called)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(rows), size=len(rows)) for _ in range(resamples)]
    scores = [challenge_score(truth[part], predicted[part]) for part in drawn]
    known = [score for score in scores if score is not None]
    return {
        "score": challenge_score(truth, predicted),
        "interval": [float(v) for v in np.percentile(known, [2.5, 97.5])] if known else None,
        "thresholds": "model" if thresholds else 0.5,
        "classes_assessed": len(set(class_of.values())),
        "n_records": len(rows),
    }


def _write_calibrated(
    classifier: Classifier,
    records: Sequence[LabelledRecord],
    probabilities: dict[str, Probabilities],
    folder: Path,
    data: Path,
) -> None:
    from scipy.special import logit

    logits = {}
    for leads, values in probabilities.items():
        plain = logit(np.clip(values, 1e-7, 1 - 1e-7))
        if classifier.calibration is not None:
            slope, offset = classifier.calibration.arrays(leads, classifier.labels)
            plain = (plain - offset) / slope
        logits[leads] = plain
    copy = replace(
        classifier,
        thresholds={},
        lead_configurations=tuple(logits),
        metadata={**classifier.metadata, "calibrated_on": f"{len(records)} records, {data.name}"},
    )
    calibrate(copy, records, logits, name=f"platt-{data.name}")
    copy.save(folder)


def _tracked(options: dict[str, Any], records: Sequence[LabelledRecord]) -> Any:
    from ecg_agent_ray.plugins.tracking import data_digest, tracked_run

    headers = [record.path.with_name(f"{record.path.stem}.hea") for record in records]
    digest = data_digest(header for header in headers if header.is_file())
    return tracked_run(
        "classifier-evaluation",
        params=options,
        tags={"data.digest": digest},
        experiment=_EXPERIMENT,
    )
