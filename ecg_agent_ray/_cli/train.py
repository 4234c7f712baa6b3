"""``train pretrain|classifier|llm|delineator``: training jobs from a YAML and overrides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ecg_agent_ray._cli.output import emit

__all__ = ["register"]

Config = Annotated[Path, typer.Option("--config", help="YAML of the job, see jobs/configs.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Override the YAML.")
]
Address = Annotated[
    str | None,
    typer.Option(help="http(s):// of a Ray cluster's job server; left out: here."),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow a submitted job to its end.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Train in a local Ray cluster, or submit to a remote one.")
    group.command("pretrain")(pretrain)
    group.command("classifier")(classifier)
    group.command("llm")(llm)
    group.command("delineator")(delineator)
    app.add_typer(group, name="train")


def pretrain(
    config: Config, overrides: Overrides = None, address: Address = None, wait: Wait = True
) -> None:
    """Pre-train the ECG transformer without labels (W2V + CMSC + RLM)."""
    from ecg_agent_ray.training.pretrain import PretrainConfig, pretrain_classifier

    _run("pretrain_classifier", PretrainConfig, pretrain_classifier)(
        config, overrides or [], address, wait
    )


def classifier(
    config: Config, overrides: Overrides = None, address: Address = None, wait: Wait = True
) -> None:
    """Fine-tune an ECG classifier."""
    from ecg_agent_ray.training.classifier import ClassifierFinetuneConfig, finetune_classifier

    _run("finetune_classifier", ClassifierFinetuneConfig, finetune_classifier)(
        config, overrides or [], address, wait
    )


def llm(
    config: Config, overrides: Overrides = None, address: Address = None, wait: Wait = True
) -> None:
    """Fine-tune the LLM of an agent with LoRA."""
    from ecg_agent_ray.training.llm import finetune_llm
    from ecg_agent_ray.training.llm_config import LLMFinetuneConfig

    _run("finetune_llm", LLMFinetuneConfig, finetune_llm)(config, overrides or [], address, wait)


def delineator(
    config: Config, overrides: Overrides = None, address: Address = None, wait: Wait = True
) -> None:
    """Train the measurement tool's delineation network."""
    from ecg_agent_ray.training.delineator import train_delineator
    from ecg_agent_ray.training.delineator_config import DelineatorTrainConfig

    _run("train_delineator", DelineatorTrainConfig, train_delineator)(
        config, overrides or [], address, wait
    )


def _run(
    job: str, model: type[Any], work: Callable[[Any], Any]
) -> Callable[[Path, list[str], str | None, bool], None]:
    def run(path: Path, overrides: list[str], address: str | None, wait: bool) -> None:
        from ecg_agent_ray.training.config import load_config

        # a mistake in the YAML is found here, before a cluster is asked for anything
        config = load_config(model, path, overrides)
        if address is None:
            emit(work(config).to_dict())
            return
        from ecg_agent_ray.training.submit import submit_job

        emit(submit_job(job, config, address=address, wait=wait))

    return run
