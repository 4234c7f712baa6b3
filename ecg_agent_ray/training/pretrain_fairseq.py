"""Run fairseq-signals' own trainer on a Ray cluster that has it installed.

It is on no package registry and needs its own environment, so it runs as a process of its own in a
Ray task, whose ``runtime_env`` (or node) provides ``fairseq-hydra-train``. Checkpoints it writes go
into :func:`ecg_agent_ray.classifier.load_checkpoint`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ecg_agent_ray.errors import MissingDependencyError, TrainingError
from ecg_agent_ray.training.config import StrictConfig

__all__ = ["FairseqTrainConfig", "fairseq_command", "parse_log_line", "run_fairseq"]

_SHARED_KEYS = frozenset(
    [
        "activation_dropout",
        "all_gather",
        "apply_mask",
        "attention_dropout",
        "conv_bias",
        "conv_feature_layers",
        "conv_pos",
        "conv_pos_groups",
        "dropout",
        "dropout_features",
        "dropout_input",
        "encoder_attention_heads",
        "encoder_embed_dim",
        "encoder_ffn_embed_dim",
        "encoder_layerdrop",
        "encoder_layers",
        "extractor_mode",
        "feature_grad_mult",
        "filter",
        "in_d",
        "layer_norm_first",
        "mask_channel_length",
        "mask_channel_min_space",
        "mask_channel_other",
        "mask_channel_prob",
        "mask_channel_selection",
        "mask_length",
        "mask_min_space",
        "mask_other",
        "mask_prob",
        "mask_selection",
        "no_mask_channel_overlap",
        "no_mask_overlap",
        "normalize",
        "saliency",
    ]
)
_PRETRAIN_KEYS = frozenset(
    [
        "codebook_negatives",
        "cross_sample_negatives",
        "final_dim",
        "latent_dim",
        "latent_groups",
        "latent_temp",
        "latent_vars",
        "logit_temp",
        "negatives_from_everywhere",
        "num_negatives",
        "quantize_input",
        "quantize_targets",
        "same_quantizer",
        "target_glu",
    ]
)
_FINETUNE_KEYS = frozenset(
    [
        "final_dropout",
        "freeze_finetune_updates",
        "model_path",
        "no_pretrained_weights",
        "num_labels",
    ]
)
"""Keys of ``model`` in fairseq-signals at commit 6b9e137."""
_EXAMPLES = {
    "pretrain": ("examples/w2v_cmsc/config/pretraining", "w2v_cmsc_rlm"),
    "finetune": ("examples/w2v_cmsc/config/finetuning/ecg_transformer", "diagnosis"),
}


class FairseqTrainConfig(StrictConfig):
    """What ``fairseq-hydra-train`` is started with."""

    name: str = "fairseq-train"
    experiment: str = "ecg-pretraining"
    stage: Literal["pretrain", "finetune"] = "pretrain"
    source_tree: str = Field(description="Checkout of fairseq-signals, for its example YAMLs.")
    config_name: str | None = Field(default=None, description="null: the stage's full-size one.")
    data: str = Field(description="Folder of train.tsv (for pretrain the cmsc one).")
    pretrained: str | None = Field(default=None, description="Checkpoint to fine-tune.")
    num_labels: int = Field(default=71, ge=1, description="Of the finetune stage.")
    model: dict[str, Any] = Field(default_factory=dict, description="Further model.* settings.")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Other settings, as optimization.max_epoch: 10."
    )
    gpus: int = Field(default=1, ge=0, description="On one node.")
    cpus: float = Field(default=4, gt=0)
    runtime_env: dict[str, Any] = Field(
        default_factory=dict, description="Ray runtime_env with fairseq-signals in it."
    )
    executable: str = "fairseq-hydra-train"
    output: str = "outputs/fairseq"

    @model_validator(mode="after")
    def _consistent(self) -> FairseqTrainConfig:
        own = _PRETRAIN_KEYS if self.stage == "pretrain" else _FINETUNE_KEYS
        if unknown := sorted(set(self.model) - own - _SHARED_KEYS):
            raise ValueError(f"model: fairseq-signals has no {', '.join(unknown)}")
        if self.stage == "finetune" and self.pretrained is None:
            raise ValueError("stage finetune needs `pretrained`")
        return self


def fairseq_command(config: FairseqTrainConfig) -> list[str]:
    """The exact command; paths are absolute, since Hydra changes the working directory."""
    folder, name = _EXAMPLES[config.stage]
    settings: dict[str, Any] = {
        "task.data": str(Path(config.data).resolve()),
        "checkpoint.save_dir": str(Path(config.output).resolve() / "checkpoints"),
        "common.log_format": "json",
        "distributed_training.distributed_world_size": max(1, config.gpus),
    }
    if config.stage == "finetune":
        assert config.pretrained is not None
        settings["model.model_path"] = str(Path(config.pretrained).resolve())
        settings["model.num_labels"] = config.num_labels
    settings |= {f"model.{key}": value for key, value in config.model.items()}
    settings |= config.overrides
    return [
        config.executable,
        *(f"{key}={_hydra_value(value)}" for key, value in settings.items()),
        "--config-dir",
        str((Path(config.source_tree) / folder).resolve()),
        "--config-name",
        config.config_name or name,
    ]


def _hydra_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and any(mark in value for mark in "[](){},=:' "):
        # within quotes Hydra takes everything as it is
        return "'" + value.replace("'", "\\'") + "'"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def run_fairseq(config: FairseqTrainConfig) -> dict[str, Any]:
    """Train and log to MLflow; returns ``run_id``, ``path`` of the checkpoints and ``metrics``.

    Raises
    ------
    MissingDependencyError
        ``fairseq-hydra-train`` is not where the job would run.
    TrainingError
        It ended with an error.
    """
    from ecg_agent_ray.plugins.local_cluster import local_ray
    from ecg_agent_ray.plugins.tracking import tracked_run

    local = not config.runtime_env and not os.environ.get("RAY_ADDRESS")
    if local and shutil.which(config.executable) is None:
        raise _missing(config)
    command = fairseq_command(config)
    output = Path(config.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    params = {key: str(value) for key, value in config.model_dump().items()}
    with (
        local_ray(num_cpus=max(1, round(config.cpus))) as ray,
        tracked_run(config.name, params=params, experiment=config.experiment) as run,
    ):
        run.log_text(shlex.join(command), "command.txt")
        task = ray.remote(_run_command).options(
            num_cpus=config.cpus, num_gpus=config.gpus, runtime_env=config.runtime_env or None
        )
        code, lines = ray.get(task.remote(command))
        if code is None:
            raise _missing(config)
        text = "\n".join(lines)
        run.log_text(text, "fairseq.log")
        last: dict[str, float] = {}
        for line in lines:
            values = parse_log_line(line)
            if values:
                step = values.get("train_num_updates", values.get("valid_num_updates"))
                run.log_metrics(values, step=None if step is None else int(step))
                last |= values
        if code:
            end = next((line for line in reversed(lines) if line.strip()), "it wrote nothing")
            raise TrainingError(f"{config.executable} ended with {code}: {end[:300]}")
        run_id = run.run_id
    return {"run_id": run_id, "path": str(output / "checkpoints"), "metrics": last}


def _run_command(command: list[str]) -> tuple[int | None, list[str]]:
    """Exit code (None: no such program) and all it wrote."""
    if shutil.which(command[0]) is None:
        return None, []
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout.splitlines()


def _missing(config: FairseqTrainConfig) -> MissingDependencyError:
    where = "in the given runtime_env" if config.runtime_env else "on this machine"
    return MissingDependencyError(
        f"{config.executable} is not installed {where}",
        hint="fairseq-signals is on no registry: clone github.com/Jwoo5/fairseq-signals, "
        "`pip install -e .` it in its own environment and name that in runtime_env, or train "
        "with `ecg-agent train pretrain`",
    )


def parse_log_line(line: str) -> dict[str, float]:
    """Numbers of a line in fairseq's JSON log form (``… - {"train_loss": "3.2", …}``), else {}."""
    start = line.find("{")
    if start < 0:
        return {}
    try:
        values = json.loads(line[start:])
    except ValueError:
        return {}
    numbers = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        try:
            numbers[str(key)] = float(value)
        except (TypeError, ValueError):
            continue
    return numbers
