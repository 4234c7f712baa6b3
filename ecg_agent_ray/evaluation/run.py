"""One evaluation from dialogues to ``metrics.json`` and ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecg_agent_ray.agent.load import load_agent
from ecg_agent_ray.agent.loop import Agent
from ecg_agent_ray.dialogue import Dialogue, read_dialogues
from ecg_agent_ray.errors import InputError
from ecg_agent_ray.evaluation.alignment import aligned_records
from ecg_agent_ray.evaluation.metrics import score
from ecg_agent_ray.evaluation.protocol import History, predict, read_predictions
from ecg_agent_ray.evaluation.tool_sources import ToolSource, tool_source

__all__ = ["Extras", "evaluate_agent", "score_predictions"]


@dataclass(frozen=True)
class Extras:
    """What an evaluation does beside the metrics.

    Parameters
    ----------
    judges
        Endpoints that rate the answers, ``openai:BASE_URL#MODEL``; their verdicts are kept in
        ``judgements.jsonl`` in the output folder.
    baseline
        Predictions of another model on the same dialogues, to compare with.
    track
        Log metrics and ``report.html`` to MLflow. The report holds the words of some dialogues.
    as_shown
        Judge, report and score what a user would have read in the place of the model's own text.
    """

    judges: Sequence[str] = ()
    baseline: str | Path | None = None
    track: bool = False
    as_shown: bool = False


def evaluate_agent(
    dialogues: str | Path | Sequence[Dialogue],
    model: str | Path | Agent = "builtin:",
    tools: ToolSource | str | Sequence[str] = "live",
    *,
    output: str | Path,
    history: History = "without_gt",
    ecg_dir: str | Path | None = None,
    classifier: Any = None,
    limit: int | None = None,
    max_tokens: int = 256,
    in_flight: int = 1,
    progress: Callable[[int], None] | None = None,
    extras: Extras | None = None,
) -> dict[str, Any]:
    """Run the paper's protocol and score it.

    Parameters
    ----------
    dialogues
        The references, or a file of them.
    model
        Whose turns are generated, as :func:`~ecg_agent_ray.agent.load_agent` takes it or loaded;
        its grounding and safety layers stay out.
    tools
        ``"live"`` (with ``ecg_dir``), ``"recorded"`` (the outputs that the references hold), paths
        of CSVs, or a function that gives a dialogue's toolbox.
    output
        Folder that takes ``predictions.jsonl``, ``metrics.json`` and ``report.html``. Predictions
        already there are kept: an interrupted evaluation goes on where it stopped.
    history
        ``"without_gt"`` or ``"with_gt"``; see :mod:`ecg_agent_ray.evaluation.protocol`.
    classifier
        For live tools; None takes the agent's.
    limit
        Only the first dialogues.
    in_flight
        Dialogues held at a time; see :func:`~ecg_agent_ray.evaluation.protocol.predict`.
    progress
        Called with each dialogue's number when it is done.
    extras
        Judges, a comparison, MLflow; None for none of them.

    Returns
    -------
    dict
        The metrics, as written; see :func:`ecg_agent_ray.evaluation.metrics.score`. With judges
        ``judged``, with a baseline ``compared``.
    """
    references = (
        read_dialogues(dialogues) if isinstance(dialogues, str | Path) else list(dialogues)
    )[:limit]
    agent = model if isinstance(model, Agent) else load_agent(model)
    if not callable(tools):
        chosen = classifier if classifier is not None else agent.classifier
        tools = tool_source(tools, ecg_dir=ecg_dir, classifier=chosen)
    folder = Path(output)
    records = predict(
        references,
        agent,
        tools,
        history=history,
        path=folder / "predictions.jsonl",
        max_tokens=max_tokens,
        in_flight=in_flight,
        progress=progress,
    )
    return _scored(records[: len(references)], folder, extras or Extras())


def score_predictions(
    predictions: str | Path, output: str | Path, *, extras: Extras | None = None
) -> dict[str, Any]:
    """Score an existing predictions file, ours or the paper's; writes as :func:`evaluate_agent`."""
    return _scored(read_predictions(predictions), Path(output), extras or Extras())


def _scored(records: list[dict[str, Any]], folder: Path, extras: Extras) -> dict[str, Any]:
    from ecg_agent_ray.evaluation.agent_report import write_report

    if extras.as_shown:
        records = [_as_read(record) for record in records]
    metrics = score(records)
    if extras.baseline is not None:
        from ecg_agent_ray.evaluation.comparison import compare

        metrics["compared"] = compare(records, read_predictions(extras.baseline))
    if extras.judges:
        from ecg_agent_ray.evaluation.judges import Judge, judge_predictions

        judges = [Judge(uri, folder / "judgements.jsonl") for uri in extras.judges]
        metrics["judged"] = judge_predictions(records, judges)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=2)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    report = write_report(records, metrics, folder / "report.html")
    if extras.track:
        _track(records, metrics, report)
    return metrics


def _as_read(record: dict[str, Any]) -> dict[str, Any]:
    """The record with what a user would have read in the place of the model's own text."""
    if "shown_dialogue" not in record:
        raise InputError(
            f"prediction {record.get('sample_id')} does not hold what a user would have read",
            hint="generate it with this version of evaluate agent",
        )
    shown = record["shown_dialogue"]
    turns = aligned_records(record["ground_truth_dialogue"], shown)
    return {**record, "generated_dialogue": shown, "turns": turns}


def _track(records: list[dict[str, Any]], metrics: dict[str, Any], report: Path) -> None:
    from ecg_agent_ray.plugins.tracking import tracked_run

    summary = records[0].get("summary", {}) if records else {}
    params = {key: summary.get(key) for key in ("agent", "history")}
    shown = {key: value for key, value in metrics.items() if key != "intervals"}
    with tracked_run("evaluate-agent", params=params, experiment="ecg-agent") as run:
        run.log_metrics(shown)
        run.log_dict(metrics, "evaluation/metrics.json")
        run.log_text(report.read_text(encoding="utf-8"), "evaluation/report.html")
