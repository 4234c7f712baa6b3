"""``evaluate agent|classifier|measurement|explanation``: how good an agent and its tools are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecg_agent_ray._cli.evaluate_tables import (
    show_agent,
    show_classifier,
    show_explanation,
    show_measurement,
)
from ecg_agent_ray._cli.output import console, emit, stderr_progress
from ecg_agent_ray._cli.recordings import load_classifier_uri
from ecg_agent_ray.errors import ConfigError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Measure how good a model is.", no_args_is_help=True)
    group.command("agent")(agent)
    group.command("classifier")(classifier)
    group.command("measurement")(measurement)
    group.command("explanation")(explanation)
    app.add_typer(group, name="evaluate")


def agent(
    output: Annotated[
        Path, typer.Option(help="Folder for predictions.jsonl, metrics.json and report.html.")
    ],
    dialogues: Annotated[
        Path | None,
        typer.Option(help="Reference dialogues: ECG-MTD rows, or owner/name:split of a hub."),
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
    in_flight: Annotated[
        int, typer.Option(min=1, help="Dialogues at a time; 1 gives the same text in every run.")
    ] = 8,
    engine: Annotated[
        str | None,
        typer.Option(help="What runs local weights: auto (also left out), transformers, openvino."),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Score this file instead of generating.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="Endpoint that rates the answers, openai:URL#MODEL; repeatable."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Predictions of another model on the same dialogues, to compare with."),
    ] = None,
    track: Annotated[
        bool,
        typer.Option(
            "--track/--no-track",
            help="Log metrics and the report, which holds some dialogues, to MLflow.",
        ),
    ] = False,
    as_shown: Annotated[
        bool,
        typer.Option(
            "--as-shown", help="Score what a user would have read in the place of the model's text."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Metrics as JSON on stdout.")] = False,
) -> None:
    """Hold the dialogues with a model and score it, or score existing predictions."""
    from ecg_agent_ray.agent import load_agent
    from ecg_agent_ray.evaluation import Extras, evaluate_agent, score_predictions
    from ecg_agent_ray.registry import resolve

    if history not in ("without_gt", "with_gt"):
        raise ConfigError(f"--history {history!r} is neither without_gt nor with_gt")
    extras = Extras(judges=judge or (), baseline=baseline, track=track, as_shown=as_shown)
    if predictions is not None:
        metrics = score_predictions(predictions, output, extras=extras)
    elif dialogues is None:
        raise ConfigError("give --dialogues to generate, or --predictions to score")
    else:
        wanted = tools or ["live"]
        source = str(resolve(model)) if model.startswith("models:/") else model
        judged = load_agent(source, engine=engine)
        metrics = evaluate_agent(
            dialogues,
            judged,
            wanted[0] if wanted in (["live"], ["recorded"]) else wanted,
            output=output,
            history=history,
            ecg_dir=ecg_dir,
            classifier=load_classifier_uri(classifier or judged.classifier or "builtin:"),
            limit=limit,
            in_flight=in_flight,
            extras=extras,
        )
    if as_json:
        emit(metrics)
    else:
        show_agent(metrics, output)


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
        show_measurement(metrics, output)


def read_ids(path: Path) -> list[str]:
    """Record ids, one a line; raises :class:`ConfigError` where there are none."""
    try:
        ids = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read record ids from {path}: {error}") from error
    if not ids:
        raise ConfigError(f"{path} names no record")
    return ids


Labelled = Annotated[
    Path,
    typer.Option(
        "--data",
        help="PTB-XL or LUDB tree, PhysioNet Challenge folder, or a CSV of ecg_id, patient_id, "
        "scp_codes, filename.",
    ),
]


def classifier(
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, a checkpoint or classifier folder, or builtin:")
    ],
    data: Labelled,
    output: Annotated[Path, typer.Option(help="Folder for metrics.json and plots.")],
    leads: Annotated[
        list[str] | None,
        typer.Option(help="12-lead, I or II; repeatable. Left out: all the model was made for."),
    ] = None,
    records: Annotated[
        Path | None, typer.Option(help="File of record ids or file stems: only these.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Only the data's own valid, test or train split (PTB-XL, prepared)."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="The names of a checkpoint's outputs, one a line, when it has none."),
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=0, help="Bootstrap resamples of patients; 0: no intervals.")
    ] = 200,
    calibrated: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a copy of the classifier with Platt scaling and per-label thresholds "
            "fitted to these recordings, which should not be those it was trained on."
        ),
    ] = None,
    track: Annotated[
        bool, typer.Option("--track/--no-track", help="Log the metrics and plots to MLflow.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Metrics as JSON on stdout.")] = False,
) -> None:
    """Score a classifier on labelled recordings: AUROC, AUPRC, calibration, thresholds.

    On PhysioNet/CinC Challenge recordings the Challenge's 2021 score is added. Statements that the
    data set has no word for, or that the classifier was not taught, take no part. Give --split or
    --records for the part of a data set that the model was not trained on.
    """
    from ecg_agent_ray.evaluation import evaluate_classifier

    judged = load_classifier_uri(model, labels)
    judged.uri = model
    with stderr_progress("classifying") as progress:
        metrics = evaluate_classifier(
            judged,
            data,
            output=output,
            leads=leads,
            records=None if records is None else read_ids(records),
            split=split,
            resamples=resamples,
            calibrated=calibrated,
            track=track,
            progress=progress,
        )
    if as_json:
        emit(metrics)
    else:
        show_classifier(metrics, output)
        if calibrated is not None:
            console.print(f"wrote the calibrated classifier to {calibrated}")


def explanation(
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, a checkpoint or classifier folder, or builtin:")
    ],
    data: Labelled,
    output: Annotated[Path, typer.Option(help="Folder for metrics.json.")],
    leads: Annotated[
        str | None, typer.Option(help="12-lead, I or II; left out: the model's first.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Statement to explain; left out: the most probable a record has."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Only the first N records.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Metrics as JSON on stdout.")] = False,
) -> None:
    """Say whether the regions an explanation highlights matter more than random ones.

    Deletion takes them out of the recording and looks how far the probability falls, insertion puts
    them into an empty one and looks how far it rises, both beside as many random regions.
    """
    from ecg_agent_ray.evaluation import evaluate_explanation

    judged = load_classifier_uri(model)
    judged.uri = model
    with stderr_progress("explaining") as progress:
        metrics = evaluate_explanation(
            judged, data, output=output, leads=leads, label=label, limit=limit, progress=progress
        )
    if as_json:
        emit(metrics)
    else:
        show_explanation(metrics, output)
