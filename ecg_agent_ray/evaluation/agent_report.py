"""One HTML page per evaluation: the metrics, which action was taken for which, what to read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ecg_agent_ray.agent.grounding import check_grounding
from ecg_agent_ray.dialogue import Action
from ecg_agent_ray.evaluation.alignment import aligned_records
from ecg_agent_ray.evaluation.metrics import RATIOS, count_dialogue

__all__ = ["write_report"]

_NO_TURN = "no turn"


def write_report(
    predictions: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    path: str | Path,
    *,
    worst: int = 10,
) -> Path:
    """Write the page and return its path.

    It holds the words of the ``worst`` dialogues, those with the most errors per turn, so it is to
    be kept where the dialogues may be. ``metrics`` are those of ``metrics.json``.
    """
    import jinja2

    template = resources.files("ecg_agent_ray") / "_data/evaluation/agent_report.html.j2"
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "rating": _rating, "short": _short}
    summary = predictions[0].get("summary", {}) if predictions else {}
    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        agent=summary.get("agent", "predictions"),
        history=summary.get("history", "unknown"),
        metrics=metrics,
        ratios=list(RATIOS),
        confusion=_confusion(predictions),
        worst=_worst(predictions, worst),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f} %"


def _rating(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _short(action: str) -> str:
    return action.removeprefix("call_").removesuffix("_tool").replace("_", " ")


def _confusion(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = Counter(
        (str(turn["gt_action"] or _NO_TURN), str(turn["gen_action"] or _NO_TURN))
        for record in predictions
        for turn in _aligned(record)
    )
    known = [*(str(action) for action in Action), _NO_TURN]
    others = sorted({name for pair in counts for name in pair} - set(known))
    names = [*known[:-1], *others, _NO_TURN]
    columns = [name for name in names if any(made == name for _, made in counts)]
    rows = []
    for name in names:
        total = sum(count for (wanted, _), count in counts.items() if wanted == name)
        if total:
            rows.append(
                {
                    "name": name,
                    "cells": [
                        {"count": counts[name, made], "hit": made == name} for made in columns
                    ],
                    "accuracy": counts[name, name] / total if name != _NO_TURN else None,
                }
            )
    return {"columns": columns, "rows": rows}


def _aligned(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return aligned_records(record["ground_truth_dialogue"], record.get("generated_dialogue") or [])


def _worst(predictions: Sequence[Mapping[str, Any]], number: int) -> list[dict[str, Any]]:
    counted = [(count_dialogue(record), record) for record in predictions]
    wrong = [(tally, record) for tally, record in counted if tally.errors or record.get("error")]
    wrong.sort(key=lambda pair: pair[0].errors / max(pair[0].pairs, 1), reverse=True)
    return [
        {
            "sample_id": record.get("sample_id"),
            "ecg_file": record.get("ecg_file"),
            "error": record.get("error"),
            "errors": tally.errors,
            "pairs": tally.pairs,
            "turns": _turns(record),
        }
        for tally, record in wrong[:number]
    ]


def _turns(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    outputs: list[Any] = []
    with_gt = record.get("summary", {}).get("history") == "with_gt"
    rows: list[dict[str, Any]] = []
    for turn in _aligned(record):
        outputs += [turn["gen_tool_output"]] if turn["gen_tool_output"] is not None else []
        if with_gt and turn["gt_tool_output"] is not None:
            outputs.append(turn["gt_tool_output"])
        words = turn["gen_content"]
        question = turn["user_content"] or ""
        found = check_grounding(words, outputs, question=question) if words else []
        rows.append(
            {
                "first": not rows or rows[-1]["user_turn"] != turn["user_turn"],
                "user_turn": turn["user_turn"],
                "user": question,
                "right": turn["action_correct"],
                "gt_action": turn["gt_action"],
                "gen_action": turn["gen_action"],
                "gt_text": _text(turn["gt_content"], turn["gt_tool_output"]),
                "gen_text": _text(words, turn["gen_tool_output"]),
                "violations": [str(item) for item in found],
            }
        )
    return rows


def _text(content: str | None, output: Any) -> str:
    return content or ("" if output is None else json.dumps(output, ensure_ascii=False))
