"""Fine-tune an agent's LLM: one Ray Train job, one MLflow run, one agent folder at the end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ecg_agent_ray import __version__
from ecg_agent_ray.agent.base_model import resolve_base_model
from ecg_agent_ray.agent.load import (
    BUILTIN_AGENT,
    MANIFEST_NAME,
    AgentManifest,
    read_manifest,
    write_manifest,
)
from ecg_agent_ray.dialogue import LeadConfiguration, dialogue_files, read_dialogues
from ecg_agent_ray.dialogue.hub import is_hub_name
from ecg_agent_ray.errors import ConfigError, PlanDoesNotFitError, TrainingError
from ecg_agent_ray.plugins.environment import variables
from ecg_agent_ray.plugins.local_cluster import local_ray
from ecg_agent_ray.plugins.tracking import TrackedRun, data_digest, tracked_run
from ecg_agent_ray.training.deepspeed_setup import check_compiler, deepspeed_environment
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_kernels import check_packages
from ecg_agent_ray.training.llm_pairs import read_pairs
from ecg_agent_ray.training.llm_plan import check_fits
from ecg_agent_ray.training.llm_resume import JobRecord, job_digest, unfinished_job

__all__ = ["LLMResult", "finetune_llm", "refuse_what_cannot_fit", "write_agent_folder"]

logger = logging.getLogger(__name__)

_KEPT_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""glibc gives each large tensor's memory back to the kernel, which clears it again for the next:
a fifth of the time of a step on CPUs. With these it is kept."""
_KINDS = {"sft": "dialogues", "dpo": "preference pairs"}


@dataclass(frozen=True)
class LLMResult:
    """Where the trained agent lies and what was measured at its best checkpoint."""

    agent_dir: str
    run_id: str
    data_digest: str
    metrics: dict[str, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def finetune_llm(config: LLMFinetuneConfig) -> LLMResult:
    """Run the job to its end and write the best checkpoint's agent to ``config.output``/agent.

    An unfinished job of the same settings in the same output folder is gone on with, from its last
    checkpoint, unless ``resume`` is never. Uses the running Ray cluster (``RAY_ADDRESS``), else a
    local one for the time of the job. The best checkpoint is that of the lowest validation loss, or
    the last one without validation data.

    Raises:
        PlanDoesNotFitError: GPUs are to be used, and their memory is too small for this.
        ConfigError: the batch cannot be split over the workers.
        MissingDependencyError: no compiler for DeepSpeed's ops.
        TrainingError: the job failed, or lost its cluster, more often than
            ``distributed.max_failures``.
    """
    for left in reversed(range(config.distributed.max_failures + 1)):
        try:
            return _finetune(config)
        except _ClusterLostError as error:
            if not left:
                raise TrainingError(error.message) from error
            logger.warning("%s; going on from the last checkpoint", error.message)
            # what this job has done so far is an unfinished job of the same settings
            config = config.model_copy(update={"resume": "auto"})
    raise AssertionError("unreachable")


class _ClusterLostError(TrainingError):
    """Ray itself ended under the job."""


def _finetune(config: LLMFinetuneConfig) -> LLMResult:
    if config.distributed.use_gpu is True:
        refuse_what_cannot_fit(config)
    check_compiler()
    config = _resolved(config)
    check_packages(config)
    # here, not in the workers: with a cold cache they would all make the same folder at once
    resolve_base_model(config.base_model)
    start = time.perf_counter()
    output = Path(config.output) / "agent"
    items, leads = _read(config)
    paths = [source.path for source in config.sources]
    read = dict.fromkeys([*paths, *filter(None, [config.validation])])
    digest = data_digest([file for path in read for file in dialogue_files(path)])
    start_files = [Path(config.adapter) / "adapter_model.safetensors"] if config.adapter else []
    decisive = job_digest(config, digest + data_digest(start_files))
    earlier = unfinished_job(config, decisive)
    with contextlib.ExitStack() as stack:
        gpu = _use_gpu(config, stack.enter_context(local_ray(num_cpus=_cpus(config))))
        if gpu and config.distributed.use_gpu == "auto":
            refuse_what_cannot_fit(config)
        run = stack.enter_context(
            tracked_run(
                config.name,
                experiment=config.experiment,
                run_id=_tracked_as(earlier),
                params=config.model_dump(mode="json"),
                tags={"base_model": config.base_model, "data_digest": digest},
            )
        )
        run.log_data(
            _data_name(config),
            digest,
            source=", ".join(paths),
            profile={_KINDS[config.objective]: items},
        )
        job = JobRecord(
            digest=decisive,
            name=earlier.name if earlier else run.run_id,
            run_id=run.run_id,
            tracking_uri=run.tracking_uri,
        )
        job.write(config.output)
        result = _fit(config, run, job.name, gpu=gpu)
        metrics, checkpoint = _best(result)
        with checkpoint.as_directory() as folder:
            write_agent_folder(output, Path(folder) / "adapter", config, lead_configuration=leads)
            (output / "README.md").write_text(_card(config, leads, items, metrics))
        kept = {k: metrics[k] for k in ("loss", "validation_loss") if k in metrics}
        run.log_metrics({f"best_{name}": value for name, value in kept.items()})
        job.model_copy(update={"finished": True}).write(config.output)
    return LLMResult(str(output), run.run_id, digest, metrics, time.perf_counter() - start)


def _read(config: LLMFinetuneConfig) -> tuple[int, LeadConfiguration]:
    """Number of training dialogues or pairs, and the lead configuration that the agent gets."""
    found: set[LeadConfiguration | None]
    if config.objective == "dpo":
        pairs = [pair for source in config.sources for pair in read_pairs(source.path)]
        items, found = len(pairs), {pair.lead_configuration for pair in pairs}
    else:
        dialogues = [d for source in config.sources for d in read_dialogues(source.path)]
        items, found = len(dialogues), {d.lead_configuration for d in dialogues}
    common = found.pop() if len(found) == 1 else None
    return items, config.lead_configuration or common or "12-lead"


def _tracked_as(earlier: JobRecord | None) -> str | None:
    """The MLflow run to go on in: the earlier job's where it is still there."""
    import mlflow
    from mlflow.exceptions import MlflowException

    if earlier is None or "MLFLOW_RUN_ID" in os.environ:
        return None
    try:
        found = mlflow.MlflowClient(earlier.tracking_uri).get_run(earlier.run_id)
    except MlflowException:
        logger.warning("MLflow holds no run %s; the job goes on in a new one", earlier.run_id)
        return None
    return earlier.run_id if found.info.lifecycle_stage == "active" else None


def refuse_what_cannot_fit(config: LLMFinetuneConfig) -> None:
    """Raise :class:`PlanDoesNotFitError` where a GPU's memory cannot hold a rank of the job.

    The GPU is ``assume.device``. Of a model whose shape is not known nothing can be said.
    """
    try:
        check_fits(config)
    except ConfigError as error:
        logger.warning("whether the job fits its GPUs is not known: %s", error)
    except PlanDoesNotFitError as error:
        known = f"{error.hint}; for another GPU than {config.assume.device} set assume.device"
        raise PlanDoesNotFitError(error.message, hint=known) from error


def _resolved(config: LLMFinetuneConfig) -> LLMFinetuneConfig:
    """Absolute paths, since workers run elsewhere, and checks across fields."""
    workers, packs = config.distributed.num_workers, config.batch.packs_per_step
    if packs % workers and config.distributed.min_workers is None:
        raise ConfigError(
            f"batch.packs_per_step={packs} is not a multiple of distributed.num_workers={workers}"
        )
    values = config.model_dump()
    values["output"] = str(Path(values["output"]).expanduser().resolve())
    if config.validation is not None:
        values["validation"] = _present(config.validation, "validation")
    if isinstance(config.train, str):
        values["train"] = _present(config.train, "train")
    else:
        for number, source in enumerate(values["train"]):
            source["path"] = _present(source["path"], f"train[{number}].path")
    if values["adapter"] is not None:
        folder = BUILTIN_AGENT if values["adapter"] == "builtin:" else Path(values["adapter"])
        if not (folder / "adapter_config.json").is_file():
            raise ConfigError(f"adapter: no adapter_config.json in {folder}")
        values["adapter"] = str(folder.resolve())
        if config.speech is None and (folder / MANIFEST_NAME).is_file():
            values["speech"] = read_manifest(folder).speech
    values["storage"] = values["storage"] or str(Path(values["output"]) / "checkpoints")
    return LLMFinetuneConfig.model_validate(values)


def _present(source: str, key: str) -> str:
    """Absolute path of a data source; a hub's or a shipped set's name stays, each node has it."""
    if source.startswith("builtin:"):
        dialogue_files(source)
        return source
    if is_hub_name(source):
        return source
    path = Path(source).expanduser().resolve()
    if not path.exists():
        raise ConfigError(f"{key}: no file at {path}")
    return str(path)


def _cpus(config: LLMFinetuneConfig) -> int:
    # one more than the workers need, for Ray Train's controller and data tasks
    return int(config.distributed.num_workers * config.distributed.cpus_per_worker) + 1


def _use_gpu(config: LLMFinetuneConfig, ray: Any) -> bool:
    wanted = config.distributed.use_gpu
    if wanted == "auto":
        wanted = ray.cluster_resources().get("GPU", 0) >= config.distributed.num_workers
        logger.info("use_gpu auto: %s", "GPUs in the cluster" if wanted else "too few GPUs, CPU")
    return bool(wanted)


def _fit(config: LLMFinetuneConfig, run: TrackedRun, name: str, *, gpu: bool) -> Any:
    import ray.exceptions
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from ecg_agent_ray.training.llm_loop import train_worker

    spread = config.distributed
    environment = {
        **deepspeed_environment(gpu=gpu),
        **({} if gpu else _KEPT_MEMORY),
        "OMP_NUM_THREADS": str(spread.threads_per_worker),
    }
    # at run time these are Train V2's classes; to a type checker ray.train still shows V1's
    run_config: Any = ray.train.RunConfig
    scaling: Any = ray.train.ScalingConfig
    workers = (spread.min_workers, spread.num_workers) if spread.min_workers else spread.num_workers
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config.model_dump(mode="json"),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=scaling(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": spread.cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        run_config=run_config(
            name=name,  # Ray Train goes on with a run of the same name
            storage_path=config.storage,
            callbacks=[run.callback()],
            failure_config=ray.train.FailureConfig(max_failures=spread.max_failures),
            checkpoint_config=_retention(config),
            worker_runtime_env={"env_vars": environment},
        ),
    )
    # a report waits until the one before was fetched, which Ray Train does every two seconds: steps
    # shorter than that would wait. The variable is handed on to Ray Train's controller
    quick = variables({"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}, keep=True)
    try:
        with quick:
            return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"fine-tuning failed: {error}") from error
    except ray.exceptions.RayError as error:
        first_line = str(error).splitlines()[0]
        raise _ClusterLostError(f"Ray was lost during fine-tuning: {first_line}") from error


def _retention(config: LLMFinetuneConfig) -> Any:
    import ray.train

    scored = config.validation is not None
    return ray.train.CheckpointConfig(
        num_to_keep=config.keep_checkpoints,
        checkpoint_score_attribute="validation_loss" if scored else None,
        checkpoint_score_order="min" if scored else "max",
    )


def _best(result: Any) -> tuple[dict[str, float], Any]:
    """Metrics and checkpoint of the lowest validation loss, or of the last step."""
    kept: Sequence[tuple[Any, dict[str, Any]]] = result.best_checkpoints or []
    scored = [item for item in kept if "validation_loss" in item[1]]
    if scored:
        checkpoint, metrics = min(scored, key=lambda item: item[1]["validation_loss"])
    elif kept:
        checkpoint, metrics = kept[-1]
    else:
        raise TrainingError("fine-tuning ended without a checkpoint")
    return {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}, checkpoint


def _data_name(config: LLMFinetuneConfig) -> str:
    return ", ".join(Path(source.path).name for source in config.sources)


def _card(config: LLMFinetuneConfig, leads: str, items: int, metrics: dict[str, float]) -> str:
    measured = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(metrics.items()))
    start = f"continued from {config.adapter}" if config.adapter else "trained from scratch"
    return f"""# ECG agent adapter ({leads})

LoRA adapter for `{config.base_model}`, {start} on {items} {_KINDS[config.objective]}
(`{_data_name(config)}`). Not a medical device: for research and development only.

| at the kept checkpoint | |
|---|---|
{measured}

Made by ecg-agent-ray {__version__} with this configuration:

```yaml
{yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip()}
```
"""


def write_agent_folder(
    output: Path, adapter: Path, config: LLMFinetuneConfig, *, lead_configuration: LeadConfiguration
) -> None:
    """Adapter weights plus ``ecg_agent.json``: all that a server needs beside the base model."""
    output.mkdir(parents=True, exist_ok=True)
    shutil.copy(adapter / "adapter_model.safetensors", output)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    # the reference travels, not the cache folder it was resolved to on this machine
    settings["base_model_name_or_path"] = config.base_model
    (output / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True))
    manifest = AgentManifest(
        base_model=config.base_model,
        lead_configuration=lead_configuration,
        classifier=config.classifier,
        speech=config.speech or "open",
    )
    write_manifest(output, manifest)
