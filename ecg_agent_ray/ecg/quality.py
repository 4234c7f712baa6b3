"""How far each lead can be trusted: usable, doubtful or unusable, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.filters import band, fill_gaps
from ecg_agent_ray.ecg.recording import Recording

__all__ = ["LeadQuality", "QualityStatus", "assess_quality", "beats_of_leads"]

QualityStatus = Literal["usable", "doubtful", "unusable"]

# Limits below are set from what the conditions look like in PTB-XL, LUDB and the Challenge 2017 and
# 2021 recordings (noisy class, leads off), not fitted to a label.
_WINDOW_S = 0.25
_FLAT_MV = 0.006
_FLAT_STRETCH_S = 3.0
_FLAT_UNUSABLE, _FLAT_DOUBTFUL = 0.5, 0.08
_GAPS_UNUSABLE, _GAPS_DOUBTFUL = 0.5, 0.05
_CLIPPED_UNUSABLE, _CLIPPED_DOUBTFUL = 0.05, 0.003
_SWING_UNUSABLE_MV, _SWING_DOUBTFUL_MV = 25.0, 8.0
_WANDER_DOUBTFUL_MV = 1.5
_NOISE_DOUBTFUL = 0.12
_ALIKE_UNUSABLE, _ALIKE_DOUBTFUL = 0.35, 0.65


@dataclass(frozen=True)
class LeadQuality:
    """``score`` is 0 to 1, for choosing among leads; ``reason`` is empty for a usable lead."""

    status: QualityStatus
    reason: str
    score: float

    def to_dict(self) -> dict[str, str]:
        return {"status": self.status, "reason": self.reason}


def assess_quality(
    recording: Recording,
    find: Callable[[Sequence[str]], npt.NDArray[np.intp]] | None = None,
) -> dict[str, LeadQuality]:
    """Quality of every lead, by name.

    Parameters
    ----------
    find : the beats' sample indices from the leads of these names, for a caller who needs them too;
        beats are sought in all leads together, so that one noisy lead does not judge itself.
    """
    signal, rate = recording.signal, recording.sampling_rate
    raw = [_by_samples(row, rate) for row in signal]
    pairs = zip(recording.leads, raw, strict=True)
    alive = [name for name, found in pairs if found.status != "unusable"]
    beats = np.empty(0, dtype=np.intp)
    if alive:
        beats = find(alive) if find is not None else beats_of_leads(recording, alive)
    filled = fill_gaps(signal)
    shape = band(filled, rate, 1.0, 40.0)
    rest = filled - band(filled, rate, None, 40.0)
    result = {}
    for name, found, row, noise in zip(recording.leads, raw, shape, rest, strict=True):
        seen = beats[np.isfinite(recording.lead(name)[beats])]
        result[name] = _worst(found, _by_beats(row, noise, seen, rate))
    return result


def beats_of_leads(recording: Recording, names: Sequence[str]) -> npt.NDArray[np.intp]:
    """Sample indices of the beats, sought in these leads together; gaps are bridged."""
    from ecg_agent_ray.ecg.delineation import find_beats

    return find_beats(fill_gaps(recording.select(names).signal), recording.sampling_rate)


def _worst(*found: LeadQuality) -> LeadQuality:
    order = ("usable", "doubtful", "unusable")
    worst = max(found, key=lambda q: order.index(q.status))
    return LeadQuality(worst.status, worst.reason, min(q.score for q in found))


def _graded(value: float, doubtful: float, unusable: float, reason: str) -> LeadQuality:
    """Quality by one measure of what is wrong; the score falls from 1 to 0 at ``unusable``."""
    score = float(np.clip(1 - value / unusable, 0, 1)) if np.isfinite(unusable) else 1.0
    if value >= unusable:
        return LeadQuality("unusable", reason, 0.0)
    if value >= doubtful:
        return LeadQuality("doubtful", reason, min(score, 0.6))
    return LeadQuality("usable", "", score)


def _by_samples(row: npt.NDArray[np.float32], rate: float) -> LeadQuality:
    """What the samples alone tell: gaps, flat stretches, clipping, implausible swings."""
    finite = np.isfinite(row)
    gaps = 1.0 - float(finite.mean())
    if gaps >= _GAPS_UNUSABLE:
        return LeadQuality("unusable", f"{gaps:.0%} of the samples are missing", 0.0)
    values = row[finite].astype(np.float64)
    low, high = float(values.min()), float(values.max())
    flat = _flat_share(row, rate)
    clipped = _clipped_share(values, low, high)
    wander = float(np.ptp(_block_medians(values, rate)))
    return _worst(
        _graded(gaps, _GAPS_DOUBTFUL, _GAPS_UNUSABLE, f"{gaps:.0%} of the samples are missing"),
        _graded(flat, _FLAT_DOUBTFUL, _FLAT_UNUSABLE, f"flat for {flat:.0%} of the time"),
        _graded(
            clipped,
            _CLIPPED_DOUBTFUL,
            _CLIPPED_UNUSABLE,
            f"saturated: {clipped:.1%} of the samples lie at {low:.2f} or {high:.2f} mV",
        ),
        _graded(
            high - low,
            _SWING_DOUBTFUL_MV,
            _SWING_UNUSABLE_MV,
            f"a swing of {high - low:.1f} mV is implausible (artefact, or other units?)",
        ),
        _graded(wander, _WANDER_DOUBTFUL_MV, np.inf, f"the baseline wanders by {wander:.1f} mV"),
    )


def _flat_share(row: npt.NDArray[np.float32], rate: float) -> float:
    width = max(round(_WINDOW_S * rate), 2)
    if row.size < width:
        return float(np.nanmax(row) - np.nanmin(row) < _FLAT_MV)
    blocks = row[: row.size // width * width].reshape(-1, width)
    seen = np.isfinite(blocks).all(axis=1)
    if not seen.any():
        return 0.0
    still = np.ptp(blocks[seen], axis=1) < _FLAT_MV
    # the baseline between slow beats may be perfectly quiet; only longer stretches count
    longest = round(_FLAT_STRETCH_S / _WINDOW_S)
    runs = np.convolve(still, np.ones(longest), mode="full") >= longest
    covered = np.convolve(runs, np.ones(longest), mode="valid")[: still.size] > 0
    return 1.0 if still.all() else float((covered & still).mean())


def _clipped_share(values: npt.NDArray[np.float64], low: float, high: float) -> float:
    """Share of samples that repeat the extreme value three times or more in a row."""
    if high - low < _FLAT_MV:
        return 0.0
    at_limit = (values >= high) | (values <= low)
    inner = at_limit[2:] & at_limit[1:-1] & at_limit[:-2]
    same = (values[2:] == values[1:-1]) & (values[1:-1] == values[:-2])
    return float((inner & same).sum() / values.size)


def _block_medians(values: npt.NDArray[np.float64], rate: float) -> npt.NDArray[np.float64]:
    width = max(round(rate), 1)
    if values.size < 2 * width:
        return np.zeros(1)
    blocks: npt.NDArray[np.float64] = np.median(
        values[: values.size // width * width].reshape(-1, width), axis=1
    )
    return blocks


def _by_beats(
    row: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
    beats: npt.NDArray[np.intp],
    rate: float,
) -> LeadQuality:
    """Whether the lead's complexes resemble each other, and how they stand out of the noise."""
    before, after = round(0.12 * rate), round(0.30 * rate)
    inside = beats[(beats >= before) & (beats < row.size - after)]
    if inside.size < 2:
        return LeadQuality("doubtful", "fewer than two beats were found", 0.3)
    rows = row[inside[:, None] + np.arange(-before, after)]
    rows = rows - rows.mean(axis=1, keepdims=True)
    size = float(np.median(np.ptp(rows, axis=1)))
    if size < _FLAT_MV:
        return LeadQuality("unusable", "no complexes stand out of the baseline", 0.0)
    rows = rows[np.ptp(rows, axis=1) >= _FLAT_MV]
    rows = rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9)
    pairs = rows @ rows.T if len(rows) <= 200 else rows[::7] @ rows[::7].T
    alike = float(np.median(pairs[~np.eye(len(pairs), dtype=bool)]))
    quiet = float(np.sqrt(np.mean(noise**2)) / size)
    return _worst(
        _graded(
            1 - alike,
            1 - _ALIKE_DOUBTFUL,
            1 - _ALIKE_UNUSABLE,
            f"beats hardly resemble each other (correlation {alike:.2f}): noise or many shapes",
        ),
        _graded(quiet, _NOISE_DOUBTFUL, np.inf, f"high-frequency noise is {quiet:.0%} of the QRS"),
    )
