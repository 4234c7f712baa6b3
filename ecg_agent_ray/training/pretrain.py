"""Pre-train the ECG transformer with Ray Train: pair segments, train, keep checkpoints.

    result = pretrain_classifier(load_config(PretrainConfig, "config.yaml", ["epochs=5"]))
    result.path        # folder: checkpoint_last.pt, checkpoint_best.pt, metrics.json
    result.run_id      # MLflow run

Checkpoints are in fairseq-signals' form: a fine-tuning job takes them as ``init``. The loop itself
is ``training.pretrain_loop``.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecg_agent_ray.classifier.pretraining_checkpoint import export_pretraining_checkpoint
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.data_parallel import cpus_for, fit
from ecg_agent_ray.training.pretrain_config import PretrainConfig
from ecg_agent_ray.training.pretrain_data import find_pairs, split_pairs
from ecg_agent_ray.training.pretrain_loop import (
    CHECKPOINT_FILE,
    PROGRESS_FILE,
    fresh_model,
    train_loop,
)
from ecg_agent_ray.training.strategies import check_strategy

if TYPE_CHECKING:
    from ecg_agent_ray.plugins.tracking import TrackedRun

__all__ = ["PretrainConfig", "PretrainResult", "pretrain_classifier"]

BEST_FILE = "checkpoint_best.pt"


@dataclass(frozen=True)
class PretrainResult:
    """Outcome of a job. ``path`` is the folder of the checkpoints, ``history`` a dict per epoch."""

    path: Path
    run_id: str
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What the job prints as its one JSON line."""
        return {
            "run_id": self.run_id,
            "path": str(self.path / CHECKPOINT_FILE),
            "metrics": self.metrics,
            "seconds": round(self.seconds, 1),
        }


def pretrain_classifier(config: PretrainConfig) -> PretrainResult:
    """Run the job described by ``config`` and return where its checkpoints are.

    Raises
    ------
    ConfigError
        Too little data for a batch, or a source that cannot be read.
    ModelNotFoundError, CheckpointError
        ``init`` is no pre-training checkpoint.
    TrainingError
        The workers failed more than ``distributed.max_failures`` times.
    """
    from ecg_agent_ray.plugins.local_cluster import local_ray
    from ecg_agent_ray.plugins.tracking import data_digest, tracked_run

    started = time.perf_counter()
    pairs = find_pairs(config)
    train, validation = split_pairs(pairs, config.validation_fraction, config.seed)
    if len(train) < config.batch_size:
        raise ConfigError(
            f"{len(train)} pairs to train on do not fill a batch of {config.batch_size}",
            hint="lower batch_size",
        )
    output = Path(config.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    model = fresh_model(config)
    check_strategy(model, config)
    start = export_pretraining_checkpoint(model, output / "start.pt")
    params = {key: str(value) for key, value in config.model_dump().items()}
    with (
        local_ray(num_cpus=cpus_for(config.distributed)),
        tracked_run(
            config.name,
            params=params,
            tags={"base_model": config.init or "scratch"},
            experiment=config.experiment,
        ) as run,
    ):
        signals = sorted({file for pair in pairs for file in pair.files})
        run.log_data(
            "ecg-segments",
            data_digest(signals),
            source=", ".join(source.path for source in config.data),
            profile={"pairs": len(pairs), "train": len(train), "validation": len(validation)},
        )
        settings = {"start": start, "pairs": pairs, "train": train, "validation": validation}
        history = _fit(config, settings, output, run)
        run.set_tags({"checkpoint": str(output / CHECKPOINT_FILE)})
        run_id = run.run_id
    metrics = history[-1]
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    return PretrainResult(output, run_id, metrics, history, time.perf_counter() - started)


def _fit(
    config: PretrainConfig, settings: dict[str, Any], output: Path, run: TrackedRun
) -> list[dict[str, Any]]:
    """Train; copies the checkpoints to ``output`` and returns the history."""
    result = fit(
        train_loop,
        {"config": config.model_dump(), **settings},
        name=config.name,
        storage=Path(config.storage or output / "checkpoints").resolve(),
        workers=config.distributed,
        run=run,
        keep=2,
        best_by="validation_loss" if settings["validation"] else None,
        deepspeed=config.strategy == "deepspeed",
    )
    last = Path(result.checkpoint.path)
    shutil.copyfile(last / CHECKPOINT_FILE, output / CHECKPOINT_FILE)
    if settings["validation"]:
        best = result.get_best_checkpoint("validation_loss", "min") or result.checkpoint
        shutil.copyfile(Path(best.path) / CHECKPOINT_FILE, output / BEST_FILE)
    history: list[dict[str, Any]] = json.loads((last / PROGRESS_FILE).read_text(encoding="utf-8"))
    return history
