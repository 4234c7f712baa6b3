"""A classifier ready for use: network, labels, what it was taught, calibration; and its directory.

A classifier directory is ``model.safetensors`` + ``config.json`` + ``README.md``. A fairseq-signals
checkpoint is read too; it has no calibration, so that its probabilities are the plain sigmoid.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.classifier.labels import (
    LABELS,
    LEAD_CONFIGURATIONS,
    configuration_labels,
)
from ecg_agent_ray.classifier.preprocessing import PreparedInput, prepare
from ecg_agent_ray.errors import CheckpointError, ConfigError, LeadError, ModelNotFoundError
from ecg_agent_ray.plugins.fetch import fetched

if TYPE_CHECKING:
    import torch

    from ecg_agent_ray.classifier.model import ClassifierOutput
    from ecg_agent_ray.ecg import Recording

__all__ = [
    "BUILTIN",
    "Calibration",
    "Classifier",
    "build_network",
    "load_classifier",
]

BUILTIN = "builtin:"
_FORMAT_VERSION = 1
_BATCH = 32


class Network(Protocol):
    """What a classifier module has: a frozen ``config``, its ``architecture`` name, the forward."""

    architecture: str
    config: Any

    def __call__(
        self, source: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> ClassifierOutput: ...


@dataclass(frozen=True)
class Calibration:
    """Platt scaling (Platt 1999): probability = sigmoid(slope * logit + offset), label by label.

    ``parameters`` maps a lead configuration to ``{code: (slope, offset)}``; a label without an
    entry keeps its plain sigmoid.
    """

    name: str
    parameters: Mapping[str, Mapping[str, tuple[float, float]]]

    def arrays(
        self, configuration: str, labels: Sequence[str]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Slopes and offsets in the order of ``labels``."""
        values = self.parameters.get(configuration, {})
        pairs = np.array([values.get(code, (1.0, 0.0)) for code in labels], dtype=np.float64)
        return pairs[:, 0], pairs[:, 1]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "parameters": {
                leads: {code: list(pair) for code, pair in values.items()}
                for leads, values in self.parameters.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        return cls(
            str(values["name"]),
            {
                leads: {code: (float(a), float(b)) for code, (a, b) in pairs.items()}
                for leads, pairs in values["parameters"].items()
            },
        )


@dataclass
class Classifier:
    """A network and all that is needed to read its outputs.

    Attributes
    ----------
    network : a classifier module; the classifier keeps it in evaluation mode
    labels : codes in output order
    assessed : those it was taught; the others never get a probability
    lead_configurations : for which it may be asked
    calibration : or None for the plain sigmoid
    thresholds : per configuration and label, for ``threshold="model"``; may be empty
    uri : where it was loaded from, as reported with every result
    metadata : free information kept in ``config.json`` (data, metrics, versions)
    card : text of ``README.md``
    """

    network: Any
    labels: tuple[str, ...] = LABELS
    assessed: tuple[str, ...] = LABELS
    lead_configurations: tuple[str, ...] = LEAD_CONFIGURATIONS
    calibration: Calibration | None = None
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    uri: str = "memory:"
    metadata: dict[str, Any] = field(default_factory=dict)
    card: str = ""

    def __post_init__(self) -> None:
        if len(self.labels) != self.network.config.num_labels:
            raise ConfigError(
                f"{len(self.labels)} labels for a network of "
                f"{self.network.config.num_labels} outputs",
                hint="give the label codes in the order of the network's outputs",
            )
        self.network.eval()

    @property
    def device(self) -> torch.device:
        return next(iter(self.network.parameters())).device

    def to(self, device: str | torch.device) -> Classifier:
        """Move the network; returns self."""
        self.network.to(device)
        return self

    def assessed_for(self, leads: str) -> tuple[str, ...]:
        """Labels this classifier can say anything about from these leads, in output order.

        Raises
        ------
        LeadError
            The configuration is unknown or not one the classifier was made for.
        """
        detectable = set(configuration_labels(leads, self.labels))
        if leads not in self.lead_configurations:
            raise LeadError(
                f"{self.uri} was not made for lead configuration {leads}",
                hint=f"it knows {', '.join(self.lead_configurations)}",
            )
        taught = set(self.assessed)
        return tuple(code for code in self.labels if code in taught and code in detectable)

    def logits(
        self, windows: npt.NDArray[np.float32], padding_mask: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.float64]:
        """(n, 12, samples) mV at 500 Hz -> (n, labels), in batches, on the network's device."""
        import torch

        result = []
        with torch.inference_mode():
            for start in range(0, len(windows), _BATCH):
                part = slice(start, start + _BATCH)
                # a copy, since a recording's arrays are read-only
                source = torch.tensor(windows[part], dtype=torch.float32, device=self.device)
                mask = None
                if padding_mask is not None:
                    mask = torch.tensor(padding_mask[part], device=self.device)
                result.append(self.network(source, mask).logits.float().cpu().numpy())
        return np.concatenate(result).astype(np.float64)

    def probabilities(
        self,
        windows: npt.NDArray[np.float32],
        padding_mask: npt.NDArray[np.bool_] | None = None,
        *,
        leads: str = "12-lead",
    ) -> npt.NDArray[np.float64]:
        """Calibrated probabilities (n, labels) of prepared windows."""
        logits = self.logits(windows, padding_mask)
        if self.calibration is not None:
            slope, offset = self.calibration.arrays(leads, self.labels)
            logits = logits * slope + offset
        return _sigmoid(logits)

    def predict(
        self, recordings: Iterable[Recording], *, leads: str = "12-lead"
    ) -> Iterator[tuple[npt.NDArray[np.float64], PreparedInput]]:
        """Per recording its probabilities (labels,), the mean over windows, and how it was
        prepared.

        Windows of all recordings share batches where their length allows.

        Raises
        ------
        LeadError, RecordingError
            As :func:`~ecg_agent_ray.classifier.preprocessing.prepare`, at the recording's turn.
        """
        self.assessed_for(leads)
        pending: list[PreparedInput] = []
        for recording in recordings:
            prepared = prepare(recording, leads)
            if prepared.padding_mask is not None:
                yield from self._flush(pending, leads)
                pending = []
                yield from self._flush([prepared], leads)
                continue
            pending.append(prepared)
            if sum(len(item.windows) for item in pending) >= _BATCH:
                yield from self._flush(pending, leads)
                pending = []
        yield from self._flush(pending, leads)

    def _flush(
        self, pending: Sequence[PreparedInput], leads: str
    ) -> Iterator[tuple[npt.NDArray[np.float64], PreparedInput]]:
        if not pending:
            return
        windows = np.concatenate([item.windows for item in pending])
        probabilities = self.probabilities(windows, pending[0].padding_mask, leads=leads)
        start = 0
        for item in pending:
            end = start + len(item.windows)
            yield probabilities[start:end].mean(0), item
            start = end

    def save(
        self, directory: str | Path, *, weights: Mapping[str, torch.Tensor] | None = None
    ) -> Path:
        """Write ``model.safetensors``, ``config.json`` and ``README.md``; returns the directory.

        ``weights`` stands in for the network's own state dict where that is sharded over workers.
        """
        from safetensors.torch import save_file

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if weights is None:
            weights = self.network.state_dict()
        tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        save_file(tensors, directory / "model.safetensors")
        config = {
            "format_version": _FORMAT_VERSION,
            "architecture": self.network.architecture,
            "network": self.network.config.to_dict(),
            "labels": list(self.labels),
            "assessed": list(self.assessed),
            "lead_configurations": list(self.lead_configurations),
            "calibration": self.calibration.to_dict() if self.calibration else None,
            "thresholds": self.thresholds,
            "metadata": self.metadata,
        }
        text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")
        card = self.card or "# ECG classifier\n\nMade without a model card.\n"
        (directory / "README.md").write_text(card, encoding="utf-8")
        return directory


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from scipy.special import expit

    result: npt.NDArray[np.float64] = expit(x)
    return result


def build_network(architecture: str, config: Mapping[str, Any]) -> Any:
    """A network with fresh weights: ``ecg_transformer``, ``xresnet1d`` or ``beat_rhythm``.

    Raises
    ------
    ConfigError
        Unknown architecture, or sizes it does not have.
    """
    from ecg_agent_ray.classifier.beat_rhythm import BeatRhythmClassifier, BeatRhythmConfig
    from ecg_agent_ray.classifier.model import ECGTransformerClassifier, ECGTransformerConfig
    from ecg_agent_ray.classifier.xresnet1d import XResNet1d, XResNet1dConfig

    try:
        if architecture == "ecg_transformer":
            return ECGTransformerClassifier(ECGTransformerConfig.from_dict(dict(config)))
        if architecture == "xresnet1d":
            return XResNet1d(XResNet1dConfig.from_dict(dict(config)))
        if architecture == "beat_rhythm":
            return BeatRhythmClassifier(BeatRhythmConfig.from_dict(dict(config)))
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"sizes of the {architecture} network: {error}") from error
    raise ConfigError(
        f"unknown classifier architecture {architecture!r}",
        hint="ecg_transformer, xresnet1d or beat_rhythm",
    )


def load_classifier(
    uri: str | Path = BUILTIN, *, labels: Sequence[str] | None = None, num_heads: int | None = None
) -> Classifier:
    """A classifier from ``builtin:``, a classifier directory, or a fairseq-signals ``.pt`` file,
    the latter two on a local disk or at a URL (``s3://…``).

    Parameters
    ----------
    labels
        Codes in output order, for a checkpoint whose labels are not PTB-XL's 71.
    num_heads
        See :func:`~ecg_agent_ray.classifier.checkpoint.load_checkpoint`.

    Raises
    ------
    ModelNotFoundError
        Nothing is there.
    CheckpointError, UnsafeCheckpointError
        What is there is no classifier, or would run code.
    ConfigError
        ``labels`` do not fit the network.
    """
    if str(uri) == BUILTIN:
        classifier = _load_directory(_builtin_directory(), BUILTIN)
    elif (path := fetched(uri)).is_dir():
        classifier = _load_directory(path, str(uri))
    elif path.is_file():
        classifier = _load_fairseq(path, str(uri), labels, num_heads)
    else:
        raise ModelNotFoundError(
            f"no classifier at {uri}",
            hint="builtin:, a classifier directory or a fairseq-signals checkpoint",
        )
    if labels is not None and tuple(labels) != classifier.labels:
        raise ConfigError(f"{uri} states its own labels, which differ from those given")
    return classifier


def _builtin_directory() -> Path:
    from importlib import resources

    return Path(str(resources.files("ecg_agent_ray").joinpath("_data/classifier")))


def _load_directory(directory: Path, uri: str) -> Classifier:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    missing = [n for n in ("config.json", "model.safetensors") if not (directory / n).is_file()]
    if missing:
        raise ModelNotFoundError(f"no classifier in {directory}: {', '.join(missing)} is not there")
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        network = build_network(config["architecture"], config["network"])
        network.load_state_dict(load_file(directory / "model.safetensors"))
        calibration = config.get("calibration")
        card = directory / "README.md"
        return Classifier(
            network=network,
            labels=tuple(config["labels"]),
            assessed=tuple(config["assessed"]),
            lead_configurations=tuple(config["lead_configurations"]),
            calibration=Calibration.from_dict(calibration) if calibration else None,
            thresholds=config.get("thresholds") or {},
            uri=uri,
            metadata=config.get("metadata") or {},
            card=card.read_text(encoding="utf-8") if card.is_file() else "",
        )
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory} is no usable classifier: {error}") from error


def _load_fairseq(
    path: Path, uri: str, labels: Sequence[str] | None, num_heads: int | None
) -> Classifier:
    from ecg_agent_ray.classifier.checkpoint import load_checkpoint

    network = load_checkpoint(path, num_heads=num_heads)
    count = network.config.num_labels
    if count == 0:
        raise CheckpointError(
            f"{uri} is a pre-training checkpoint: it has no labels yet",
            hint="fine-tune it first (ecg-agent train classifier init=PATH)",
        )
    if labels is None:
        # a checkpoint does not name its labels; 71 outputs are PTB-XL's statements by convention
        labels = LABELS if count == len(LABELS) else [f"label_{index}" for index in range(count)]
    return Classifier(network=network, labels=tuple(labels), assessed=tuple(labels), uri=uri)
