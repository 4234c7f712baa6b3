"""The demo from end to end, telling a reporter what happens and keeping what happened."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ecg_agent_ray import __version__, ecg
from ecg_agent_ray.errors import EcgAgentError
from ecg_agent_ray.pipelines.demo import stages
from ecg_agent_ray.pipelines.demo.conversation import Answer, Conversation, check, hold
from ecg_agent_ray.plugins.local_cluster import local_ray
from ecg_agent_ray.settings import load_settings

__all__ = ["DemoReport", "Reporter", "run_demo"]

StartService = Callable[[], AbstractContextManager[str]]
"""Starts the service with both champions and gives its base URL."""

# Scheduling budget, not cores: two trainers, their controller and data tasks must all fit
_CPUS = 6


class Reporter(Protocol):
    """Who is told; the command line shows it, a test collects it."""

    def stage(self, title: str) -> AbstractContextManager[None]: ...

    def measured(self, rows: list[dict[str, Any]], plot: Path) -> None: ...

    def registered(self, model: stages.Registered) -> None: ...

    def heard(self, answer: Answer) -> None: ...

    def serving(self, url: str) -> None: ...


@dataclass
class DemoReport:
    """``report.json``."""

    package_version: str = __version__
    tracking_uri: str = ""
    records: list[str] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    plot: str = ""
    runs: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    url: str = ""
    recording: str = stages.TALKED_ABOUT
    transcript: list[dict[str, Any]] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n", encoding="utf-8")


def run_demo(
    output: Path,
    reporter: Reporter,
    start_service: StartService,
    *,
    keep: Callable[[str], None] | None = None,
) -> DemoReport:
    """Run all stages in one local Ray and write ``output/report.json``, also when one fails.

    ``keep`` is called with the service's URL after the dialogue and holds the service up until it
    returns. Raises :class:`EcgAgentError` when a stage fails, or when the dialogue did not show
    what it must.
    """
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    report = DemoReport(tracking_uri=load_settings().mlflow_uri)
    demo = _Demo(output, reporter, report)
    try:
        with local_ray(num_cpus=_CPUS):
            demo.measure()
            classifier = demo.classifier()
            demo.agent(classifier)
            demo.talk(start_service, keep)
    finally:
        report.write(output / "report.json")
    failed = [name for name, passed in report.checks.items() if not passed]
    if failed:
        raise EcgAgentError(
            f"the dialogue did not show: {', '.join(failed)}",
            hint=f"the transcript is in {output / 'report.json'}",
        )
    return report


@dataclass
class _Demo:
    output: Path
    reporter: Reporter
    report: DemoReport

    @contextmanager
    def _stage(self, name: str, title: str) -> Iterator[None]:
        start = time.perf_counter()
        with self.reporter.stage(title):
            yield
        self.report.timings[name] = round(time.perf_counter() - start, 2)

    def measure(self) -> None:
        with self._stage("measure", "Measure 12 real PTB-XL recordings"):
            rows = stages.measure_records(self.output)
        plot = self.output / f"{stages.TALKED_ABOUT}.png"
        self.report.records = [path.stem for path in ecg.samples()]
        self.report.measurements = [{k: v for k, v in row.items() if k != "beats"} for row in rows]
        self.report.plot = str(plot)
        self.reporter.measured(rows, plot)

    def classifier(self) -> stages.Registered:
        title = "Fine-tune the classifier: Ray Train, 2 workers; register, gate, promote"
        with self._stage("classifier", title):
            model = stages.finetune_and_promote_classifier(self.output)
        return self._keep(model)

    def agent(self, classifier: stages.Registered) -> stages.Registered:
        with self._stage("dialogues", "Write dialogues from the tools' real outputs"):
            dialogues = stages.write_agent_dialogues(self.output)
        title = "Fine-tune the agent's LLM: Ray Train, 2 workers, DeepSpeed ZeRO-2, LoRA"
        with self._stage("llm", title):
            trained = stages.finetune_agent(self.output, dialogues, classifier)
        title = "Register the agent as challenger, evaluate, gate, promote to champion"
        with self._stage("evaluation", title):
            model = stages.evaluate_and_promote_agent(self.output, trained, dialogues, classifier)
        return self._keep(model)

    def _keep(self, model: stages.Registered) -> stages.Registered:
        self.report.runs[model.name] = model.run_id
        self.report.models[model.name] = asdict(model)
        self.reporter.registered(model)
        return model

    def talk(self, start_service: StartService, keep: Callable[[str], None] | None) -> None:
        started = time.perf_counter()
        with self.reporter.stage("Start the Ray Serve application with both champions"):
            service = start_service()
            url = service.__enter__()
        try:
            self.report.url = url
            self.report.timings["serve"] = round(time.perf_counter() - started, 2)
            self.reporter.serving(url)
            self._converse(url)
            if keep is not None:
                self.report.write(self.output / "report.json")
                keep(url)
        finally:
            with self._stage("shutdown", "Shut everything down"):
                service.__exit__(None, None, None)

    def _converse(self, url: str) -> None:
        header = next(path for path in ecg.samples() if path.stem == stages.TALKED_ABOUT)

        def heard(answer: Answer) -> None:
            self.report.transcript.append(asdict(answer))
            self.reporter.heard(answer)

        with self._stage("dialogue", "Talk over HTTP about one ECG, five turns"):
            talk: Conversation = hold(url, [header, header.with_suffix(".dat")], heard=heard)
        self.report.checks = check(talk)
