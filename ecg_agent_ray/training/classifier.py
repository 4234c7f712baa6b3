"""Fine-tune an ECG classifier with Ray Train: plan the data, run the folds, keep the best, report.

    result = finetune_classifier(load_config(ClassifierFinetuneConfig, "config.yaml", ["epochs=5"]))
    result.path        # classifier folder: model.safetensors, config.json, README.md, metrics.json
    result.run_id      # MLflow run

Needs a running or reachable Ray (``plugins.local_cluster.local_ray`` starts one) and an MLflow
store (see ``plugins.tracking``). The loop itself is ``training.classifier_loop``.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.classifier.bundle import Classifier, build_network, load_classifier
from ecg_agent_ray.classifier.dataset import LabelledRecord, read_source
from ecg_agent_ray.classifier.labels import LABELS, LEAD_CONFIGURATIONS
from ecg_agent_ray.errors import ConfigError, TrainingError
from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig, DataSource
from ecg_agent_ray.training.classifier_report import (
    calibrate,
    evaluate_logits,
    write_report,
)

if TYPE_CHECKING:
    from ecg_agent_ray.plugins.tracking import TrackedRun

__all__ = ["ClassifierTrainResult", "finetune_classifier"]

logger = logging.getLogger(__name__)

SAMPLES = "samples:"
HEADLINE = ("macro_auroc", "micro_auroc", "macro_auprc", "bce", "ece", "n_records")
_DATA = (".dat", ".mat")
Logits = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class ClassifierTrainResult:
    """Outcome of a job. ``metrics`` has the keys of ``metrics.json``; ``history`` a dict per epoch
    of the final run."""

    path: Path
    run_id: str
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What the job prints as its one JSON line."""
        return {
            "run_id": self.run_id,
            "path": str(self.path),
            "metrics": {name: self.metrics[name] for name in HEADLINE if name in self.metrics},
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True)
class _Plan:
    """Everything decided before a worker starts."""

    config: ClassifierFinetuneConfig
    records: list[LabelledRecord]
    configurations: tuple[str, ...]
    output: Path
    storage: Path
    start: Path
    folds: list[list[LabelledRecord]]
    held_out: list[LabelledRecord]


def finetune_classifier(config: ClassifierFinetuneConfig) -> ClassifierTrainResult:
    """Run the job described by ``config`` and return where its classifier is.

    Raises
    ------
    ConfigError
        Data or labels that cannot be trained on.
    ModelNotFoundError, CheckpointError
        ``init`` is no classifier.
    TrainingError
        The workers failed more than ``distributed.max_failures`` times.
    """
    from ecg_agent_ray.plugins.tracking import data_digest, tracked_run

    started = time.perf_counter()
    output = Path(config.output).resolve()
    plan = _plan(config, output)
    tags = {"lead_configuration": config.leads, "base_model": config.init or "scratch"}
    with tracked_run(
        config.name, params=_flat(config.model_dump()), tags=tags, experiment=config.experiment
    ) as run:
        signals = {record.path.with_suffix(suffix) for record in plan.records for suffix in _DATA}
        digest = data_digest(path for path in signals if path.is_file())
        run.log_data(
            "ecg-records",
            digest,
            source=", ".join(source.path for source in config.data),
            profile={"records": len(plan.records)},
        )
        run.set_tags({"data_digest": digest})
        metrics, history = _train(plan, run)
        run.log_metrics({name: metrics[name] for name in HEADLINE if metrics.get(name) is not None})
        run.log_artifacts(output / "classifier", "classifier")
        run_id = run.run_id
    return ClassifierTrainResult(
        output / "classifier", run_id, metrics, history, time.perf_counter() - started
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as MLflow parameters, ``optimizer.lr`` and the like."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _plan(config: ClassifierFinetuneConfig, output: Path) -> _Plan:
    records = _read(config.data)
    excluded = {record.patient_id for record in _read(config.exclude_patients_of)}
    kept = [record for record in records if record.patient_id not in excluded]
    if len(kept) < len(records):
        logger.info("%d records of excluded patients left out", len(records) - len(kept))
    if not kept:
        raise ConfigError("no record is left to train on", hint="see exclude_patients_of")
    held_out = [] if config.cross_validation_folds else _held_out(config, kept)
    # beside the checkpoints, which every node can read
    storage = Path(config.storage or output / "checkpoints").resolve()
    classifier = _start_classifier(config, kept)
    start = classifier.save(storage / f"start-{time.strftime('%Y%m%d-%H%M%S')}")
    configurations = LEAD_CONFIGURATIONS if config.leads == "12-lead" else (config.leads,)
    return _Plan(
        config=config,
        records=kept,
        configurations=configurations,
        output=output,
        storage=storage,
        start=start,
        folds=_folds(config, kept),
        held_out=held_out,
    )


def _read(sources: Sequence[DataSource]) -> list[LabelledRecord]:
    records: dict[str, LabelledRecord] = {}
    for source in sources:
        path: str | Path = source.path
        if source.path == SAMPLES:
            from ecg_agent_ray import ecg

            path = ecg.samples()[0].parent
        for record in read_source(source.kind, path):
            records.setdefault(record.record_id, record)
    return list(records.values())


def _start_classifier(
    config: ClassifierFinetuneConfig, records: Sequence[LabelledRecord]
) -> Classifier:
    """The network to train with the labels it will know: the base's own, and those with enough
    positives here."""
    import torch

    torch.manual_seed(config.seed)
    counts = Counter(code for record in records for code in record.positives & record.assessed)
    if config.init is None:
        sizes = {"num_labels": len(LABELS), **config.network.sizes}
        network = build_network(config.network.architecture, sizes)
        base = Classifier(network=network, assessed=())
        _set_head_to_prevalence(network, base.labels, records)
    else:
        base = _load_base(config)
    taught = {code for code, count in counts.items() if count >= config.min_positives}
    assessed = tuple(c for c in base.labels if c in taught or c in base.assessed)
    if not assessed:
        raise ConfigError(
            f"no label has {config.min_positives} positives in {len(records)} records",
            hint="lower min_positives or give more data",
        )
    if config.feature_grad_mult is not None and hasattr(base.network, "encoder"):
        base.network.encoder.feature_grad_mult = config.feature_grad_mult
    base.assessed = assessed
    if config.leads != "12-lead":
        base.lead_configurations = (config.leads,)
    base.metadata = {
        "base": config.init or "scratch",
        "records": len(records),
        "positives": {code: counts[code] for code in assessed},
    }
    return base


def _load_base(config: ClassifierFinetuneConfig) -> Classifier:
    from ecg_agent_ray.classifier.checkpoint import load_checkpoint

    assert config.init is not None
    if Path(config.init).is_file():
        network = load_checkpoint(config.init, num_heads=config.num_heads)
        if network.config.num_labels == 0:
            network.reset_head(len(LABELS))
            # nothing has been taught yet
            return Classifier(network=network, assessed=())
    return load_classifier(config.init, num_heads=config.num_heads)


def _set_head_to_prevalence(
    network: Any, labels: Sequence[str], records: Sequence[LabelledRecord]
) -> None:
    """Start from each label's frequency, so that the first steps are not spent on learning it."""
    import torch

    from ecg_agent_ray.classifier.dataset import label_matrix

    targets, mask = label_matrix(records, labels)
    share = ((targets * mask).sum(0) + 0.5) / (mask.sum(0) + 1.0)
    with torch.no_grad():
        network.proj.bias.copy_(torch.logit(torch.from_numpy(share)))


def _folds(
    config: ClassifierFinetuneConfig, records: list[LabelledRecord]
) -> list[list[LabelledRecord]]:
    """Patient-grouped, of equal size as far as patients allow; same seed, same folds."""
    count = config.cross_validation_folds
    if not count:
        return []
    patients = _shuffled_patients(records, config.validation.seed)
    if len(patients) < count:
        raise ConfigError(f"{len(patients)} patients cannot make {count} folds")
    fold_of = {patient: index % count for index, patient in enumerate(patients)}
    return [[r for r in records if fold_of[r.patient_id] == index] for index in range(count)]


def _shuffled_patients(records: Sequence[LabelledRecord], seed: int) -> list[str]:
    patients = sorted({record.patient_id for record in records})
    np.random.default_rng(seed).shuffle(patients)
    return patients


def _held_out(
    config: ClassifierFinetuneConfig, records: list[LabelledRecord]
) -> list[LabelledRecord]:
    wanted = config.validation.records
    if wanted is not None:
        unknown = set(wanted) - {record.record_id for record in records}
        if unknown:
            raise ConfigError(f"validation.records: no record {', '.join(sorted(unknown))}")
        patients = {record.patient_id for record in records if record.record_id in wanted}
    else:
        shuffled = _shuffled_patients(records, config.validation.seed)
        patients = set(shuffled[: round(len(shuffled) * config.validation.fraction)])
    held = [record for record in records if record.patient_id in patients]
    if len(held) == len(records):
        raise ConfigError("validation holds out every record")
    return held


def _train(plan: _Plan, run: TrackedRun) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All Ray Train runs of the job; writes the classifier folder."""
    config = plan.config
    fold_of: list[int] | None
    if plan.folds:
        parts: list[Logits] = []
        for index, fold in enumerate(plan.folds):
            held = {record.record_id for record in fold}
            rest = [record for record in plan.records if record.record_id not in held]
            folder, logits, _ = _fit(plan, f"fold-{index}", rest, fold, None)
            parts.append(logits)
            shutil.rmtree(folder.parent, ignore_errors=True)
        judged = [record for fold in plan.folds for record in fold]
        fold_of = [index for index, fold in enumerate(plan.folds) for _ in fold]
        logits = {leads: np.concatenate([p[leads] for p in parts]) for leads in parts[0]}
        folder, _, history = _fit(plan, "final", plan.records, [], run)
    else:
        fold_of = None
        judged = plan.held_out
        held = {record.record_id for record in judged}
        rest = [record for record in plan.records if record.record_id not in held]
        folder, logits, history = _fit(plan, "final", rest, judged, run)
    classifier = load_classifier(folder)
    if config.calibrate:
        calibrate(classifier, judged, logits, name=f"platt-cv{config.cross_validation_folds}")
    metrics = evaluate_logits(classifier, judged, logits, fold_of=fold_of)
    write_report(classifier, plan.output / "classifier", config, metrics, history)
    return metrics, history


def _fit(
    plan: _Plan,
    name: str,
    train: list[LabelledRecord],
    validation: list[LabelledRecord],
    run: TrackedRun | None,
) -> tuple[Path, Logits, list[dict[str, Any]]]:
    """One Ray Train run: (folder of its chosen checkpoint, validation logits, metrics by epoch).

    A run with validation records keeps its epoch of lowest validation loss, but a fold keeps its
    last one: choosing by the records it is judged on would flatter it.
    """
    import ray.train as ray_train
    from ray.train.torch import TorchConfig, TorchTrainer

    from ecg_agent_ray.training.classifier_loop import VALIDATION_FILE, train_loop

    # mypy sees the signature of Ray Train V1 here
    run_config: Any = ray_train.RunConfig
    config, spread = plan.config, plan.config.distributed
    # Ray Train continues a run of the same name; a job always starts a new one
    run_name = f"{config.name}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    choose_best = bool(validation) and not plan.folds
    order: dict[str, Any] = (
        {"checkpoint_score_attribute": "validation_loss", "checkpoint_score_order": "min"}
        if choose_best
        else {}
    )
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "config": config.model_dump(),
            "start": str(plan.start),
            "train": train,
            "validation": validation,
            "configurations": list(plan.configurations),
        },
        torch_config=TorchConfig(backend=spread.backend),
        scaling_config=ray_train.ScalingConfig(
            num_workers=spread.num_workers,
            use_gpu=spread.use_gpu,
            resources_per_worker={"CPU": spread.cpus_per_worker},
        ),
        run_config=run_config(
            name=run_name,
            storage_path=str(plan.storage),
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=2, **order),
            failure_config=ray_train.FailureConfig(max_failures=spread.max_failures),
            callbacks=[run.callback()] if run else None,
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(spread.threads_per_worker)}},
        ),
    )
    logger.info("%s: %d records to train on, %d held out", name, len(train), len(validation))
    try:
        result = trainer.fit()
    except Exception as error:
        raise TrainingError(f"{name}: training failed: {error}") from error
    checkpoint = (
        result.get_best_checkpoint("validation_loss", "min") if choose_best else result.checkpoint
    )
    if checkpoint is None:
        raise TrainingError(f"{name}: Ray Train ended without a checkpoint in {plan.storage}")
    folder = Path(checkpoint.path)
    with np.load(folder / VALIDATION_FILE, allow_pickle=False) as saved:
        logits = {leads: saved[leads].astype(np.float64) for leads in saved.files}
    frame = result.metrics_dataframe
    history = [] if frame is None else frame.to_dict("records")
    return folder, logits, history
