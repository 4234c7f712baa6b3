"""``train pretrain|classifier|llm|delineator``: training jobs from a YAML and overrides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ecg_agent_ray._cli.output import console, emit, key_value_table

__all__ = ["register"]

Config = Annotated[
    Path, typer.Option("--config", help="YAML of the job, or the name of a shipped one.")
]
Configs = Annotated[
    list[Path],
    typer.Option(
        "--config",
        help="YAML of the job, or a shipped one's name; repeatable, later laid over earlier.",
    ),
]
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
    config: Configs,
    overrides: Overrides = None,
    address: Address = None,
    wait: Wait = True,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only estimate memory and time; exit 3 if too large.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON on stdout.")] = False,
) -> None:
    """Fine-tune the LLM of an agent with LoRA."""
    if plan:
        _plan_llm(config, overrides or [], as_json=as_json)
        return
    from ecg_agent_ray.training.llm import finetune_llm, refuse_what_cannot_fit
    from ecg_agent_ray.training.llm_config import LLMFinetuneConfig

    def check(job: LLMFinetuneConfig) -> None:
        if job.distributed.use_gpu is True:
            refuse_what_cannot_fit(job)

    _run("finetune_llm", LLMFinetuneConfig, finetune_llm, before_submitting=check)(
        config, overrides or [], address, wait
    )


def delineator(
    config: Config, overrides: Overrides = None, address: Address = None, wait: Wait = True
) -> None:
    """Train the measurement tool's delineation network."""
    from ecg_agent_ray.training.delineator import train_delineator
    from ecg_agent_ray.training.delineator_config import DelineatorTrainConfig

    _run("train_delineator", DelineatorTrainConfig, train_delineator)(
        config, overrides or [], address, wait
    )


def _plan_llm(paths: list[Path], overrides: list[str], *, as_json: bool) -> None:
    from ecg_agent_ray.errors import PlanDoesNotFitError
    from ecg_agent_ray.training.config import load_config
    from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
    from ecg_agent_ray.training.llm_plan import check_fits, plan_llm

    config = load_config(LLMFinetuneConfig, paths, overrides)
    plan = plan_llm(config)
    refused: PlanDoesNotFitError | None = None
    try:
        check_fits(config)
    except PlanDoesNotFitError as error:
        refused = error
    if as_json:
        emit({**plan.to_dict(), **({"refused": str(refused)} if refused else {})})
    else:
        _print_plan(plan)
    if refused:
        raise refused


def _print_plan(plan: Any) -> None:
    gib = 2**30
    facts = {
        "parameters": f"{plan.parameters:,}, {plan.trainable_parameters:,} trained",
        "ranks": f"{plan.ranks} x {plan.device} ({plan.device_memory / gib:.0f} GiB)",
        **{name: f"{size / gib:.2f} GiB" for name, size in plan.memory.items() if size},
        "memory a rank": f"{plan.total_memory / gib:.2f} GiB, "
        + ("fits" if plan.fits else "does not fit"),
        "tokens/s": f"{plan.tokens_per_second:,.0f}",
    }
    if plan.data:
        facts["one epoch"] = (
            f"{plan.data.dialogues:,} dialogues, {plan.data.tokens:,} tokens, "
            f"{plan.data.rows:,} rows"
        )
        facts["the job"] = f"{plan.steps:,} steps, {plan.hours:.2f} hours"
    facts["taken for granted"] = "; ".join(plan.assumptions)
    console.print(key_value_table(f"plan for {plan.base_model}", facts))


def _run(
    job: str,
    model: type[Any],
    work: Callable[[Any], Any],
    before_submitting: Callable[[Any], None] = lambda _: None,
) -> Callable[[Path | list[Path], list[str], str | None, bool], None]:
    def run(path: Path | list[Path], overrides: list[str], address: str | None, wait: bool) -> None:
        from ecg_agent_ray.training.config import load_config

        # a mistake in the YAML is found here, before a cluster is asked for anything
        config = load_config(model, path, overrides)
        if address is None:
            emit(work(config).to_dict())
            return
        from ecg_agent_ray.training.submit import submit_job

        before_submitting(config)
        emit(submit_job(job, config, address=address, wait=wait))

    return run
