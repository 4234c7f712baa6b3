"""The tools as Serve deployments; Serve runs their sync methods in threads."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecg_agent_ray import ecg
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import RecordingError
from ecg_agent_ray.serving.config import ServiceConfig
from ecg_agent_ray.serving.logs import configure_replica_logs
from ecg_agent_ray.serving.models import LoadedPart, choose_model
from ecg_agent_ray.serving.store import EcgMeta, EcgStore
from ecg_agent_ray.serving.uploads import read_upload

__all__ = ["ClassificationReplica", "MeasurementReplica"]


class _Replica:
    """What both have: the configuration and the store."""

    def __init__(self, config: ServiceConfig) -> None:
        configure_replica_logs()
        self.config = config
        if config.store is None:
            raise ValueError("the configuration must be resolved before it reaches a replica")
        self.store = EcgStore(config.store)

    def recording(self, ecg_id: str) -> Recording:
        recording = self.store.recording(ecg_id)
        if recording is None:
            # the ingress checked a moment ago, so it was deleted in between
            raise RecordingError("the ECG was deleted")
        return recording


class MeasurementReplica(_Replica):
    """Reads uploads, assesses quality, measures, plots. CPU only."""

    def __init__(self, config: ServiceConfig) -> None:
        super().__init__(config)
        self._plot_lock = threading.Lock()
        from ecg_agent_ray import tools

        # imports scipy and friends now, not in somebody's first request
        tools.measure(ecg.read(ecg.samples()[0]))

    def status(self) -> dict[str, Any]:
        return {"ready": True, "problem": None}

    def add_ecg(self, files: Sequence[tuple[str, bytes]], owner: str) -> EcgMeta:
        return self._add(read_upload(files, self.config.limits), owner)

    def add_sample(self, record_id: str, owner: str) -> EcgMeta:
        return self._add(ecg.sample(record_id), owner)

    def _add(self, recording: Recording, owner: str) -> EcgMeta:
        quality = {
            lead: {"status": str(found.status), "reason": found.reason}
            for lead, found in ecg.assess_quality(recording).items()
        }
        return self.store.add(recording, quality, owner)

    def measurement(self, ecg_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """``{"detail": the CLI's JSON, "output": the dialogue form}``, as the other tools."""
        from ecg_agent_ray import tools

        return _both(tools.measure(self.recording(ecg_id), **options))

    def signal(self, ecg_id: str, options: Mapping[str, Any]) -> bytes:
        """JSON of ``leads`` from ``start`` to ``end`` seconds, in mV; gaps are null."""
        recording = self.recording(ecg_id)
        rate = recording.sampling_rate
        first, last = round(options["start"] * rate), round(options["end"] * rate)
        rows = {name: recording.lead(name)[first:last] for name in options["leads"]}
        body = {
            "record_id": recording.record_id,
            "sampling_rate": rate,
            "unit": "mV",
            "start": first / rate,
            "end": last / rate,
            "signal": {ecg.normalise_lead(name): _rounded(row) for name, row in rows.items()},
        }
        return json.dumps(body, allow_nan=False).encode()

    def plot(self, ecg_id: str, options: Mapping[str, Any]) -> bytes:
        """SVG; ``marks`` adds the measured fiducial points."""
        from ecg_agent_ray import tools

        recording = self.recording(ecg_id)
        marks = (
            tools.measure(recording, beats=True).to_dict()["beats"] if options["marks"] else None
        )
        with self._plot_lock:
            svg = ecg.plot(
                recording,
                marks=marks,
                layout=options["layout"],
                start_s=options["start"],
                format="svg",
            )
        assert isinstance(svg, bytes), "without a file the plot is bytes"
        return svg


def _rounded(row: Any) -> list[float | None]:
    # a microvolt is below any recorder's resolution
    return [None if np.isnan(value) else round(float(value), 4) for value in row]


def _both(result: Any) -> dict[str, Any]:
    return {"detail": result.to_dict(), "output": result.to_dialogue()}


class ClassificationReplica(_Replica):
    """The classifier and its explanations; loads whatever ``config.classifier`` names."""

    def __init__(self, config: ServiceConfig) -> None:
        super().__init__(config)
        self._classifier: LoadedPart[Any] = LoadedPart("the classifier", self._load)

    def _load(self) -> tuple[Any, dict[str, Any]]:
        import torch

        from ecg_agent_ray import tools
        from ecg_agent_ray.classifier import load_classifier

        torch.set_num_threads(self.config.deployments.classification.threads)
        chosen = choose_model(self.config.classifier, "classifier")
        classifier = load_classifier(chosen.source)
        # the first pass compiles and allocates; better here than in somebody's request
        tools.classify(ecg.read(ecg.samples()[0]), model=classifier)
        return classifier, {"uri": chosen.uri, "reason": chosen.reason}

    def status(self) -> dict[str, Any]:
        return self._classifier.status()

    def classification(self, ecg_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
        from ecg_agent_ray import tools

        model = self._classifier.get()
        return _both(tools.classify(self.recording(ecg_id), model=model, **options))

    def explanation(self, ecg_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
        from ecg_agent_ray import tools

        model = self._classifier.get()
        return _both(tools.explain(self.recording(ecg_id), model=model, **options))
