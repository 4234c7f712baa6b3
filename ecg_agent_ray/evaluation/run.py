"""One evaluation from dialogues to ``metrics.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ecg_agent_ray.agent.load import load_agent
from ecg_agent_ray.agent.loop import Agent
from ecg_agent_ray.dialogue import Dialogue, read_dialogues
from ecg_agent_ray.evaluation.metrics import score
from ecg_agent_ray.evaluation.protocol import History, predict, read_predictions
from ecg_agent_ray.evaluation.tool_sources import ToolSource, tool_source

__all__ = ["evaluate_agent", "score_predictions"]


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
    progress: Callable[[int], None] | None = None,
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
        Folder that takes ``predictions.jsonl`` and ``metrics.json``. Predictions already there are
        kept: an interrupted evaluation goes on where it stopped.
    history
        ``"without_gt"`` or ``"with_gt"``; see :mod:`ecg_agent_ray.evaluation.protocol`.
    classifier
        For live tools; None takes the agent's.
    limit
        Only the first dialogues.
    progress
        Called with each dialogue's number when it is done.

    Returns
    -------
    dict
        The metrics, as written; see :func:`ecg_agent_ray.evaluation.metrics.score`.
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
        progress=progress,
    )
    return _written(score(records[: len(references)]), folder)


def score_predictions(predictions: str | Path, output: str | Path) -> dict[str, Any]:
    """Score an existing predictions file, ours or the paper's, and write ``metrics.json``."""
    return _written(score(read_predictions(predictions)), Path(output))


def _written(metrics: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=2)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    return metrics
