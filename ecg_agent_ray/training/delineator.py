"""Train the delineation network with Ray Train, write it for ONNX Runtime, judge the held-out fold.

result = train_delineator(load_config(DelineatorTrainConfig, "config.yaml", ["steps=500"]))
result.model       # model.onnx, what ECG_AGENT_DELINEATOR may name
result.metrics     # by lead, as `evaluate measurement` writes them; empty without hold_out
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.plugins.environment import variables
from ecg_agent_ray.training.data_parallel import cpus_for, fit
from ecg_agent_ray.training.delineator_config import DelineatorTrainConfig
from ecg_agent_ray.training.delineator_data import held_out
from ecg_agent_ray.training.delineator_loop import MEAN_FILE, train_loop

if TYPE_CHECKING:
    from ecg_agent_ray.plugins.tracking import TrackedRun

__all__ = ["DelineatorTrainResult", "train_delineator"]

_HEADLINE = ("mae_ms", "bias_ms", "sd_ms", "missing")


@dataclass(frozen=True)
class DelineatorTrainResult:
    """Outcome of a job. ``metrics[database][lead]`` has the headline figures of the held-out
    records."""

    model: Path
    run_id: str
    metrics: dict[str, dict[str, Any]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What the job prints as its one JSON line."""
        return {
            "run_id": self.run_id,
            "model": str(self.model),
            "metrics": self.metrics,
            "seconds": round(self.seconds, 1),
        }


def train_delineator(config: DelineatorTrainConfig) -> DelineatorTrainResult:
    """Run the job described by ``config``.

    Raises
    ------
    ConfigError
        Data that are not there, or a fold that does not exist.
    MissingDependencyError
        The ``onnx`` package, which writes the model, is not installed.
    TrainingError
        The workers failed more than ``distributed.max_failures`` times.
    """
    from ecg_agent_ray.plugins.local_cluster import local_ray
    from ecg_agent_ray.plugins.tracking import tracked_run

    started = time.perf_counter()
    config = _resolved(config)
    params = config.model_dump(mode="json")
    with (
        local_ray(num_cpus=cpus_for(config.distributed)),
        tracked_run(config.name, params=params, experiment=config.experiment) as run,
    ):
        model = _fit(config, run)
        metrics = _evaluate(config, model) if config.hold_out else {}
        for database, by_lead in metrics.items():
            for lead, values in by_lead.items():
                run.log_metrics({f"{database}_{lead}": values})
        run.log_artifacts(model.parent, "model")
        run_id = run.run_id
    return DelineatorTrainResult(model, run_id, metrics, time.perf_counter() - started)


def _resolved(config: DelineatorTrainConfig) -> DelineatorTrainConfig:
    """Absolute paths, since workers run elsewhere."""
    values = config.model_dump()
    values["output"] = str(Path(config.output).expanduser().resolve())
    for source in (*values["annotated"], *values["unannotated"]):
        source["path"] = str(Path(source["path"]).expanduser().resolve())
        if not Path(source["path"]).is_dir():
            raise ConfigError(f"no folder at {source['path']}")
    if config.hold_out and config.hold_out.fold >= config.hold_out.folds:
        raise ConfigError(f"hold_out: there is no fold {config.hold_out.fold}")
    return DelineatorTrainConfig.model_validate(values)


def _fit(config: DelineatorTrainConfig, run: TrackedRun) -> Path:
    result = fit(
        train_loop,
        {"config": config.model_dump()},
        name=config.name,
        storage=Path(config.output) / "checkpoints",
        workers=config.distributed,
        run=run,
        keep=1,
    )
    return _export(config, Path(result.checkpoint.path))


def _export(config: DelineatorTrainConfig, checkpoint: Path) -> Path:
    import torch

    from ecg_agent_ray.training.delineator_network import WaveUNet, export_onnx

    network = WaveUNet(config.widths)
    network.load_state_dict(torch.load(checkpoint / MEAN_FILE, weights_only=True))
    folder = Path(config.output) / "model"
    folder.mkdir(parents=True, exist_ok=True)
    return export_onnx(network, folder / "model.onnx")


def _evaluate(config: DelineatorTrainConfig, model: Path) -> dict[str, dict[str, Any]]:
    """The measurement tool with this network on the records it has not seen."""
    from ecg_agent_ray.evaluation.measurement import evaluate_measurement

    result: dict[str, dict[str, Any]] = {}
    with variables({"ECG_AGENT_DELINEATOR": str(model)}):
        for source in config.annotated:
            records = [record.record_id for record in held_out(source, config.hold_out)]
            leads = config.evaluate_leads if source.database == "ludb" else ["auto"]
            for lead in leads if records else ():
                metrics = evaluate_measurement(
                    source.database,
                    source.path,
                    output=Path(config.output) / "evaluation" / f"{source.database}-{lead}",
                    lead=lead,
                    records=records,
                    track=False,
                )
                headline = {name: metrics[name] for name in _HEADLINE}
                result.setdefault(source.database, {})[lead] = headline
    return result
