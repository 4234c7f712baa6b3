"""The ECG classifier: network, checkpoints, labels, calibration, metrics. torch, no Ray.

>>> from ecg_agent_ray.classifier import load_classifier
>>> classifier = load_classifier("builtin:")

torch is imported at the first use of a name, not with the package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecg_agent_ray.classifier.beat_rhythm import BeatRhythmClassifier, BeatRhythmConfig
    from ecg_agent_ray.classifier.bundle import (
        BUILTIN,
        Calibration,
        Classifier,
        load_classifier,
    )
    from ecg_agent_ray.classifier.checkpoint import load_checkpoint
    from ecg_agent_ray.classifier.checkpoint_export import export_checkpoint
    from ecg_agent_ray.classifier.labels import (
        LABEL_INFO,
        LABELS,
        LEAD_CONFIGURATIONS,
        configuration_labels,
        read_labels,
    )
    from ecg_agent_ray.classifier.metrics import classifier_metrics
    from ecg_agent_ray.classifier.model import (
        ClassifierOutput,
        ECGTransformerClassifier,
        ECGTransformerConfig,
    )
    from ecg_agent_ray.classifier.preprocessing import prepare
    from ecg_agent_ray.classifier.xresnet1d import XResNet1d, XResNet1dConfig

_HOME = {
    "BUILTIN": "bundle",
    "BeatRhythmClassifier": "beat_rhythm",
    "BeatRhythmConfig": "beat_rhythm",
    "Calibration": "bundle",
    "Classifier": "bundle",
    "ClassifierOutput": "model",
    "ECGTransformerClassifier": "model",
    "ECGTransformerConfig": "model",
    "LABELS": "labels",
    "LABEL_INFO": "labels",
    "LEAD_CONFIGURATIONS": "labels",
    "XResNet1d": "xresnet1d",
    "XResNet1dConfig": "xresnet1d",
    "classifier_metrics": "metrics",
    "configuration_labels": "labels",
    "export_checkpoint": "checkpoint_export",
    "load_checkpoint": "checkpoint",
    "load_classifier": "bundle",
    "prepare": "preprocessing",
    "read_labels": "labels",
}

__all__ = [
    "BUILTIN",
    "LABELS",
    "LABEL_INFO",
    "LEAD_CONFIGURATIONS",
    "BeatRhythmClassifier",
    "BeatRhythmConfig",
    "Calibration",
    "Classifier",
    "ClassifierOutput",
    "ECGTransformerClassifier",
    "ECGTransformerConfig",
    "XResNet1d",
    "XResNet1dConfig",
    "classifier_metrics",
    "configuration_labels",
    "export_checkpoint",
    "load_checkpoint",
    "load_classifier",
    "prepare",
    "read_labels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
