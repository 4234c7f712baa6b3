"""Real tool outputs for a set of recordings: what dialogues about them may state."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ecg_agent_ray.dialogue import LeadConfiguration
from ecg_agent_ray.dialogue.synthesis import RecordFacts
from ecg_agent_ray.errors import EcgAgentError, InputError
from ecg_agent_ray.plugins.local_cluster import local_ray

__all__ = ["FactsResult", "collect_facts", "find_recordings", "split_records"]

logger = logging.getLogger(__name__)

SplitName = TypeVar("SplitName", bound=str)

_MEASURED_LEAD = {"12-lead": "auto", "I": "I", "II": "II"}
_SUFFIXES = {".hea", ".csv", ".edf", ".bdf", ".dcm", ".xml", ".npy", ".npz", ".parquet"}


@dataclass(frozen=True)
class FactsResult:
    """``facts`` in the order of the recordings; ``errors`` names each file that gave none."""

    facts: list[RecordFacts]
    errors: list[dict[str, str]]


def find_recordings(folder: str | Path) -> list[Path]:
    """ECG files below ``folder``, one a record: a WFDB record is its header."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is no folder")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise InputError(f"no ECG file below {root}")
    return found


def collect_facts(
    files: Iterable[str | Path],
    lead_configurations: Sequence[LeadConfiguration] = ("12-lead",),
    *,
    classifier: str = "builtin:",
    thresholds: Sequence[float] = (0.5,),
    explain: int = 0,
    concurrency: int = 2,
) -> FactsResult:
    """Measure, classify and, for every file of the first ``explain``, explain, on Ray Data.

    ``classifier`` is a folder or ``builtin:``; each of ``thresholds`` gives facts of its own, since
    a lower one has more findings. A file that cannot be read is in the errors and stops nothing. An
    explanation covers the classifier's two most probable statements.
    """
    items = [
        {
            "file": str(path),
            "leads": leads,
            "threshold": threshold,
            "explain": index < explain,
            "classifier": classifier,
        }
        for index, path in enumerate(files)
        for leads in lead_configurations
        for threshold in thresholds
    ]
    with local_ray(num_cpus=max(2, concurrency + 1)):
        import ray.data

        _quiet_ray_data(ray.data)
        rows = (
            ray.data.from_items(items, override_num_blocks=min(len(items), 4 * concurrency))
            .map(_run_tools, compute=ray.data.TaskPoolStrategy(size=concurrency), num_cpus=1)
            .take_all()
        )
    keys = ("file", "leads", "threshold")
    order = {tuple(item[key] for key in keys): place for place, item in enumerate(items)}
    rows.sort(key=lambda row: order[tuple(row[key] for key in keys)])
    facts = [RecordFacts(**json.loads(row["facts"])) for row in rows if row["facts"]]
    errors = [{"file": row["file"], "message": row["error"]} for row in rows if row["error"]]
    for error in errors:
        logger.warning("%s: %s", error["file"], error["message"])
    return FactsResult(facts, errors)


def _quiet_ray_data(ray_data: Any) -> None:
    """Ray Data tells of its plan and progress at levels meant for its developers."""
    ray_data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray._private.worker"):
        logging.getLogger(name).setLevel(logging.ERROR)


def split_records(
    facts: Sequence[RecordFacts], shares: Mapping[SplitName, float], *, seed: int
) -> dict[SplitName, list[RecordFacts]]:
    """Deal out whole records, so that none is in two splits; each split gets at least one.

    ``shares`` sum to 1. Raises :class:`InputError` with fewer records than splits.
    """
    records = sorted({fact.record_id for fact in facts})
    if len(records) < len(shares):
        raise InputError(f"{len(records)} recordings cannot be dealt to {len(shares)} splits")
    random.Random(seed).shuffle(records)
    names = sorted(shares, key=lambda name: shares[name])
    owner: dict[str, SplitName] = {}
    for name in names[:-1]:
        for _ in range(max(1, round(shares[name] * len(records)))):
            owner[records.pop()] = name
    return {
        name: [fact for fact in facts if owner.get(fact.record_id, names[-1]) == name]
        for name in shares
    }


@cache
def _classifier(source: str) -> Any:
    """One load for each worker process, which takes many recordings."""
    from ecg_agent_ray.classifier import load_classifier

    return load_classifier(source)


def _run_tools(item: dict[str, Any]) -> dict[str, Any]:
    """An item with its facts as JSON, or with what went wrong."""
    try:
        return {**item, "facts": json.dumps(_tool_outputs(item)), "error": ""}
    except EcgAgentError as error:
        return {**item, "facts": "", "error": str(error)}


def _tool_outputs(item: dict[str, Any]) -> dict[str, Any]:
    """Fields of :class:`RecordFacts`."""
    from ecg_agent_ray import ecg, tools

    recording = ecg.read(item["file"])
    classifier = _classifier(item["classifier"])
    leads: LeadConfiguration = item["leads"]
    found = tools.classify(recording, model=classifier, threshold=item["threshold"], leads=leads)
    explanation = {}
    if item["explain"]:
        for label in found.to_dict()["positive"][:2]:
            told = tools.explain(recording, label, model=classifier, leads=leads)
            explanation[label] = told.to_dialogue()
    return {
        "record_id": recording.record_id,
        "ecg_file": Path(item["file"]).name,
        "lead_configuration": leads,
        "measurement": tools.measure(recording, lead=_MEASURED_LEAD[leads]).to_dialogue(),
        "classification": found.to_dialogue(),
        "explanation": explanation or None,
    }
