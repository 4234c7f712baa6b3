"""``models list|register|show|diff|promote|rollback|export``: the registry for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from ecg_agent_ray._cli.output import console, emit, key_value_table, stderr_progress
from ecg_agent_ray.errors import GateNotMetError

__all__ = ["register"]

Name = Annotated[str, typer.Argument(help="Registered model, such as ecg-agent.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout, nothing else.")]
Reason = Annotated[str | None, typer.Option(help="Why; goes into the record.")]
ExpectChampion = Annotated[
    str | None,
    typer.Option(help="Refuse (exit 3) unless this version is champion now; none: no champion."),
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Models in the registry: look, promote through a gate, roll back.")
    group.command("list")(list_)
    for command in (register_version, show, diff, promote, rollback, export):
        name = "register" if command is register_version else None
        group.command(name)(command)
    app.add_typer(group, name="models")


def list_(
    name: Annotated[str | None, typer.Argument(help="Only this registered model.")] = None,
    as_json: Json = False,
) -> None:
    """List versions with their aliases and gate results."""
    from ecg_agent_ray.registry import list_models

    versions = list_models(name)
    if as_json:
        for version in versions:
            emit(version.to_dict())
        return
    name_column = Column("model", no_wrap=True)  # it is what the other commands are given
    table = Table(name_column, "version", "aliases", "base model", "created", "gate")
    for version in versions:
        table.add_row(
            version.name,
            str(version.version),
            ", ".join(version.aliases),
            version.tags.get("base_model", ""),
            version.created_at[:16],
            version.tags.get("gate_result", "not judged").split(":")[0],
        )
    console.print(table if versions else "Nothing is registered yet; try `ecg-agent demo`.")


def register_version(
    directory: Annotated[Path, typer.Argument(help="Classifier's or agent's folder, as trained.")],
    run_id: Annotated[
        str | None,
        typer.Option(envvar="MLFLOW_RUN_ID", help="Run that made it; left out: a run of its own."),
    ] = None,
    lead_configuration: Annotated[
        str | None, typer.Option(help="12-lead, I or II; left out: the folder's own, or 12-lead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Register a trained folder as a new version, the challenger."""
    from ecg_agent_ray.registry import register_directory

    version = register_directory(directory, run_id=run_id, lead_configuration=lead_configuration)
    if as_json:
        emit(version.to_dict())
    else:
        console.print(f"registered {version.uri} as {', '.join(version.aliases)}")


def show(
    name: Name,
    version: Annotated[str, typer.Option(help="Number or alias.")] = "champion",
    as_json: Json = False,
) -> None:
    """Show one version: aliases, run, tags, evaluation."""
    from ecg_agent_ray.registry import show as find

    found = find(name, version)
    if as_json:
        emit(found.to_dict())
        return
    facts = {"aliases": ", ".join(found.aliases), "run": found.run_id, "created": found.created_at}
    console.print(key_value_table(found.uri, {**facts, **found.tags}))
    if found.metrics:
        console.print(key_value_table("evaluation", found.metrics))


def diff(
    name: Name,
    first: Annotated[str, typer.Argument(help="Number or alias.")],
    second: Annotated[str, typer.Argument(help="Number or alias.")],
    as_json: Json = False,
) -> None:
    """Show what differs between two versions: configuration, data, metrics."""
    from ecg_agent_ray.registry import diff as compare

    found = compare(name, first, second)
    if as_json:
        emit(found.to_dict())
        return
    table = Table("", *(f"version {number}" for number in found.versions))
    for part in (found.config, found.data, found.metrics):
        for key, values in part.items():
            table.add_row(key, *map(_cell, values))
        table.add_section()
    console.print(table if table.row_count else "No difference.")


def promote(
    name: Name,
    version: Annotated[str, typer.Option(help="Number or alias.")],
    gate: Annotated[
        str | None,
        typer.Option(help="Gate file, or a shipped gate's name. Default: the model's own gate."),
    ] = None,
    expect_champion: ExpectChampion = None,
    force: Annotated[bool, typer.Option("--force", help="Promote past the gate.")] = False,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Make a version champion if the gate lets it pass; exit 3 if not."""
    from ecg_agent_ray.registry import promote as move

    try:
        done = move(
            name,
            version,
            gate=gate,
            expect_champion=expect_champion,
            force=force,
            reason=reason,
        )
    except GateNotMetError as error:
        report = error.report or {}
        if as_json:
            emit({"event": "refused", "name": name, "version": version, "gate": report})
        else:
            console.print(_gate_table(report))
        raise
    _print_promotion(done.to_dict(), as_json=as_json)


def rollback(
    name: Name,
    expect_champion: ExpectChampion = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Make the previous champion champion again."""
    from ecg_agent_ray.registry import rollback as move

    done = move(name, expect_champion=expect_champion, reason=reason)
    _print_promotion(done.to_dict(), as_json=as_json)


def export(
    uri: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/3, builtin:KIND.")],
    output: Annotated[
        Path, typer.Option(help="Directory to make; with gguf or fairseq, the file.")
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="copy; an agent's: merged, gguf-f16, gguf-q8_0, gguf-q4_0; a classifier's: "
            "fairseq (a checkpoint that fairseq-signals reads).",
        ),
    ] = "copy",
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Reload merged weights and hold dialogues with them and with the agent: next "
            "actions, memory and tokens/s of both are printed and kept beside the export.",
        ),
    ] = True,
    dialogues: Annotated[
        str | None,
        typer.Option(
            help="What to check on: ECG-MTD rows. Left out: some about the shipped recordings."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Dialogues to check on, at most.")] = 20,
    as_json: Json = False,
) -> None:
    """Copy a model's directory out of the registry, or write it in another library's form."""
    from ecg_agent_ray.registry import export as copy

    if form == "copy":
        path, checked = copy(uri, output), None
    elif form == "fairseq":
        path, checked = _export_classifier(uri, output), None
    else:
        folder, path = _export_agent(uri, output, form)
        checked = _check_export(folder, path, dialogues, limit) if check else None
    if as_json:
        emit({"uri": uri, "path": str(path), **({"check": checked} if checked else {})})
        return
    console.print(f"{uri} is in {path}")
    if checked:
        console.print(_check_table(checked))


def _export_classifier(uri: str, output: Path) -> Path:
    from ecg_agent_ray.classifier import export_checkpoint, load_classifier
    from ecg_agent_ray.errors import ConfigError, InputError
    from ecg_agent_ray.registry import resolve

    if output.exists():
        raise InputError(f"{output} is already there")
    classifier = load_classifier("builtin:" if uri == "builtin:" else resolve(uri))
    if classifier.network.architecture != "ecg_transformer":
        raise ConfigError(
            f"fairseq-signals has no {classifier.network.architecture} network",
            hint="--format fairseq writes an ecg_transformer",
        )
    return export_checkpoint(classifier.network, output)


def _check_export(agent: Path, export: Path, dialogues: str | None, limit: int) -> dict[str, Any]:
    from ecg_agent_ray.pipelines.export_check import check_export

    with stderr_progress("checking the export", unit="models") as progress:
        return check_export(agent, export, dialogues=dialogues, n=limit, progress=progress)


def _check_table(checked: Mapping[str, Any]) -> Table:
    before, after = checked["original"], checked["export"]
    table = Table(
        "",
        "agent",
        "export",
        title=f"{checked['n_dialogues']} dialogues, {before['turns']} turns; the same action in "
        f"{checked['same_action']:.1%}",
    )
    shown = {
        "next-action accuracy": ("next_action_accuracy", ".3f"),
        "tokens/s": ("tokens_per_second", ".1f"),
        "peak memory, MiB": ("peak_memory_mib", ",.0f"),
        "on disk, MiB": ("file_mib", ",.1f"),
        "seconds to load": ("load_s", ".1f"),
    }
    for title, (key, form) in shown.items():
        table.add_row(title, format(before[key], form), format(after[key], form))
    return table


def _export_agent(uri: str, output: Path, form: str) -> tuple[Path, Path]:
    """The agent's folder, and what was made of it."""
    from ecg_agent_ray.agent.export import GGUF_TYPES, export_gguf, export_merged
    from ecg_agent_ray.errors import ConfigError, InputError
    from ecg_agent_ray.registry import resolve

    kinds = {f"gguf-{kind}": kind for kind in GGUF_TYPES}
    if form != "merged" and form not in kinds:
        raise ConfigError(
            f"unknown format {form!r}", hint=f"copy, fairseq, merged, {', '.join(kinds)}"
        )
    if output.is_file() or (output.is_dir() and (form != "merged" or any(output.iterdir()))):
        raise InputError(f"{output} is already there")
    folder = resolve(uri, kind="agent")
    if form == "merged":
        return folder, export_merged(folder, output)
    return folder, export_gguf(folder, output, kind=kinds[form])


def _cell(value: Any) -> str:
    if value is None:
        return "—"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_promotion(done: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(done)
        return
    if done["gate"]:
        console.print(_gate_table(done["gate"]))
    forced = " (forced)" if done["forced"] else ""
    before = f", before it was version {done['previous']}" if done["previous"] else ""
    console.print(f"{done['name']}: version {done['version']} is champion{forced}{before}")


def _gate_table(report: Mapping[str, Any]) -> Table:
    table = Table("metric", "required", "is", "misses by", "", title=f"gate {report.get('gate')}")
    for row in report.get("results", ()):
        table.add_row(
            row["metric"],
            row["requirement"],
            "missing" if row["value"] is None else f"{row['value']:.4g}",
            f"{row['missed_by']:.4g}" if row["missed_by"] else "",
            row["note"] or ("passed" if row["passed"] else "failed"),
            style=None if row["passed"] else "red",
        )
    return table
