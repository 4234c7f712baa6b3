"""``evaluate agent``: how good an agent is, by the paper's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ecg_agent_ray._cli.output import console, emit
from ecg_agent_ray._cli.recordings import load_classifier_uri
from ecg_agent_ray.errors import ConfigError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Measure how good a model is.", no_args_is_help=True)
    # a group with a single command would otherwise be that command
    group.callback()(lambda: None)
    group.command("agent")(agent)
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
