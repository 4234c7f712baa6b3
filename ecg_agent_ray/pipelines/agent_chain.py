"""From recordings to a promoted agent, as a chain of MLflow runs.

    python -m ecg_agent_ray.pipelines.agent_chain output=out [key=value …]

prepare    deal patients into training and test
pretrain   the ECG transformer without labels
finetune   the classifier, registered as challenger
extract    the tools' outputs, and dialogues written from them
llm        the agent's LLM on these dialogues, registered as challenger
evaluate   hold the test dialogues with live tools
gate       both models against their gates; promote, or refuse

Each step is a child run with its data sets as inputs; one whose inputs are unchanged is taken over
from the last time (:mod:`ecg_agent_ray.plugins.step_chain`). The defaults are of a laptop's size
and use the shipped records.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ecg_agent_ray.classifier.dataset import SourceKind, read_source
from ecg_agent_ray.errors import ConfigError, EcgAgentError
from ecg_agent_ray.plugins.options import StrictConfig
from ecg_agent_ray.plugins.step_chain import (
    ChainResult,
    Results,
    Step,
    StepOutcome,
    StepResult,
    run_chain,
)
from ecg_agent_ray.training.config import find_config, load_config

__all__ = ["AgentChainConfig", "run_agent_chain"]

STEPS = ("prepare", "pretrain", "finetune", "extract", "llm", "evaluate", "gate")


class AgentChainConfig(StrictConfig):
    """Options of the chain; those of each training job are in its own YAML."""

    output: str = Field(default="outputs/pipeline", description="Folder for all that is made.")
    experiment: str = "ecg-agent-pipeline"
    start: Literal[STEPS] | None = Field(  # type: ignore[valid-type]
        default=None, description="Run from this step on, on the last results of those before."
    )
    data_kind: SourceKind = "manifest"
    data: str = Field(default="samples:", description="Folder or file; samples: those shipped.")
    test_share: float = Field(default=0.34, gt=0, lt=1, description="Of patients.")
    seed: int = 42
    pretrain_config: str = Field(
        default="pretrain_laptop", description="File, or name of a shipped job configuration."
    )
    pretrain_epochs: int = Field(default=2, ge=1)
    classifier_config: str = "demo_classifier"
    classifier_init: str = Field(
        default="builtin:",
        description="Where fine-tuning starts; pretrained: at the chain's own pre-training, which "
        "is worth something from some thousand records on.",
    )
    classifier_epochs: int = Field(default=1, ge=1)
    llm_config: str = "demo_llm"
    llm_steps: int | None = Field(default=2, ge=1, description="null: what the YAML says.")
    n_train: int = Field(default=24, ge=1, description="Dialogues to write for training.")
    n_validation: int = Field(default=4, ge=1)
    n_test: int = Field(default=4, ge=1)
    classifier_gate: str = Field(default="demo-classifier", description="Gate file or name.")
    agent_gate: str = Field(default="demo-agent", description="Gate file or name.")


def run_agent_chain(config: AgentChainConfig, *, report: Any = None) -> ChainResult:
    """Run the chain in one Ray, local or of ``RAY_ADDRESS``.

    Raises
    ------
    GateNotMetError
        A model is refused; everything before is kept.
    ConfigError
        Too few patients, or a start without results before it.
    """
    from ecg_agent_ray.plugins.local_cluster import local_ray

    chain = _AgentChain(config)
    with local_ray(num_cpus=6):
        return run_chain(
            "agent-pipeline",
            chain.steps(),
            experiment=config.experiment,
            start=config.start,
            params=config.model_dump(),
            report=report,
        )


class _AgentChain:
    def __init__(self, config: AgentChainConfig) -> None:
        self.config = config
        self.output = Path(config.output).expanduser().resolve()
        self.records = read_source(config.data_kind, self._data_path())

    def steps(self) -> list[Step]:
        config = self.config
        given = config.model_dump()

        def options(*names: str) -> dict[str, Any]:
            files = {name: _digest_of(given[name]) for name in names if name.endswith("_config")}
            return {**{name: given[name] for name in names}, "files": files}

        pretrained = config.classifier_init == "pretrained"
        return [
            Step("prepare", self.prepare, {**options("test_share", "seed"), **self._data_digest()}),
            Step(
                "pretrain",
                self.pretrain,
                options("pretrain_config", "pretrain_epochs", "data_kind", "data"),
                needs=("prepare",),
                tracks_itself=True,
            ),
            Step(
                "finetune",
                self.finetune,
                options("classifier_config", "classifier_init", "classifier_epochs"),
                needs=("prepare", "pretrain") if pretrained else ("prepare",),
                tracks_itself=True,
            ),
            Step(
                "extract",
                self.extract,
                options("n_train", "n_validation", "n_test", "seed"),
                needs=("prepare", "finetune"),
            ),
            Step(
                "llm",
                self.llm,
                options("llm_config", "llm_steps"),
                needs=("finetune", "extract"),
                tracks_itself=True,
            ),
            Step("evaluate", self.evaluate, needs=("finetune", "extract", "llm")),
            Step(
                "gate",
                self.gate,
                {name: _gate_rules(given[name]) for name in ("classifier_gate", "agent_gate")},
                needs=("finetune", "llm", "evaluate"),
            ),
        ]

    # -- the steps -------------------------------------------------------------------------------

    def prepare(self, results: Results) -> StepResult:
        from ecg_agent_ray.pipelines.prepare import split_by_patient

        patients = {record.patient_id for record in self.records}
        places = split_by_patient(
            patients, valid=0, test=self.config.test_share, seed=self.config.seed
        )
        test = [r.record_id for r in self.records if places[r.patient_id] == "test"]
        if not test:
            raise ConfigError(
                f"{len(patients)} patients are too few for a test share of {self.config.test_share}"
            )
        self.output.mkdir(parents=True, exist_ok=True)
        split = self.output / "split.json"
        split.write_text(json.dumps({"test": test}, indent=1), encoding="utf-8")
        digest = self._data_digest()["data"]
        self._log_data("recordings", digest, str(self._data_path()), "training")
        # the digest too, since a changed signal leaves the split as it is
        return StepResult({"split": str(split), "data": digest}, (str(split),))

    def pretrain(self, results: Results) -> StepResult:
        from ecg_agent_ray.training.pretrain import PretrainConfig, pretrain_classifier

        data = json.dumps([{"kind": self.config.data_kind, "path": self.config.data}])
        folder = self.output / "pretraining"
        config = load_config(
            PretrainConfig,
            self.config.pretrain_config,
            [*self._common(folder), f"data={data}", f"epochs={self.config.pretrain_epochs}"],
        )
        done = pretrain_classifier(config)
        path = str(done.to_dict()["path"])
        return StepResult({"checkpoint": path, "run_id": done.run_id}, (path,))

    def finetune(self, results: Results) -> StepResult:
        from ecg_agent_ray import registry
        from ecg_agent_ray.training.classifier import finetune_classifier
        from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig

        start = self.config.classifier_init
        if start == "pretrained":
            start = results["pretrain"]["checkpoint"]
        data = json.dumps([{"kind": self.config.data_kind, "path": self.config.data}])
        config = load_config(
            ClassifierFinetuneConfig,
            self.config.classifier_config,
            [
                *self._common(self.output / "classifier"),
                f"init={json.dumps(start)}",
                f"data={data}",
                f"epochs={self.config.classifier_epochs}",
                f"validation.records={json.dumps(self._test(results))}",
            ],
        )
        done = finetune_classifier(config)
        version = registry.register_directory(done.path, run_id=done.run_id)
        values = {"name": version.name, "version": version.version, "uri": version.uri}
        return StepResult({**values, "path": str(done.path)}, (str(done.path),))

    def extract(self, results: Results) -> StepResult:
        from ecg_agent_ray.dialogue import write_dialogues
        from ecg_agent_ray.dialogue.synthesis import Split, synthesize
        from ecg_agent_ray.pipelines.facts import collect_facts

        files = [_header(record.path) for record in self.records]
        collected = collect_facts(files, classifier=results["finetune"]["path"], explain=2)
        test = set(self._test(results))
        seen = [fact for fact in collected.facts if fact.record_id not in test]
        unseen = [fact for fact in collected.facts if fact.record_id in test]
        plan: dict[Split, tuple[list[Any], int]] = {
            "train": (seen, self.config.n_train),
            "validation": (seen, self.config.n_validation),
            "test": (unseen, self.config.n_test),
        }
        values: dict[str, Any] = {}
        for name, (facts, number) in plan.items():
            dialogues = synthesize(facts, n=number, seed=self.config.seed, split=name)
            path = self.output / "dialogues" / f"{name}.jsonl"
            values[name] = str(write_dialogues(path, dialogues))
            self._log_data(f"dialogues-{name}", _digest_of(values[name]), values[name], name)
        return StepResult(values, tuple(values.values()))

    def llm(self, results: Results) -> StepResult:
        from ecg_agent_ray import registry
        from ecg_agent_ray.training.llm import finetune_llm
        from ecg_agent_ray.training.llm_config import LLMFinetuneConfig

        steps = self.config.llm_steps
        config = load_config(
            LLMFinetuneConfig,
            self.config.llm_config,
            [
                *self._common(self.output / "llm"),
                *(f"{name}={results['extract'][name]}" for name in ("train", "validation")),
                f"classifier={results['finetune']['uri']}",
                *([f"steps={steps}"] if steps else []),
            ],
        )
        done = finetune_llm(config)
        version = registry.log_agent(
            done.agent_dir,
            run_id=done.run_id,
            data_digest=done.data_digest,
            classifier_uri=results["finetune"]["uri"],
        )
        values = {"name": version.name, "version": version.version, "uri": version.uri}
        return StepResult({**values, "path": str(done.agent_dir)}, (str(done.agent_dir),))

    def evaluate(self, results: Results) -> StepResult:
        import mlflow

        from ecg_agent_ray import registry
        from ecg_agent_ray.evaluation import evaluate_agent

        agent, test = results["llm"], results["extract"]["test"]
        from ecg_agent_ray.plugins.train_callback import numeric_metrics

        folder = self.output / "evaluation"
        metrics = evaluate_agent(
            test,
            agent["path"],
            classifier=results["finetune"]["path"],
            ecg_dir=_common_folder([record.path for record in self.records]),
            output=folder,
        )
        numbers = numeric_metrics(metrics)
        mlflow.log_metrics(numbers)
        digest = _digest_of(test)
        self._log_data("dialogues-test", digest, test, "evaluation")
        registry.attach_evaluation(agent["name"], agent["version"], numbers, data_digest=digest)
        path = str(folder / "metrics.json")
        return StepResult({"metrics": path}, (path,))

    def gate(self, results: Results) -> StepResult:
        from ecg_agent_ray import registry

        values = {}
        for step, gate in (
            ("finetune", self.config.classifier_gate),
            ("llm", self.config.agent_gate),
        ):
            model = results[step]
            done = registry.promote(
                model["name"], model["version"], gate=gate, reason="agent-pipeline"
            )
            values[done.name] = done.version
        return StepResult({"champions": values})

    # -- what steps share ------------------------------------------------------------------------

    def _common(self, folder: Path) -> list[str]:
        return [f"output={folder}", f"experiment={self.config.experiment}"]

    def _test(self, results: Results) -> list[str]:
        split = json.loads(Path(results["prepare"]["split"]).read_text(encoding="utf-8"))
        return list(split["test"])

    def _data_path(self) -> Path:
        from ecg_agent_ray import ecg

        given = self.config.data
        return ecg.samples()[0].parent if given == "samples:" else Path(given).expanduser()

    def _data_digest(self) -> dict[str, Any]:
        """Of the signals' names, sizes and times: the bytes of a large data set take too long."""
        total = hashlib.sha256()
        for record in self.records:
            path = _signal(record.path)
            state = path.stat() if path.is_file() else None
            size, changed = (state.st_size, state.st_mtime_ns) if state else (0, 0)
            labels = sorted(record.positives)
            facts = [record.record_id, record.patient_id, labels, size, changed]
            total.update(json.dumps(facts).encode())
        return {"data": total.hexdigest()[:36]}

    def _log_data(self, name: str, digest: str, source: str, context: str) -> None:
        import mlflow
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset

        with warnings.catch_warnings():
            # MLflow has its source for local files twice, and says so each time
            warnings.filterwarnings("ignore", message=".*interpreted in multiple ways.*")
            found = resolve_dataset_source(source)
        make: Any = MetaDataset  # whose property `profile` is abstract to mypy alone
        mlflow.log_input(make(found, name=name, digest=digest[:36]), context=context)


def _digest_of(name: str) -> str:
    from ecg_agent_ray.plugins.tracking import data_digest

    return data_digest([find_config(name)])


def _gate_rules(name: str) -> Any:
    from ecg_agent_ray.registry import load_gate

    return load_gate(name).model_dump(mode="json")


def _header(path: Path) -> Path:
    return path if path.suffix else path.with_suffix(".hea")


def _signal(path: Path) -> Path:
    found = (path.with_suffix(suffix) for suffix in (".dat", ".mat"))
    return next((file for file in found if file.is_file()), path)


def _common_folder(paths: list[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="YAML with the options of AgentChainConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)

    def told(step: StepOutcome) -> None:
        what = f"taken over from run {step.reused}" if step.reused else f"run {step.run_id}"
        print(f"{step.name}: {what}", file=sys.stderr, flush=True)  # noqa: T201

    try:
        config = load_config(AgentChainConfig, options.config, options.overrides)
        done = run_agent_chain(config, report=told)
    except EcgAgentError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(json.dumps(done.to_dict()))  # noqa: T201
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
