"""Two models on the same dialogues: differences, their intervals, and whether chance makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ecg_agent_ray.errors import InputError
from ecg_agent_ray.evaluation.metrics import RATIOS, count_dialogue, count_table, ratios_of

__all__ = ["compare"]


def compare(
    predictions: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Each ratio of ``predictions`` minus that of ``baseline``, paired by dialogue.

    Parameters
    ----------
    predictions, baseline
        Records in the paper's schema over the same dialogues, in any order.
    resamples
        Of the bootstrap over dialogues (95 % percentile interval), and of the two-sided
        permutation test, which exchanges the two models' dialogues at random. The ``p_value`` has
        the observed assignment among the permuted ones, so that it is never 0.

    Raises
    ------
    InputError
        The two files do not hold the same dialogues.
    """
    import numpy as np

    ours, theirs = _paired(predictions, baseline)
    left, right = (count_table([count_dialogue(item) for item in side]) for side in (ours, theirs))
    generator = np.random.default_rng(seed)
    size = len(left)

    def differences(first: Any, second: Any) -> list[float]:
        a, b = ratios_of(first.sum(axis=0)), ratios_of(second.sum(axis=0))
        return [
            np.nan if a[name] is None or b[name] is None else a[name] - b[name]  # type: ignore[operator]
            for name in RATIOS
        ]

    seen = np.array(differences(left, right))
    drawn, exchanged = [], []
    for _ in range(resamples):
        rows = generator.integers(0, size, size)
        drawn.append(differences(left[rows], right[rows]))
        swap = generator.integers(0, 2, size).astype(bool)[:, None]
        exchanged.append(differences(np.where(swap, right, left), np.where(swap, left, right)))
    result: dict[str, dict[str, Any]] = {}
    for column, name in enumerate(RATIOS):
        if np.isnan(seen[column]):
            result[name] = {"difference": None, "interval": None, "p_value": None}
            continue
        resampled = np.array(drawn)[:, column]
        chance = np.array(exchanged)[:, column]
        # a difference that rounding alone makes smaller than the one seen is as large
        extreme = int(np.sum(np.abs(chance) >= abs(seen[column]) - 1e-12))
        result[name] = {
            "difference": float(seen[column]),
            "interval": [float(bound) for bound in np.nanpercentile(resampled, [2.5, 97.5])],
            "p_value": (extreme + 1) / (resamples + 1),
        }
    return result


def _paired(
    predictions: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    by_sample = {item["sample_id"]: item for item in baseline}
    missing = [item["sample_id"] for item in predictions if item["sample_id"] not in by_sample]
    if missing or len(by_sample) != len(predictions) or not predictions:
        raise InputError(
            f"{len(predictions)} and {len(baseline)} predictions are not of the same dialogues"
            + (f": sample_id {missing[0]!r} is in the first only" if missing else ""),
            hint="evaluate both models on the same file, with the same --limit",
        )
    pairs = [(item, by_sample[item["sample_id"]]) for item in predictions]
    for ours, theirs in pairs:
        if _words(ours) != _words(theirs):
            raise InputError(
                f"sample_id {ours['sample_id']!r} is another dialogue in the two predictions files",
                hint="evaluate both models on the same file",
            )
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _words(record: Mapping[str, Any]) -> list[Any]:
    return [
        turn.get("content") for turn in record["ground_truth_dialogue"] if turn["role"] == "user"
    ]
