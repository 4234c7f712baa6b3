"""How far each lead can be trusted: usable, doubtful or unusable, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.filters import bands, fill_gaps, median
from ecg_agent_ray.ecg.recording import Recording

__all__ = ["FilteredLeads", "LeadQuality", "QualityStatus", "assess_quality"]

QualityStatus = Literal["usable", "doubtful", "unusable"]

# Limits below are set from what the conditions look like in PTB-XL, LUDB and the Challenge 2017 and
# 2021 recordings (noisy class, leads off), not fitted to a label.
_WINDOW_S = 0.25
_FLAT_MV = 0.006
_FLAT_STRETCH_S = 3.0
_FLAT_UNUSABLE, _FLAT_DOUBTFUL = 0.5, 0.08
_GAPS_UNUSABLE, _GAPS_DOUBTFUL = 0.5, 0.05
_ENOUGH_S = 10.0
"""Seconds of signal that can be judged and measured however long the gaps between them are."""
_CLIPPED_UNUSABLE, _CLIPPED_DOUBTFUL = 0.05, 0.003
_SWING_UNUSABLE_MV, _SWING_DOUBTFUL_MV = 25.0, 8.0
_WANDER_DOUBTFUL_MV = 1.5
_NOISE_DOUBTFUL = 0.12
_ALIKE_UNUSABLE, _ALIKE_DOUBTFUL = 0.35, 0.65
_FEWEST_OWN_BEATS = 4


@dataclass(frozen=True)
class LeadQuality:
    """``score`` is 0 to 1, for choosing among leads; ``reason`` is empty for a usable lead."""

    status: QualityStatus
    reason: str
    score: float

    def to_dict(self) -> dict[str, str]:
        return {"status": self.status, "reason": self.reason}


class FilteredLeads:
    """A recording's leads, gaps bridged, in the bands in which quality is judged and beats sought.

    ``shape``, ``noise`` and ``qrs`` are (leads, samples) in mV: 1 to 40 Hz, above 40 Hz, and what
    ``find_beats`` looks at.
    """

    def __init__(self, recording: Recording) -> None:
        from ecg_agent_ray.ecg.delineation.beats import QRS_BAND_HZ

        self.leads, self.rate = recording.leads, recording.sampling_rate
        filled = fill_gaps(recording.signal)
        edges = [(1.0, 40.0), (None, 40.0), QRS_BAND_HZ]
        self.shape, below, self.qrs = bands(filled, self.rate, edges)
        self.noise = filled - below

    def beats(self, names: Sequence[str]) -> npt.NDArray[np.intp]:
        """Sample indices of the beats, sought in these leads together."""
        from ecg_agent_ray.ecg.delineation.beats import find_beats_in_band

        return find_beats_in_band(self.qrs[[self.leads.index(n) for n in names]], self.rate)


def assess_quality(
    recording: Recording,
    filtered: FilteredLeads | None = None,
    find: Callable[[Sequence[str]], npt.NDArray[np.intp]] | None = None,
) -> dict[str, LeadQuality]:
    """Quality of every lead, by name.

    Parameters
    ----------
    filtered : of this recording, for a caller who needs it too
    find : the beats' sample indices from the leads of these names, for a caller who needs them too;
        beats are sought in all leads together, so that one noisy lead does not judge itself.
    """
    filtered = filtered or FilteredLeads(recording)
    by_samples = _by_samples(recording.signal, recording.sampling_rate)
    pairs = zip(recording.leads, by_samples, strict=True)
    alive = [name for name, found in pairs if found.status != "unusable"]
    beats = np.empty(0, dtype=np.intp)
    if alive:
        beats = (find or filtered.beats)(alive)
    by_beats = _judged_by(beats, recording, filtered)
    if len(alive) > 1 and all(found.status == "unusable" for found in by_beats):
        beats = _beats_of_best(alive, recording, filtered, find or filtered.beats)
        by_beats = _judged_by(beats, recording, filtered) if beats.size else by_beats
    rows = zip(recording.leads, by_samples, by_beats, strict=True)
    return {name: _worst(*found) for name, *found in rows}


def _judged_by(
    beats: npt.NDArray[np.intp], recording: Recording, filtered: FilteredLeads
) -> list[LeadQuality]:
    return _by_beats(filtered, beats, np.isfinite(recording.signal[:, beats]))


def _beats_of_best(
    alive: Sequence[str],
    recording: Recording,
    filtered: FilteredLeads,
    find: Callable[[Sequence[str]], npt.NDArray[np.intp]],
) -> npt.NDArray[np.intp]:
    """The beats of the one lead whose own resemble each other most; none where no lead's do.

    Noise in most leads (one noisy electrode is in all that are derived from it) hides the beats of
    the clean ones. Noise by itself is not taken for beats: its peaks have no common shape.
    """
    best, score = np.empty(0, dtype=np.intp), 0.0
    for name in alive:
        beats = find([name])
        own = _judged_by(beats, recording, filtered)[recording.leads.index(name)]
        if beats.size >= _FEWEST_OWN_BEATS and own.status == "usable" and own.score > score:
            best, score = beats, own.score
    return best


def _worst(*found: LeadQuality) -> LeadQuality:
    order = ("usable", "doubtful", "unusable")
    worst = max(found, key=lambda q: order.index(q.status))
    return LeadQuality(worst.status, worst.reason, min(q.score for q in found))


def _graded(value: float, doubtful: float, unusable: float, reason: str) -> LeadQuality:
    """Quality by one measure of what is wrong; the score falls from 1 to 0 at ``unusable``."""
    score = min(max(1 - value / unusable, 0.0), 1.0) if math.isfinite(unusable) else 1.0
    if value >= unusable:
        return LeadQuality("unusable", reason, 0.0)
    if value >= doubtful:
        return LeadQuality("doubtful", reason, min(score, 0.6))
    return LeadQuality("usable", "", score)


def _by_samples(signal: npt.NDArray[np.float32], rate: float) -> list[LeadQuality]:
    """What the samples alone tell of each lead: gaps, flat stretches, clipping, wild swings."""
    finite = np.isfinite(signal)
    gaps = 1.0 - finite.mean(axis=1)
    whole = gaps == 0
    figures = np.zeros((len(signal), 5))
    if whole.any():
        figures[whole] = _sample_figures(signal[whole], signal[whole], rate)
    enough = finite.sum(axis=1) >= _ENOUGH_S * rate
    for i in np.flatnonzero(~whole & (enough | (gaps < _GAPS_UNUSABLE))):
        figures[i] = _sample_figures(signal[i : i + 1, finite[i]], signal[i : i + 1], rate)[0]
    triples = zip(gaps.tolist(), enough.tolist(), figures.tolist(), strict=True)
    return [_graded_samples(missing, some, *row) for missing, some, row in triples]


def _graded_samples(
    gaps: float, enough: bool, flat: float, clipped: float, low: float, high: float, wander: float
) -> LeadQuality:
    missing = f"{gaps:.0%} of the samples are missing"
    if gaps >= _GAPS_UNUSABLE and not enough:
        return LeadQuality("unusable", missing, 0.0)
    return _worst(
        _graded(gaps, _GAPS_DOUBTFUL, math.inf if enough else _GAPS_UNUSABLE, missing),
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
        _graded(wander, _WANDER_DOUBTFUL_MV, math.inf, f"the baseline wanders by {wander:.1f} mV"),
    )


def _sample_figures(
    values: npt.NDArray[np.float32], rows: npt.NDArray[np.float32], rate: float
) -> npt.NDArray[np.float64]:
    """(leads, 5): flat share, clipped share, lowest, highest, wander of ``rows``, of which
    ``values`` are the finite ones; only a single row may have others."""
    exact = np.asarray(values, dtype=np.float64)
    low, high = exact.min(axis=1), exact.max(axis=1)
    level = _block_medians(exact, rate)
    wander = level.max(axis=1) - level.min(axis=1)
    flat, clipped = _flat_share(rows, rate), _clipped_share(exact, low, high)
    return np.stack([flat, clipped, low, high, wander], axis=1)


def _flat_share(rows: npt.NDArray[np.float32], rate: float) -> npt.NDArray[np.float64]:
    width = max(round(_WINDOW_S * rate), 2)
    if rows.shape[1] < width:
        return np.asarray(np.nanmax(rows, axis=1) - np.nanmin(rows, axis=1) < _FLAT_MV, np.float64)
    blocks = rows[:, : rows.shape[1] // width * width].reshape(len(rows), -1, width)
    span = blocks.max(axis=2) - blocks.min(axis=2)
    # the baseline between slow beats may be perfectly quiet; only longer stretches count
    longest = round(_FLAT_STRETCH_S / _WINDOW_S)
    shares = np.zeros(len(rows))
    for i in np.flatnonzero((span < _FLAT_MV).any(axis=1)):
        still = span[i][np.isfinite(span[i])] < _FLAT_MV
        runs = np.convolve(still, np.ones(longest), mode="full") >= longest
        covered = np.convolve(runs, np.ones(longest), mode="valid")[: still.size] > 0
        shares[i] = 1.0 if still.all() else float((covered & still).mean())
    return shares


def _clipped_share(
    values: npt.NDArray[np.float64], low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Share of samples that repeat the extreme value three times or more in a row."""
    at_limit = (values >= high[:, None]) | (values <= low[:, None])
    shares = np.zeros(len(values))
    for i in np.flatnonzero((at_limit.sum(axis=1) >= 3) & (high - low >= _FLAT_MV)):
        row, limit = values[i], at_limit[i]
        inner = limit[2:] & limit[1:-1] & limit[:-2]
        same = (row[2:] == row[1:-1]) & (row[1:-1] == row[:-2])
        shares[i] = float((inner & same).sum() / row.size)
    return shares


def _block_medians(values: npt.NDArray[np.float64], rate: float) -> npt.NDArray[np.float64]:
    width = max(round(rate), 1)
    if values.shape[1] < 2 * width:
        return np.zeros((len(values), 1))
    blocks = values[:, : values.shape[1] // width * width].reshape(len(values), -1, width)
    return np.asarray(median(blocks)[..., 0])


def _by_beats(
    filtered: FilteredLeads, beats: npt.NDArray[np.intp], seen: npt.NDArray[np.bool_]
) -> list[LeadQuality]:
    """Whether each lead's complexes resemble each other, and how they stand out of the noise.

    ``seen`` (leads, beats) says which beats a lead has.
    """
    before, after = round(0.12 * filtered.rate), round(0.30 * filtered.rate)
    inside = (beats >= before) & (beats < filtered.shape.shape[1] - after)
    beats, seen = beats[inside], seen[:, inside]
    rows = filtered.shape[:, beats[:, None] + np.arange(-before, after)]
    rows -= rows.mean(axis=2, keepdims=True)
    heights = rows.max(axis=2) - rows.min(axis=2)
    loudness = np.sqrt(np.mean(filtered.noise**2, axis=1))
    result = []
    for lead, counts in enumerate(seen):
        if counts.sum() < 2:
            result.append(LeadQuality("doubtful", "fewer than two beats were found", 0.3))
            continue
        size = float(median(heights[lead, counts])[0])
        if size < _FLAT_MV:
            reason = "no complexes stand out of the baseline"
            result.append(LeadQuality("unusable", reason, 0.0))
            continue
        shapes = rows[lead, counts & (heights[lead] >= _FLAT_MV)]
        result.append(_graded_beats(_likeness(shapes), float(loudness[lead]) / size))
    return result


def _likeness(rows: npt.NDArray[np.float64]) -> float:
    """The median correlation of two rows, which are centred; 1 for a single row."""
    if len(rows) < 2:
        return 1.0
    shapes = rows / (np.sqrt(np.einsum("bw,bw->b", rows, rows))[:, None] + 1e-9)
    shapes = shapes if len(shapes) <= 200 else shapes[::7]
    pairs = shapes @ shapes.T
    return float(median(pairs[np.tri(len(pairs), k=-1, dtype=bool)])[0])


def _graded_beats(alike: float, quiet: float) -> LeadQuality:
    return _worst(
        _graded(
            1 - alike,
            1 - _ALIKE_DOUBTFUL,
            1 - _ALIKE_UNUSABLE,
            f"beats hardly resemble each other (correlation {alike:.2f}): noise or many shapes",
        ),
        _graded(
            quiet, _NOISE_DOUBTFUL, math.inf, f"high-frequency noise is {quiet:.0%} of the QRS"
        ),
    )
