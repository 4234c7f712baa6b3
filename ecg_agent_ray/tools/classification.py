"""The classification tool: which of the classifier's statements a recording shows.

    result = classify(ecg.read("00003_hr.hea"))
    result.positive          # ('SR', 'NORM')
    result.to_dialogue()     # ['SR (98.23%)', 'NORM (86.88%)']

A label the classifier was never taught, or that the leads cannot show, has no probability (None)
and is listed in ``not_assessed``: silence about it is not a negative finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ecg_agent_ray.errors import ConfigError

if TYPE_CHECKING:
    from ecg_agent_ray.classifier.bundle import Classifier
    from ecg_agent_ray.ecg import Recording

__all__ = ["Classification", "Threshold", "classify", "classify_many", "resolve_classifier"]

Threshold = float | Literal["model"]
_DIGITS = 4


@dataclass(frozen=True)
class Classification:
    """Output of the classification tool.

    Attributes
    ----------
    labels : probability (0 to 1, four decimals) per label code in model order; None: not assessed
    positive : codes strictly above the threshold, most probable first
    not_assessed : codes without a probability
    model : the classifier's URI
    calibration : name of the calibration the probabilities went through; ``none``: plain sigmoid
    notes : what was done to the recording and what that means for the result
    """

    record_id: str
    lead_configuration: str
    model: str
    calibration: str
    labels: Mapping[str, float | None]
    positive: tuple[str, ...]
    not_assessed: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The command line's JSON."""
        return {
            "record_id": self.record_id,
            "lead_configuration": self.lead_configuration,
            "model": self.model,
            "calibration": self.calibration,
            "labels": dict(self.labels),
            "positive": list(self.positive),
            "not_assessed": list(self.not_assessed),
            "notes": list(self.notes),
        }

    def to_dialogue(self) -> list[str]:
        """``["SR (98.23%)", …]``, most probable first; empty if nothing is positive."""
        return [f"{code} ({self.labels[code]:.2%})" for code in self.positive]

    def top_classes(self) -> str:
        """The CSV's ``top_classes``: joined by comma and space, ``None > 50%`` if none."""
        return ", ".join(self.to_dialogue()) or "None > 50%"


def classify(
    recording: Recording,
    model: Classifier | str | Path | None = None,
    threshold: Threshold = 0.5,
    leads: str = "12-lead",
) -> Classification:
    """Classify one recording.

    Parameters
    ----------
    recording
        Any length from 1 s, any rate, any leads that include one of the configuration's.
    model
        A loaded classifier, ``builtin:``, a classifier folder or a fairseq-signals checkpoint;
        None is ``builtin:``.
    threshold
        A label is positive strictly above it (0 to 1); ``model`` takes the thresholds kept with the
        classifier (best F1 in its validation).
    leads
        Lead configuration: ``12-lead``, ``I`` or ``II``; other leads are not looked at.

    Raises
    ------
    ConfigError
        A threshold outside 0 to 1, or ``model`` where the classifier keeps none.
    LeadError, RecordingError
        The recording lacks the leads, or is too short.
    ModelNotFoundError, CheckpointError, UnsafeCheckpointError
        The model cannot be had.
    """
    return next(classify_many([recording], model, threshold, leads))


def classify_many(
    recordings: Iterable[Recording],
    model: Classifier | str | Path | None = None,
    threshold: Threshold = 0.5,
    leads: str = "12-lead",
) -> Iterator[Classification]:
    """As :func:`classify` for several recordings, sharing batches; results in their order."""
    classifier = resolve_classifier(model)
    thresholds = _thresholds(classifier, threshold, leads)
    assessed = set(classifier.assessed_for(leads))
    names: list[str] = []

    def named() -> Iterator[Recording]:
        for recording in recordings:
            names.append(recording.record_id)
            yield recording

    for index, (probabilities, prepared) in enumerate(classifier.predict(named(), leads=leads)):
        values = {
            code: round(float(p), _DIGITS) if code in assessed else None
            for code, p in zip(classifier.labels, probabilities, strict=True)
        }
        positive = [
            code for code, p in values.items() if p is not None and p > thresholds.get(code, 0.5)
        ]
        positive.sort(key=lambda code: -(values[code] or 0.0))
        yield Classification(
            record_id=names[index],
            lead_configuration=leads,
            model=classifier.uri,
            calibration=classifier.calibration.name if classifier.calibration else "none",
            labels=values,
            positive=tuple(positive),
            not_assessed=tuple(code for code, p in values.items() if p is None),
            notes=prepared.notes,
        )


def _thresholds(classifier: Classifier, threshold: Threshold, leads: str) -> Mapping[str, float]:
    if threshold == "model":
        kept = classifier.thresholds.get(leads)
        if not kept:
            raise ConfigError(
                f"{classifier.uri} keeps no thresholds for {leads}",
                hint="give a number, such as 0.5",
            )
        return kept
    if isinstance(threshold, str) or not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"threshold {threshold!r} is neither in 0 to 1 nor 'model'")
    return dict.fromkeys(classifier.labels, float(threshold))


def resolve_classifier(model: Classifier | str | Path | None) -> Classifier:
    """The classifier meant by a tool's ``model`` argument; ``builtin:`` is loaded once a process.

    Raises
    ------
    ModelNotFoundError, CheckpointError, UnsafeCheckpointError
        As :func:`ecg_agent_ray.classifier.load_classifier`.
    """
    from ecg_agent_ray.classifier.bundle import BUILTIN, Classifier, load_classifier

    if isinstance(model, Classifier):
        return model
    if model is None or str(model) == BUILTIN:
        return _builtin()
    return load_classifier(model)


@lru_cache(maxsize=1)
def _builtin() -> Classifier:
    from ecg_agent_ray.classifier.bundle import load_classifier

    return load_classifier()
