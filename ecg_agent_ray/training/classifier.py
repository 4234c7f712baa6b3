"""Fine-tune an ECG classifier with Ray Train: plan the data, run the folds, keep the best, report.

    result = finetune_classifier(load_config(ClassifierFinetuneConfig, "config.yaml", ["epochs=5"]))
    result.path        # classifier folder: model.safetensors, config.json, README.md, metrics.json
    result.run_id      # MLflow run

Uses the running Ray cluster (``RAY_ADDRESS``), else a local one for the time of the job, and the
MLflow store of ``plugins.tracking``. The loop itself is ``training.classifier_loop``.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.classifier.bundle import BUILTIN, Classifier, build_network, load_classifier
from ecg_agent_ray.classifier.calibration import calibrate, choose_thresholds
from ecg_agent_ray.classifier.dataset import LabelledRecord, read_source
from ecg_agent_ray.errors import ConfigError, TrainingError
from ecg_agent_ray.evaluation.classifier_plots import plot_classifier
from ecg_agent_ray.plugins.fetch import fetched
from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig, DataSource
from ecg_agent_ray.training.classifier_loop import Progress, Split, train_loop
from ecg_agent_ray.training.classifier_report import (
    drop_unlearned,
    evaluate_logits,
    write_report,
)
from ecg_agent_ray.training.data_parallel import cpus_for, fit
from ecg_agent_ray.training.strategies import check_strategy

if TYPE_CHECKING:
    from ecg_agent_ray.plugins.tracking import TrackedRun

__all__ = ["ClassifierTrainResult", "finetune_classifier"]

logger = logging.getLogger(__name__)

SAMPLES = "samples:"
HEADLINE = ("macro_auroc", "micro_auroc", "macro_auprc", "bce", "ece", "n_records")
_DATA = (".dat", ".mat")
Logits = dict[str, list[npt.NDArray[np.float64]]]


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
    splits: list[Split]


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
    from ecg_agent_ray.plugins.local_cluster import local_ray
    from ecg_agent_ray.plugins.tracking import data_digest, tracked_run

    started = time.perf_counter()
    output = Path(config.output).resolve()
    plan = _plan(config, output)
    tags = {"lead_configuration": config.leads, "base_model": config.init or "scratch"}
    with (
        local_ray(num_cpus=cpus_for(config.distributed)),
        tracked_run(
            config.name, params=_flat(config.model_dump()), tags=tags, experiment=config.experiment
        ) as run,
    ):
        digest = data_digest(_files(plan.records))
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
        if metrics.get("per_label"):
            plot_classifier(metrics, output / "plots")
            run.log_artifacts(output / "plots", "plots")
        run_id = run.run_id
    return ClassifierTrainResult(
        output / "classifier", run_id, metrics, history, time.perf_counter() - started
    )


def _files(records: Sequence[LabelledRecord]) -> list[Path]:
    """Local files that hold the signals."""
    shards = {Path(record.shard) for record in records if record.shard is not None}
    signals = {record.path.with_suffix(suffix) for record in records for suffix in _DATA}
    return sorted(path for path in shards | signals if path.is_file())


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
    if config.validation.official:
        tested = {record.patient_id for record in kept if record.split == "test"}
        kept = [record for record in kept if record.patient_id not in tested]
        logger.info("the test split's %d patients are left alone", len(tested))
    if not kept:
        raise ConfigError("no record is left to train on", hint="see exclude_patients_of")
    classifier = _start_classifier(config, kept)
    check_strategy(classifier.network, config)
    known = set(classifier.labels)
    kept = [record for record in kept if record.assessed & known]
    splits = _folds(config, kept) if config.cross_validation_folds else [_single(config, kept)]
    # beside the checkpoints, which every node can read
    storage = Path(config.storage or output / "checkpoints").resolve()
    start = classifier.save(storage / f"start-{time.strftime('%Y%m%d-%H%M%S')}")
    return _Plan(
        config=config,
        records=kept,
        configurations=classifier.lead_configurations,
        output=output,
        storage=storage,
        start=start,
        splits=splits,
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
        sizes = {**config.network.sizes, "num_labels": len(config.label_codes)}
        network = build_network(config.network.architecture, sizes)
        base = Classifier(network=network, labels=config.label_codes, assessed=())
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
    base.assessed = assessed
    if config.leads != "12-lead":
        base.lead_configurations = (config.leads,)
    base.lead_configurations = tuple(
        leads for leads in base.lead_configurations if base.assessed_for(leads)
    )
    base.metadata = {
        "base": config.init or "scratch",
        "records": len(records),
        "positives": {code: counts[code] for code in assessed},
    }
    return base


def _load_base(config: ClassifierFinetuneConfig) -> Classifier:
    from ecg_agent_ray.classifier.checkpoint import load_checkpoint

    assert config.init is not None
    codes = config.label_codes
    if config.init != BUILTIN and (path := fetched(config.init)).is_file():
        network = load_checkpoint(path, num_heads=config.num_heads)
        if network.config.num_labels == 0:
            network.reset_head(len(codes))
            # nothing has been taught yet
            return Classifier(network=network, labels=codes, assessed=())
        if network.config.num_labels == len(codes):
            return load_classifier(config.init, labels=codes, num_heads=config.num_heads)
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


def _folds(config: ClassifierFinetuneConfig, records: Sequence[LabelledRecord]) -> list[Split]:
    """Patient-grouped folds of about equal size, the same for the same seed; then all records."""
    count = config.cross_validation_folds
    patients = _shuffled_patients(records, config.validation.seed)
    if len(patients) < count:
        raise ConfigError(f"{len(patients)} patients cannot make {count} folds")
    splits = [
        _split(f"fold-{index}", records, set(patients[index::count])) for index in range(count)
    ]
    return [*splits, _split("final", records, set())]


def _split(name: str, records: Sequence[LabelledRecord], held_out: set[str]) -> Split:
    """All records of the patients ``held_out`` are judged by, the others trained on."""
    inside = [index for index, record in enumerate(records) if record.patient_id in held_out]
    outside = sorted(set(range(len(records))) - set(inside))
    return Split(name, tuple(outside), tuple(inside))


def _shuffled_patients(records: Sequence[LabelledRecord], seed: int) -> list[str]:
    patients = sorted({record.patient_id for record in records})
    np.random.default_rng(seed).shuffle(patients)
    return patients


def _single(config: ClassifierFinetuneConfig, records: Sequence[LabelledRecord]) -> Split:
    wanted = config.validation.records
    if config.validation.official:
        patients = {record.patient_id for record in records if record.split == "valid"}
        if not patients:
            raise ConfigError("validation.official: the data have no validation split")
    elif wanted is not None:
        unknown = set(wanted) - {record.record_id for record in records}
        if unknown:
            raise ConfigError(f"validation.records: no record {', '.join(sorted(unknown))}")
        patients = {record.patient_id for record in records if record.record_id in wanted}
    else:
        shuffled = _shuffled_patients(records, config.validation.seed)
        patients = set(shuffled[: round(len(shuffled) * config.validation.fraction)])
    split = _split("final", records, patients)
    if not split.train:
        raise ConfigError("validation holds out every record")
    return split


def _train(plan: _Plan, run: TrackedRun) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One Ray Train run over all splits; writes the classifier folder."""
    config = plan.config
    folder, progress = _fit(plan, run)
    logits: Logits = {leads: [] for leads in plan.configurations}
    judged: list[LabelledRecord] = []
    fold_of: list[int] = []
    for index, split in enumerate(plan.splits):
        judged += [plan.records[i] for i in split.validation]
        fold_of += [index] * len(split.validation)
        for leads, values in progress.logits[split.name].items():
            logits[leads].append(values.astype(np.float64))
    joined = {leads: np.concatenate(parts) for leads, parts in logits.items()}
    classifier = load_classifier(folder)
    folds = None
    if config.calibrate:
        count = config.cross_validation_folds
        name = f"platt-cv{count}" if count else "platt-validation"
        calibrate(classifier, judged, joined, name=name)
        folds = fold_of if count else _patient_groups(judged)
    elif config.choose_thresholds:
        choose_thresholds(classifier, judged, joined)
    metrics = evaluate_logits(classifier, judged, joined, fold_of=folds)
    if config.drop_unlearned:
        drop_unlearned(classifier, metrics)
    history = progress.history
    write_report(classifier, plan.output / "classifier", config, metrics, history)
    return metrics, history


def _patient_groups(records: Sequence[LabelledRecord], count: int = 5) -> list[int]:
    """Groups of about as many patients, so that a calibration is judged by those it did not see."""
    number = {patient: i for i, patient in enumerate(_shuffled_patients(records, seed=0))}
    return [number[record.patient_id] % count for record in records]


def _fit(plan: _Plan, run: TrackedRun) -> tuple[Path, Progress]:
    """Train all splits: (folder of the last split's chosen checkpoint, everything reported).

    A single split keeps its epoch of lowest validation loss. With folds the last epoch is kept:
    choosing by the records one is judged on would flatter.
    """
    config = plan.config
    choose_best = len(plan.splits) == 1 and bool(plan.splits[0].validation)
    settings = {
        "config": config.model_dump(),
        "start": str(plan.start),
        "records": plan.records,
        "splits": plan.splits,
        "configurations": list(plan.configurations),
    }
    result = fit(
        train_loop,
        settings,
        name=config.name,
        storage=plan.storage,
        workers=config.distributed,
        run=run,
        keep=2,
        best_by="validation_loss" if choose_best else None,
        deepspeed=config.strategy == "deepspeed",
    )
    last = result.checkpoint
    chosen = result.get_best_checkpoint("validation_loss", "min") if choose_best else last
    if chosen is None:
        raise TrainingError(f"no checkpoint in {plan.storage} has a validation loss")
    folder = Path(chosen.path)
    # logits of the chosen epoch, history up to the last one (Ray's result keeps metrics of kept
    # checkpoints only)
    progress = Progress.read(folder)
    progress.history = Progress.read(Path(last.path)).history
    return folder, progress
