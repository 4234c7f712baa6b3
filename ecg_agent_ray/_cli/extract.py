"""``extract``: a tool over a whole folder of recordings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ecg_agent_ray._cli.output import console, emit, stderr_progress
from ecg_agent_ray._cli.reading import reads_ecg

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command()(reads_ecg(extract))


def extract(
    tool: Annotated[str, typer.Option(help="measurements, classification or explanation.")],
    ecg_dir: Annotated[Path, typer.Option(help="Folder of recordings; searched to its bottom.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the tables.")],
    lead: Annotated[
        str, typer.Option(help="measurements, explanation: a lead's name or auto; or global.")
    ] = "auto",
    method: Annotated[
        str, typer.Option(help="measurements: default, paper or neurokit.")
    ] = "default",
    leads: Annotated[
        str, typer.Option(help="classification, explanation: 12-lead, I or II.")
    ] = "12-lead",
    model: Annotated[
        str,
        typer.Option(help="models:/NAME@ALIAS, a checkpoint or classifier folder, or builtin:"),
    ] = "builtin:",
    label: Annotated[
        str | None,
        typer.Option(help="explanation: the statement; left out: each record's most probable."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Continue what is there, or start anew."),
    ] = True,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 if a file failed.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes, one CPU each; at most, and left out: all CPUs.")
    ] = None,
    track: Annotated[
        bool, typer.Option("--track/--no-track", help="Log options and counts to MLflow.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON on stdout.")] = False,
    *,
    reading: Mapping[str, Any],
) -> None:
    """Run a tool over every recording below a folder and write its table.

    Writes TOOL.csv in the published agent's columns, TOOL.parquet with everything, and errors.csv
    with each file that failed and why. A run that was killed or interrupted goes on where it
    stopped when it is started again with the same options. Ray runs here, or in the cluster that
    RAY_ADDRESS names.
    """
    from ecg_agent_ray.pipelines.extract import extract as run
    from ecg_agent_ray.pipelines.extract_config import make_config

    config = make_config(
        tool=tool,
        ecg_dir=ecg_dir,
        output_dir=output_dir,
        lead=lead,
        method=method,
        leads=leads,
        model=model,
        label=label,
        resume=resume,
        strict=strict,
        workers=workers,
        track=track,
        **reading,
    )
    with stderr_progress(tool) as progress:
        summary = run(config, progress=progress)
    if as_json:
        emit(summary)
    else:
        _show(summary)
    if strict and summary["n_errors"]:
        raise typer.Exit(1)


def _show(summary: dict[str, Any]) -> None:
    before = f", {summary['n_resumed']} of them before" if summary["n_resumed"] else ""
    console.print(
        f"{summary['n_extracted']} of {summary['n_files']} recordings done{before}, "
        f"{summary['n_errors']} failed, {summary['seconds']:.1f} s"
    )
    for error in summary["errors"]:
        line = f"failed: {error['file']}: {error['message']}"
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    for table in summary["tables"]:
        console.print(f"wrote {table}")
