"""``evaluate agent|measurement``: how good an agent and its tools are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ecg_agent_ray._cli.output import console, emit, stderr_progress
from ecg_agent_ray._cli.recordings import load_classifier_uri
from ecg_agent_ray.errors import ConfigError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Measure how good a model is.", no_args_is_help=True)
    group.command("agent")(agent)
    group.command("measurement")(measurement)
    app.add_typer(group, name="evaluate")


def agent(
    output: Annotated[Path, typer.Option(help="Folder for predictions.jsonl and metrics.json.")],
    dialogues: Annotated[
        Path | None, typer.Option(help="Reference dialogues, ECG-MTD rows.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, an agent folder, builtin: or openai:URL#MODEL.")
    ] = "builtin:",
    history: Annotated[str, typer.Option(help="without_gt or with_gt.")] = "without_gt",
    tools: Annotated[
        list[str] | None,
        typer.Option(help="live, recorded, or the paper's CSVs; repeatable. Left out: live."),
    ] = None,
    ecg_dir: Annotated[Path | None, typer.Option(help="Folder of the recordings.")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Classifier of the live tools; left out: the agent's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N dialogues.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Score this file instead of generating.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Metrics as JSON on stdout.")] = False,
) -> None:
    """Hold the dialogues with a model and score it, or score existing predictions."""
    from ecg_agent_ray.agent import load_agent
    from ecg_agent_ray.evaluation import evaluate_agent, score_predictions
    from ecg_agent_ray.registry import resolve

    if history not in ("without_gt", "with_gt"):
        raise ConfigError(f"--history {history!r} is neither without_gt nor with_gt")
    if predictions is not None:
        metrics = score_predictions(predictions, output)
    elif dialogues is None:
        raise ConfigError("give --dialogues to generate, or --predictions to score")
    else:
        wanted = tools or ["live"]
        judged = load_agent(str(resolve(model)) if model.startswith("models:/") else model)
        metrics = evaluate_agent(
            dialogues,
            judged,
            wanted[0] if wanted in (["live"], ["recorded"]) else wanted,
            output=output,
            history=history,
            ecg_dir=ecg_dir,
            classifier=load_classifier_uri(classifier or judged.classifier or "builtin:"),
            limit=limit,
        )
    if as_json:
        emit(metrics)
    else:
        _show(metrics, output)


def _show(metrics: dict[str, Any], output: Path) -> None:
    table = Table(title=f"{metrics['n_dialogues']} dialogues, {metrics['n_turns']} turns")
    table.add_column("metric", style="cyan")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name in (
        "next_action_accuracy",
        "tool_precision",
        "tool_recall",
        "faithfulness",
        "asked_value_stated",
    ):
        value, interval = metrics[name], metrics["intervals"].get(name)
        table.add_row(
            name,
            "—" if value is None else f"{value:.3f}",
            "—" if not interval else f"{interval[0]:.3f} to {interval[1]:.3f}",
        )
    console.print(table)
    console.print(f"wrote {output / 'metrics.json'}")


def measurement(
    database: Annotated[str, typer.Option(help="ludb or qtdb.")],
    directory: Annotated[
        Path, typer.Option("--dir", help="Folder of the database's records and annotations.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for metrics.json, records.csv and plots.")],
    lead: Annotated[
        str, typer.Option(help="A lead's name, auto (best usable) or global (all leads).")
    ] = "auto",
    method: Annotated[str, typer.Option(help="default, neurokit or paper.")] = "default",
    records: Annotated[
        Path | None, typer.Option(help="File of record ids, one a line: only these.")
    ] = None,
    track: Annotated[
        bool, typer.Option("--track/--no-track", help="Log the metrics and plots to MLflow.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Metrics as JSON on stdout.")] = False,
) -> None:
    """Compare the measurement tool with cardiologists' marks, record by record.

    LUDB and QTDB are on PhysioNet. Each record's medians of PR, QRS, QT, QTc and heart rate are set
    against the medians of the marked beats of the lead that was measured, and each fiducial against
    its mark; beside them stand the limits of IEC 60601-2-25.
    """
    from ecg_agent_ray.evaluation import evaluate_measurement

    with stderr_progress("measuring") as progress:
        metrics = evaluate_measurement(
            database,
            directory,
            output=output,
            lead=lead,
            method=method,
            records=None if records is None else read_ids(records),
            track=track,
            progress=progress,
        )
    if as_json:
        emit(metrics)
    else:
        _show_measurement(metrics, output)


def read_ids(path: Path) -> list[str]:
    """Record ids, one a line; raises :class:`ConfigError` where there are none."""
    try:
        ids = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read record ids from {path}: {error}") from error
    if not ids:
        raise ConfigError(f"{path} names no record")
    return ids


def _show_measurement(metrics: dict[str, Any], output: Path) -> None:
    table = Table(
        title=f"{metrics['database'].upper()}, {metrics['n_records']} records, "
        f"lead {metrics['lead']}, method {metrics['method']}"
    )
    for name in ("interval", "n", "missing", "MAE, ms", "bias, ms", "SD, ms", "IEC", "within"):
        table.add_column(name, justify="left" if name == "interval" else "right", no_wrap=True)
    limits = {"pr": "pq", "qrs": "qrs", "qt": "qt"}
    for name, title in {"pr": "PR", "qrs": "QRS", "qt": "QT", "qtc": "QTc"}.items():
        iec = metrics["iec_60601_2_25"].get(limits.get(name, ""))
        table.add_row(
            title,
            str(metrics["n"][name]),
            _text(metrics["missing"][name], "{:.1%}"),
            *(_text(metrics[key][name]) for key in ("mae_ms", "bias_ms", "sd_ms")),
            "" if iec is None else f"{iec['limit_bias_ms']:g} / {iec['limit_sd_ms']:g}",
            "" if iec is None else {True: "yes", False: "no", None: "—"}[iec["passed"]],
        )
    console.print(table)
    fiducials = Table(title=f"fiducials within 150 ms, {metrics['beats']['marked']} marked beats")
    for name in ("fiducial", "sensitivity", "PPV", "bias, ms", "SD, ms"):
        fiducials.add_column(name, justify="left" if name == "fiducial" else "right")
    for name, found in metrics["fiducials"].items():
        shares = (_text(found[key], "{:.1%}") for key in ("sensitivity", "ppv"))
        fiducials.add_row(name, *shares, *(_text(found[key]) for key in ("bias_ms", "sd_ms")))
    console.print(fiducials)
    heart_rate, false_p = metrics["heart_rate"], metrics["false_p"]
    console.print(
        f"heart rate: MAE {_text(heart_rate['mae_bpm'], '{:.2f}')} bpm; "
        f"PR given for {len(false_p['records'])} of {false_p['n_without_p']} records without P; "
        f"{len(metrics['largest_errors'])} intervals off by more than 100 ms, "
        f"{metrics['large_errors_without_note']} of them not called doubtful"
    )
    for failure in metrics["failed"]:
        console.print(f"failed: {failure['record_id']}: {failure['error']}", style="yellow")
    console.print(f"wrote {output / 'metrics.json'}, records.csv and plots/bland_altman.png")


def _text(value: Any, form: str = "{:.1f}") -> str:
    return "—" if value is None else form.format(value)
