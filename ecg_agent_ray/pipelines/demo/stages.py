"""The demo's stages: each calls the same library functions as its command line verb.

The shipped records are split once: four are held out from both fine-tunings, and judge them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.dialogue import write_dialogues
from ecg_agent_ray.pipelines.facts import collect_facts
from ecg_agent_ray.shipped import shipped

__all__ = [
    "HELD_OUT",
    "TALKED_ABOUT",
    "Registered",
    "evaluate_and_promote_agent",
    "finetune_agent",
    "finetune_and_promote_classifier",
    "measure_records",
    "write_agent_dialogues",
]

HELD_OUT = ("00003_hr", "00225_hr", "00296_hr", "00351_hr")
"""Normal, sinus bradycardia, hypertrophy with ischaemia, atrial fibrillation."""

TALKED_ABOUT = "00296_hr"
"""The recording of the dialogue: one that no fine-tuning has seen."""

N_TRAIN, N_VALIDATION, N_EVALUATION = 24, 4, 4


@dataclass(frozen=True)
class Registered:
    """A model version, the run that made it, and how it passed its gate."""

    name: str
    version: int
    run_id: str
    metrics: dict[str, float]
    gate: dict[str, Any]

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def measure_records(output: Path) -> list[dict[str, Any]]:
    """Measure every shipped record, and draw the one that is talked about with its fiducials."""
    results = []
    for path in ecg.samples():
        recording = ecg.read(path)
        measured = tools.measure(recording, beats=True)
        results.append(measured.to_dict())
        if recording.record_id == TALKED_ABOUT:
            ecg.plot(recording, output / f"{TALKED_ABOUT}.png", marks=results[-1]["beats"])
    return results


def finetune_and_promote_classifier(output: Path) -> Registered:
    """Two Ray Train workers fine-tune the shipped classifier; its gate decides on promotion."""
    from ecg_agent_ray import registry
    from ecg_agent_ray.training.classifier import finetune_classifier
    from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig
    from ecg_agent_ray.training.config import load_config

    config = load_config(
        ClassifierFinetuneConfig,
        shipped("jobs/configs/demo_classifier.yaml"),
        [f"output={output / 'classifier'}", f"validation.records=[{', '.join(HELD_OUT)}]"],
    )
    result = finetune_classifier(config)
    version = registry.log_classifier(
        result.path, run_id=result.run_id, metrics=_numbers(result.metrics)
    )
    return _promote(version, result.run_id, "demo-classifier")


def write_agent_dialogues(output: Path) -> dict[str, Path]:
    """Dialogues from real tool outputs; held-out records and held-out wording for evaluation."""
    from ecg_agent_ray.dialogue.synthesis import Split, synthesize

    files = ecg.samples()
    facts = collect_facts(files, explain=2).facts
    seen = [fact for fact in facts if fact.record_id not in HELD_OUT]
    unseen = [fact for fact in facts if fact.record_id in HELD_OUT]
    plan: dict[str, tuple[list[Any], int, Split]] = {
        "train": (seen, N_TRAIN, "train"),
        "validation": (unseen, N_VALIDATION, "validation"),
        "evaluation": (unseen, N_EVALUATION, "test"),
    }
    return {
        name: write_dialogues(
            output / "dialogues" / f"{name}.jsonl", synthesize(about, n=n, seed=7, split=split)
        )
        for name, (about, n, split) in plan.items()
    }


def finetune_agent(output: Path, dialogues: dict[str, Path], classifier: Registered) -> Any:
    """Two Ray Train workers with DeepSpeed go on training the shipped adapter."""
    from ecg_agent_ray.training.config import load_config
    from ecg_agent_ray.training.llm import finetune_llm
    from ecg_agent_ray.training.llm_config import LLMFinetuneConfig

    config = load_config(
        LLMFinetuneConfig,
        shipped("jobs/configs/demo_llm.yaml"),
        [
            f"train={dialogues['train']}",
            f"validation={dialogues['validation']}",
            f"output={output / 'llm'}",
            f"classifier={classifier.uri}",
        ],
    )
    return finetune_llm(config)


def evaluate_and_promote_agent(
    output: Path, trained: Any, dialogues: dict[str, Path], classifier: Registered
) -> Registered:
    """Register as challenger, hold the evaluation dialogues with live tools, ask the gate."""
    from ecg_agent_ray import registry
    from ecg_agent_ray.evaluation import evaluate_agent
    from ecg_agent_ray.plugins.tracking import data_digest

    version = registry.log_agent(
        trained.agent_dir,
        run_id=trained.run_id,
        data_digest=trained.data_digest,
        classifier_uri=classifier.uri,
    )
    metrics = evaluate_agent(
        dialogues["evaluation"],
        model=str(registry.resolve(version.uri)),
        classifier=str(registry.resolve(classifier.uri)),
        ecg_dir=ecg.samples()[0].parent,
        output=output / "evaluation" / f"version-{version.version}",
    )
    registry.attach_evaluation(
        version.name,
        version.version,
        _numbers(metrics),
        data_digest=data_digest([dialogues["evaluation"]]),
    )
    return _promote(version, trained.run_id, "demo-agent")


def _promote(version: Any, run_id: str, gate: str) -> Registered:
    from ecg_agent_ray import registry

    promotion = registry.promote(version.name, version.version, gate=gate, reason="demo")
    metrics = registry.show(version.name, version.version).metrics
    return Registered(
        version.name, version.version, run_id, dict(metrics), promotion.report.to_dict()
    )


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
