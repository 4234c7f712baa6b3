"""Whether the parts that an explanation highlights are those the classifier's answer rests on.

Deletion: the highlighted regions of a recording are replaced by straight lines; the probability
should fall by more than when as many regions drawn at random are. Insertion: a recording of
straight lines gets back its highlighted regions; the probability should rise by more than for
random ones (Petsiuk et al. 2018, arXiv:1806.07421). Both are averaged over several shares of all
regions.

The ranking of spectrogram cells is judged by ``evaluation.faithfulness``.

What is judged are rankings; a classifier whose answer is wrong can be explained well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray import __version__
from ecg_agent_ray.classifier import Classifier, prepare
from ecg_agent_ray.classifier.dataset import LabelledRecord
from ecg_agent_ray.classifier.preprocessing import SAMPLING_RATE, STANDARD_LEADS
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import ConfigError, LeadError, RecordingError
from ecg_agent_ray.evaluation.classifier_data import labelled_records, readable
from ecg_agent_ray.evaluation.faithfulness import RANKINGS, TOP, cell_faithfulness
from ecg_agent_ray.tools.explanation import Region, explain, explained_lead

__all__ = ["SHARES", "evaluate_explanation"]

SHARES = (0.05, 0.1, 0.2, 0.3)
"""Of all regions, that are deleted or inserted."""
Array = npt.NDArray[np.floating[Any]]
_RESAMPLES = 1000


@dataclass(frozen=True)
class _Outcome:
    """Mean probability change over `SHARES` for highlighted and for random regions."""

    label: str
    probability: float
    deletion: tuple[float, float]
    insertion: tuple[float, float]
    cells: dict[str, list[float]]
    """Fall of probability by ranking, for each of `TOP`; empty for a padded recording."""


def evaluate_explanation(
    classifier: Classifier,
    data: str | Path,
    *,
    output: str | Path,
    leads: str | None = None,
    label: str | None = None,
    limit: int | None = 50,
    draws: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compare highlighted with random regions on recordings that show a statement.

    Parameters
    ----------
    data
        Labelled recordings, as for
        :func:`~ecg_agent_ray.evaluation.classifier.evaluate_classifier`.
    output
        Folder that takes ``metrics.json``.
    leads
        Lead configuration; None takes the classifier's first.
    label
        Explain this statement on the records that have it; None explains on every record the
        most probable of the statements it has.
    limit
        Only the first so many records.
    draws, seed
        Random sets of regions for each share, and their seed.
    progress
        Called with records done and in all.

    Returns
    -------
    dict
        ``deletion`` and ``insertion``, each with ``highlighted, random, difference`` (mean change
        of probability), ``interval`` (95 % of the difference, bootstrap over records) and
        ``better`` (share of records where the highlighted regions did more); ``faithfulness`` with
        the mean fall of probability after the top ``k`` cells, by ranking, and ``against``, the
        tool's difference (mean over k) to the others with its interval; and what it is of.

    Raises
    ------
    ConfigError
        No labelled recordings, or none that shows a statement the classifier assesses.
    LeadError
        A lead configuration the classifier was not made for.
    """
    leads = leads or classifier.lead_configurations[0]
    assessed = classifier.assessed_for(leads)
    if label is not None and label not in assessed:
        raise ConfigError(
            f"{classifier.uri} does not assess {label!r} from {leads}",
            hint=f"it assesses {', '.join(assessed)}",
        )
    wanted = {label} if label is not None else set(assessed)
    _, every = labelled_records(data)
    chosen = [record for record in every if record.positives & wanted][:limit]
    if not chosen:
        raise ConfigError(f"no recording at {data} shows {label or 'an assessed statement'}")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    failed: list[dict[str, str]] = []

    def fail(record: LabelledRecord, error: Exception) -> None:
        failed.append({"record_id": record.record_id, "error": str(error)})

    rng = np.random.default_rng(seed)
    outcomes = []
    for record, recording in readable(chosen, fail):
        try:
            shown = record.positives & wanted
            outcomes.append(_evaluate_one(classifier, recording, shown, leads, rng, draws))
        except (LeadError, RecordingError) as error:
            fail(record, error)
        if progress is not None:
            progress(len(outcomes) + len(failed), len(chosen))
    metrics = {
        "model": classifier.uri,
        "package_version": __version__,
        "lead_configuration": leads,
        "label": label,
        "labels": {c: n for c in assessed if (n := sum(o.label == c for o in outcomes))},
        "n_records": len(outcomes),
        "shares": list(SHARES),
        "draws": draws,
        "deletion": _summary([o.deletion for o in outcomes], rng),
        "insertion": _summary([o.insertion for o in outcomes], rng),
        "faithfulness": _faithfulness([o.cells for o in outcomes if o.cells], rng),
        "failed": failed,
    }
    text = json.dumps(metrics, indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    return metrics


def _evaluate_one(
    classifier: Classifier,
    recording: Recording,
    shown: frozenset[str] | set[str],
    leads: str,
    rng: np.random.Generator,
    draws: int,
) -> _Outcome:
    prepared = prepare(recording, leads)
    padding = prepared.padding_mask
    every = classifier.probabilities(prepared.windows, padding, leads=leads)
    columns = [classifier.labels.index(code) for code in sorted(shown)]
    column = max(columns, key=lambda c: float(every[:, c].max()))
    label = classifier.labels[column]
    # the window that the tool explains
    best = int(every[:, column].argmax())
    window, offset = prepared.windows[best], prepared.starts_s[best]
    regions = explain(recording, label, classifier, leads).regions
    places = [_place(region, offset, prepared.valid_samples) for region in regions]
    empty = _flattened(window, places)
    highlighted, random = _variants(window, empty, places, rng, draws)
    batch = np.stack([window, empty, *highlighted, *random])
    mask = None if padding is None else np.repeat(padding[best : best + 1], len(batch), axis=0)
    scores = classifier.probabilities(batch, mask, leads=leads)[:, column]
    whole, nothing = float(scores[0]), float(scores[1])
    cells = {}
    if padding is None:
        row = STANDARD_LEADS.index(explained_lead(prepared.leads, leads))

        def score(windows: Array) -> Array:
            every = classifier.probabilities(windows.astype(np.float32), leads=leads)
            result: Array = every[:, column]
            return result

        cells = cell_faithfulness(classifier, window, row, column, leads, score, rng, draws)
    own = scores[2 : 2 + len(highlighted)].reshape(len(SHARES), 2).mean(axis=0)
    others = scores[2 + len(highlighted) :].reshape(-1, 2).mean(axis=0)
    return _Outcome(
        label,
        whole,
        deletion=(whole - float(own[0]), whole - float(others[0])),
        insertion=(float(own[1]) - nothing, float(others[1]) - nothing),
        cells=cells,
    )


def _place(region: Region, offset: float, valid: int) -> tuple[int, int, int]:
    """Row, first and last-but-one sample of a region in its window."""
    start = round((region.start_s - offset) * SAMPLING_RATE)
    end = min(round((region.end_s - offset) * SAMPLING_RATE), valid)
    return STANDARD_LEADS.index(region.lead), start, end


def _flattened(window: Array, places: Sequence[tuple[int, int, int]]) -> Array:
    flat = window.copy()
    for row, start, end in places:
        flat[row, start:end] = np.linspace(window[row, start], window[row, end - 1], end - start)
    return flat


def _variants(
    window: Array,
    empty: Array,
    places: Sequence[tuple[int, int, int]],
    rng: np.random.Generator,
    draws: int,
) -> tuple[list[Array], list[Array]]:
    """For every share the window without its highlighted regions and the empty one with them; then
    the same for random regions, ``draws`` times."""

    def both(chosen: Sequence[int]) -> list[Array]:
        without, only = window.copy(), empty.copy()
        for index in chosen:
            row, start, end = places[index]
            without[row, start:end] = empty[row, start:end]
            only[row, start:end] = window[row, start:end]
        return [without, only]

    counts = [max(1, round(share * len(places))) for share in SHARES]
    highlighted = [variant for count in counts for variant in both(range(count))]
    random = [
        variant
        for count in counts
        for _ in range(draws)
        for variant in both(rng.choice(len(places), count, replace=False).tolist())
    ]
    return highlighted, random


def _faithfulness(
    records: Sequence[dict[str, list[float]]], rng: np.random.Generator
) -> dict[str, Any]:
    if not records:
        return {"n_records": 0}
    falls = {name: np.array([record[name] for record in records]) for name in RANKINGS}
    pairs = {
        name: _summary(list(zip(falls["tool"].mean(1), falls[name].mean(1), strict=True)), rng)
        for name in RANKINGS[1:]
    }
    return {
        "n_records": len(records),
        "k": list(TOP),
        **{name: values.mean(0).tolist() for name, values in falls.items()},
        "against": {
            name: {key: found[key] for key in ("difference", "interval", "better")}
            for name, found in pairs.items()
        },
    }


def _summary(pairs: Sequence[tuple[float, float]], rng: np.random.Generator) -> dict[str, Any]:
    if not pairs:
        return dict.fromkeys(("highlighted", "random", "difference", "interval", "better"))
    values = np.array(pairs)
    difference = values[:, 0] - values[:, 1]
    resampled = rng.choice(difference, (_RESAMPLES, len(difference))).mean(axis=1)
    return {
        "highlighted": float(values[:, 0].mean()),
        "random": float(values[:, 1].mean()),
        "difference": float(difference.mean()),
        "interval": [float(v) for v in np.percentile(resampled, [2.5, 97.5])],
        "better": float((difference > 0).mean()),
    }
