"""The tools as Serve deployments; their work runs in threads, a bounded number at once."""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ecg_agent_ray import ecg
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import RecordingError, ToolError
from ecg_agent_ray.serving.config import DeploymentConfig, ServiceConfig
from ecg_agent_ray.serving.followed import ModelSet
from ecg_agent_ray.serving.logs import configure_replica_logs
from ecg_agent_ray.serving.models import ChosenModel
from ecg_agent_ray.serving.store import EcgMeta, EcgStore
from ecg_agent_ray.serving.tracing import configure_tracing, span
from ecg_agent_ray.serving.uploads import read_upload
from ecg_agent_ray.serving.work_queue import WorkQueue, in_turn

__all__ = ["ClassificationReplica", "MeasurementReplica", "compare"]

_log = logging.getLogger(__name__)
_R = TypeVar("_R")
_T = TypeVar("_T")


def traced(method: Callable[[_R, str, Mapping[str, Any]], _T]) -> Callable[..., _T]:
    """Give a method of a replica a span; callers may send theirs as one more argument."""

    @functools.wraps(method)
    def within(
        self: _R, ecg_id: str, options: Mapping[str, Any], trace: Mapping[str, str] | None = None
    ) -> _T:
        with span(method.__name__, trace):
            return method(self, ecg_id, options)

    # Serve reads the signature, which is not the wrapped one
    del within.__wrapped__  # type: ignore[attr-defined]
    return within


class _Replica:
    """What both have: the configuration, the store, and the queue of their work."""

    def __init__(self, config: ServiceConfig, size: DeploymentConfig) -> None:
        self.work = WorkQueue(size)
        configure_replica_logs()
        configure_tracing(config, type(self).__name__)
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
        super().__init__(config, config.deployments.measurement)
        self._plot_lock = threading.Lock()
        from ecg_agent_ray import tools

        # imports scipy and friends now, not in somebody's first request
        tools.measure(ecg.read(ecg.samples()[0]))

    async def status(self) -> dict[str, Any]:
        return {"ready": True, "problem": None}

    @in_turn
    def add_ecg(
        self, files: Sequence[tuple[str, bytes]], owner: str, ecg_id: str | None = None
    ) -> EcgMeta:
        return self._add(read_upload(files, self.config.limits), owner, ecg_id)

    @in_turn
    def add_sample(self, record_id: str, owner: str) -> EcgMeta:
        return self._add(ecg.sample(record_id), owner)

    def _add(self, recording: Recording, owner: str, ecg_id: str | None = None) -> EcgMeta:
        quality = {
            lead: {"status": str(found.status), "reason": found.reason}
            for lead, found in ecg.assess_quality(recording).items()
        }
        return self.store.add(recording, quality, owner, ecg_id)

    @in_turn
    @traced
    def measurement(self, ecg_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """``{"detail": the CLI's JSON, "output": the dialogue form}``, as the other tools."""
        from ecg_agent_ray import tools

        recording = self.recording(ecg_id)
        return _both(tools.measure(_nameless(recording), **options), recording)

    @in_turn
    @traced
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

    @in_turn
    @traced
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


def _nameless(recording: Recording) -> Recording:
    """The recording without its file's name, whose words a failure's message would repeat."""
    return replace(recording, record_id="the recording")


def _both(result: Any, recording: Recording) -> dict[str, Any]:
    detail = result.to_dict() | {"record_id": recording.record_id}
    return {"detail": detail, "output": result.to_dialogue()}


class ClassificationReplica(_Replica):
    """The classifiers and their explanations; follows whatever ``config.classifier`` names."""

    def __init__(self, config: ServiceConfig) -> None:
        super().__init__(config, config.deployments.classification)
        import torch

        torch.set_num_threads(config.deployments.classification.threads)
        self._models: ModelSet[Any] = ModelSet(
            "classifier", config.classifier, self._load, config.models
        )

    def _load(self, chosen: ChosenModel, leads: str) -> tuple[Any, dict[str, Any]]:
        from ecg_agent_ray.classifier import load_classifier

        classifier = load_classifier(chosen.fetch("classifier"))
        # clients are told the version, not a path of this machine
        classifier = replace(classifier, uri=chosen.version)
        _try_classifier(classifier, leads)
        return classifier, {}

    async def status(self) -> dict[str, Any]:
        return self._models.status()

    @in_turn
    @traced
    def classification(self, ecg_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """As :meth:`MeasurementReplica.measurement`, with ``canary`` for the challenger's share."""
        from ecg_agent_ray import tools

        recording = self.recording(ecg_id)
        model, arm = self._models.pick(options["leads"], ecg_id)
        nameless = _nameless(recording)
        result = tools.classify(nameless, model=model.part, **options)
        if arm == "champion":
            return _both(result, recording)
        champion = self._models.champion(options["leads"])
        usual = tools.classify(nameless, model=champion.part, **options)
        return _both(result, recording) | {"canary": compare(usual.to_dict(), result.to_dict())}

    @in_turn
    @traced
    def explanation(self, ecg_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
        from ecg_agent_ray import tools

        model, _ = self._models.pick(options["leads"], ecg_id)
        recording = self.recording(ecg_id)
        explained = tools.explain(_nameless(recording), model=model.part, **options)
        return _both(explained, recording)


def _try_classifier(classifier: Any, leads: str) -> None:
    """Classify a shipped record, which also compiles and allocates before anybody's request.

    Raises:
        ToolError: a probability is none.
    """
    from ecg_agent_ray import tools

    found = tools.classify(ecg.read(ecg.samples()[0]), model=classifier, leads=leads).to_dict()
    given = [p for p in found["labels"].values() if p is not None]
    if not given or not all(0 <= p <= 1 for p in given):
        raise ToolError("the classifier gives no probabilities for a shipped record")


def compare(champion: Mapping[str, Any], challenger: Mapping[str, Any]) -> dict[str, Any]:
    """How far two classifications of the same ECG are apart; logged, without the ECG's id."""
    before, after = champion["labels"], challenger["labels"]
    both = [k for k in before if before[k] is not None and after.get(k) is not None]
    found = {
        "champion": champion["model"],
        "challenger": challenger["model"],
        "disagree": sorted(set(champion["positive"]) ^ set(challenger["positive"])),
        "largest_difference": round(max((abs(before[k] - after[k]) for k in both), default=0.0), 4),
    }
    _log.info(
        "canary champion=%s challenger=%s disagree=%s largest_difference=%s",
        found["champion"],
        found["challenger"],
        ",".join(found["disagree"]) or "-",
        found["largest_difference"],
    )
    return found
