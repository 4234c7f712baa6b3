"""One Ray Train job of torch workers that share their gradients, as every network here but the LLM
is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecg_agent_ray.errors import TrainingError
from ecg_agent_ray.training.classifier_config import DataParallelConfig
from ecg_agent_ray.training.deepspeed_setup import deepspeed_environment

if TYPE_CHECKING:
    from ecg_agent_ray.plugins.tracking import TrackedRun

__all__ = ["cpus_for", "fit"]


def cpus_for(workers: DataParallelConfig) -> int:
    """What a local cluster needs: one CPU beside the workers, for Ray Train's controller."""
    return math.ceil(workers.num_workers * workers.cpus_per_worker) + 1


def fit(
    train_loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    *,
    name: str,
    storage: Path,
    workers: DataParallelConfig,
    run: TrackedRun,
    keep: int,
    best_by: str | None = None,
    deepspeed: bool = False,
) -> Any:
    """Run ``train_loop(settings)`` on every worker; Ray Train's result, which has a checkpoint.

    Parameters
    ----------
    name : of the job, in errors and in ``storage``
    storage : folder of the checkpoints, which every node can reach
    run : MLflow run that takes what rank 0 reports
    keep : number of checkpoints that stay
    best_by : reported metric by which they stay, the lowest; None keeps the latest
    deepspeed : workers use it

    Raises
    ------
    TrainingError
        The workers failed more than ``workers.max_failures`` times, or left no checkpoint.
    """
    import ray.train as ray_train
    from ray.train.torch import TorchConfig, TorchTrainer

    # mypy sees the signature of Ray Train V1 here
    run_config: Any = ray_train.RunConfig
    order: dict[str, Any] = (
        {"checkpoint_score_attribute": best_by, "checkpoint_score_order": "min"} if best_by else {}
    )
    environment = {"OMP_NUM_THREADS": str(workers.threads_per_worker)}
    if deepspeed:
        environment |= deepspeed_environment(gpu=workers.use_gpu)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=settings,
        torch_config=TorchConfig(backend=workers.backend),
        scaling_config=ray_train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker},
        ),
        run_config=run_config(
            # Ray Train continues a run of the same name; a job always starts a new one
            name=f"{name}-{run.run_id}",
            storage_path=str(storage),
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=keep, **order),
            failure_config=ray_train.FailureConfig(max_failures=workers.max_failures),
            callbacks=[run.callback()],
            worker_runtime_env={"env_vars": environment},
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        raise TrainingError(f"{name}: training failed: {error}") from error
    if result.checkpoint is None:
        raise TrainingError(f"{name}: Ray Train ended without a checkpoint in {storage}")
    return result
