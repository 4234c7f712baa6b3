"""``bench``: how fast things are, as ratios taken in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ecg_agent_ray._cli.output import console, emit, stderr_progress

__all__ = ["register"]

AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Output = Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Measure speed, as ratios taken in one run.", no_args_is_help=True)
    group.command("measurement")(measurement)
    group.command("agent")(agent)
    group.command("training")(training)
    app.add_typer(group, name="bench")


def measurement(
    records: Annotated[int | None, typer.Option(min=1, help="Only the first N records.")] = None,
    lead: Annotated[str, typer.Option(help="The lead that all methods measure.")] = "II",
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Recordings, such as LUDB; left out: the shipped.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times over all records.")] = 5,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Time the measurement tool against the paper's method and neurokit2's best.

    Records a second and core, one thread, without reading; the methods take turns in one run, and
    a ratio is given with its spread over the rounds.
    """
    from ecg_agent_ray.pipelines.bench import bench_measurement

    with stderr_progress("timing") as progress:
        result = bench_measurement(
            directory, lead=lead, n_records=records, rounds=rounds, progress=progress
        )
    _finish(result, output, as_json, _measurement_table)


def agent(
    dialogues: Annotated[
        Path | None,
        typer.Option(help="ECG-MTD rows; left out: dialogues about the shipped recordings."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, an agent folder or builtin:")
    ] = "builtin:",
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Engine to time; repeatable. Left out: all that are installed."),
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Only the first N dialogues.")] = 10,
    in_flight: Annotated[
        int, typer.Option(min=1, help="Dialogues at a time, against one at a time; 1: not timed.")
    ] = 8,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Time an assistant turn against the published agent's loop, on the CPU.

    The loop encodes the whole history at each turn and generates greedily, unconstrained, up to
    512 tokens, in the faster of fp32 and bf16. All write the same turns of the same dialogues,
    given the reference's history.
    """
    from ecg_agent_ray.pipelines.bench import bench_agent
    from ecg_agent_ray.registry import resolve

    if model.startswith("models:/"):
        model = str(resolve(model))
    with stderr_progress("writing turns", unit="turns") as progress:
        result = bench_agent(
            dialogues,
            model,
            engines=engine,
            n_dialogues=n,
            in_flight=in_flight,
            progress=progress,
        )
    _finish(result, output, as_json, _agent_table)


def training(
    ptbxl: Annotated[
        Path | None, typer.Option(help="PTB-XL tree; left out: the shipped records.")
    ] = None,
    workers: Annotated[
        list[int] | None, typer.Option(min=1, help="Workers to compare; repeatable. 1 and 2.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Timed epochs of a job.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Of all workers together.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Jobs for each number of workers.")] = 1,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Time epochs of classifier training with one and with two CPU workers, and the loader."""
    from ecg_agent_ray.pipelines.bench import bench_training

    with stderr_progress("training", unit="jobs") as progress:
        result = bench_training(
            ptbxl,
            workers=workers or (1, 2),
            epochs=epochs,
            batch_size=batch_size,
            rounds=rounds,
            progress=progress,
        )
    _finish(result, output, as_json, _training_table)


def _finish(result: dict[str, Any], output: Path | None, as_json: bool, show: Any) -> None:
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if as_json:
        emit(result)
        return
    console.print(show(result))
    console.print(f"{result['hardware']['cpu']}, {result['hardware']['cores']} cores")


def _measurement_table(result: dict[str, Any]) -> Table:
    table = Table(
        title=f"measurement, lead {result['lead']}, {result['n_records']} records of "
        f"{result['seconds_per_record']:g} s, {result['rounds']} rounds"
    )
    table.add_column("method", no_wrap=True)
    for name in ("records/s, core", "ms/record", "default is faster"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, timing in result["methods"].items():
        times = result["speedup"].get(f"default_over_{name}")
        low, high = timing["spread"]
        table.add_row(
            name.replace("_", " "),
            f"{timing['records_per_s_per_core']:.1f} ({low:.1f}–{high:.1f})",
            f"{timing['ms_per_record']:.1f}",
            ""
            if times is None
            else f"{times['median']:.1f}x ({times['min']:.1f}–{times['max']:.1f})",
        )
    return table


def _agent_table(result: dict[str, Any]) -> Table:
    paper = result["engines"]["paper_loop"]
    table = Table(
        title=f"agent {result['model']}, {result['n_turns']} turns of {result['n_dialogues']} "
        f"dialogues; paper's loop in {paper['dtype']}"
    )
    table.add_column("engine", no_wrap=True)
    for name in ("s/turn", "faster", "tool's name, s", "first answer token, s", "next action"):
        table.add_column(name, justify="right")
    for name, timing in result["engines"].items():
        times = result["speedup"].get(name, {})
        shown = [timing[key] for key in ("turn_s", "tool_name_s", "first_answer_token_s")]
        turn, tool, answer = ("—" if value is None else f"{value:.3f}" for value in shown)
        faster = f"{times['turn_s']:.1f}x" if times else ""
        accuracy = f"{timing['next_action_accuracy']:.1%}"
        table.add_row(name.replace("_", " "), turn, faster, tool, answer, accuracy)
    if batch := result["batch"]:
        times = f"{batch['ratio']:.1f}x the dialogues/s of one"
        table.caption = f"{batch['in_flight']} dialogues at a time: {times}"
    return table


def _training_table(result: dict[str, Any]) -> Table:
    table = Table(title=f"epochs, {result['data']} records, batch {result['batch_size']}")
    for name in ("workers", "s/epoch", "of the first"):
        table.add_column(name, justify="right")
    for count, seconds in result["epoch_s"].items():
        ratios = [value for key, value in result["ratio"].items() if key.startswith(f"{count}_")]
        spread = f"{seconds['median']:.2f} ({seconds['min']:.2f}–{seconds['max']:.2f})"
        table.add_row(count, spread, f"{ratios[0]:.2f}" if ratios else "")
    rates = result["loader"]["records_per_s_per_core"]
    parts = ", ".join(f"{rate} from {place}" for place, rate in rates.items())
    table.caption = f"loader, records/s of a core: {parts}"
    return table
