"""Beats and their fiducials of one lead or of all leads, for the measurement tool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.ecg.delineation import (
    FIDUCIALS,
    WORKING_RATE_HZ,
    ClassicalLead,
    Delineation,
    delineate,
    wave_probabilities,
)
from ecg_agent_ray.ecg.filters import fill_gaps
from ecg_agent_ray.ecg.pacing import remove_spikes
from ecg_agent_ray.ecg.quality import FilteredLeads, LeadQuality, assess_quality
from ecg_agent_ray.tools.measurement import BeatTable

__all__ = ["BeatFinder"]

_Points = dict[str, npt.NDArray[np.float64]]

# P waves stand highest in II, QRS and T in V5; between clean leads their scores say little more
_PREFERENCE = {"II": 0.2, "I": 0.1, "V5": 0.1}
# leads that see a beat from different sides, beside which one lead is measured
_SUPPORT, _SUPPORTING_LEADS = ("II", "V2", "V5"), 2
_LONGEST_GAP_S = 0.2
_FEWEST_SEEN = 0.8
# the network has learnt few long QT; those of slow hearts it sees better at a faster pace
_SLOW_RR_S, _FASTEST_PACE, _PACE_DOUBTFUL_MS = 1.1, 1.5, 40.0
# how far from the median of the leads a lead's boundary may lie to count, ms
_AGREEMENT_MS = {"p_onset": 30.0, "p_offset": 30.0, "qrs_onset": 30.0, "qrs_offset": 90.0}
_AGREEMENT_MS |= {"t_onset": 60.0, "t_offset": 60.0}
# a lead whose T moves more than this from beat to beat (median distance from its own median place)
# has no T to speak of, so it does not decide where the outermost one ends
_UNSTEADY_T_MS, _FEWEST_STEADY = 12.0, 3
_STRAY_T_MS = 80.0
# P waves of the classical method alone count if so many leads have one, at about the same place
_FEWEST_P_LEADS, _P_SPREAD_MS = 4, 80.0
_SCATTERED_P = "the leads do not share one P wave"


class BeatFinder:
    """Works on one recording at the working rate; every step is done once and only when needed.

    Where one lead alone is asked for (``only``), no more leads are looked at than finding beats
    takes: a few beside it, so that a noisy lead does not have to find its own.
    """

    def __init__(self, recording: Recording, only: str | None = None) -> None:
        self.recording = recording if only is None else _with_support(recording, only)
        self._found: dict[tuple[str, ...], npt.NDArray[np.intp]] = {}
        self._classical: dict[str, tuple[ClassicalLead, npt.NDArray[np.intp]]] = {}
        self._waves: dict[tuple[str, float], npt.NDArray[np.float32]] = {}

    @cached_property
    def _working(self) -> Recording:
        return self.recording.resample(WORKING_RATE_HZ)

    @cached_property
    def _without_spikes(self) -> Recording:
        """What waves are sought in. Beats are found with the spikes in place: a stump left of an
        atrial spike would look more like a small QRS than the spike itself does."""
        clean, spikes = remove_spikes(fill_gaps(self._working.signal), WORKING_RATE_HZ)
        if not spikes.any():
            return self._working
        clean[np.isnan(self._working.signal)] = np.nan
        return replace(self._working, signal=clean.astype(np.float32))

    @cached_property
    def quality(self) -> dict[str, LeadQuality]:
        return assess_quality(self._working, self._filtered, self._found_in)

    @cached_property
    def _filtered(self) -> FilteredLeads:
        return FilteredLeads(self._working)

    def _found_in(self, names: Sequence[str]) -> npt.NDArray[np.intp]:
        # the leads that are usable are mostly those whose quality was judged by the same beats
        key = tuple(names)
        if key not in self._found:
            self._found[key] = self._filtered.beats(key)
        return self._found[key]

    @cached_property
    def _beats(self) -> npt.NDArray[np.intp]:
        """Beats by all usable leads together; by all doubtful ones where none is usable."""
        working = self._working
        for status in ("usable", "doubtful"):
            names = [n for n, quality in self.quality.items() if quality.status == status]
            if names:
                beats = self._found_in(names)
                rows = working.signal[[working.leads.index(name) for name in names]]
                return beats[np.isfinite(rows[:, beats]).any(axis=0)]
        return np.empty(0, dtype=np.intp)

    def best_lead(self) -> str:
        """The usable lead of the highest score; lead II, the rhythm lead, wins near ties."""

        def score(name: str) -> tuple[bool, float]:
            quality = self.quality[name]
            return quality.status == "usable", quality.score + _PREFERENCE.get(name, 0.0)

        return max(self.recording.leads, key=score)

    def one_lead(self, name: str) -> BeatTable:
        """Beats of a lead by the network."""
        if self._beats.size == 0:
            return _empty()
        lead, anchors = self._without_spikes.lead(name), self._anchors(name)
        found = delineate(lead, self._probabilities(name), anchors, WORKING_RATE_HZ)
        if self._pace > 1:
            points, notes = self._with_t_of_slow_hearts(name, found)
        else:
            points, notes = found.points, []
        points = _without_gaps(points, lead)
        if not found.p_present:
            points |= _no_p_points(len(anchors))
            notes.append(_no_p())
        seen = int(np.isfinite(found.points["qrs_onset"]).sum())
        if seen < _FEWEST_SEEN * len(anchors):
            notes.append(
                f"heart rate is doubtful: the network sees a QRS complex in {seen} of "
                f"{len(anchors)} beats"
            )
        return BeatTable(points, WORKING_RATE_HZ, _rr_before(anchors, lead), notes)

    def check(self, *names: str) -> BeatTable:
        """The typical beat of a lead, or of several together, by the classical method."""
        if self._beats.size == 0 or not names:
            return _empty()
        tables = []
        for name in names:
            classical, anchors = self._aligned(name)
            beat = classical.typical_beat(anchors)
            # leads are aligned each by itself
            shift = float(np.median(anchors - self._beats))
            points = {point: np.array([place + shift]) for point, place in beat.items()}
            rr = _rr_before(anchors, self._without_spikes.lead(name))
            typical_rr = np.array([np.nanmedian(rr) if np.isfinite(rr).any() else np.nan])
            tables.append(BeatTable(points, WORKING_RATE_HZ, typical_rr))
        if len(tables) == 1:
            return tables[0]
        together = _together(tables)
        notes = [_SCATTERED_P] if _scattered_p(tables) else []
        return replace(together, notes=[*together.notes, *notes])

    def _aligned(self, name: str) -> tuple[ClassicalLead, npt.NDArray[np.intp]]:
        if name not in self._classical:
            lead = ClassicalLead(self._without_spikes.lead(name), WORKING_RATE_HZ)
            self._classical[name] = lead, lead.align_beats(self._beats)
        return self._classical[name]

    def _anchors(self, name: str) -> npt.NDArray[np.intp]:
        return self._aligned(name)[1]

    def _probabilities(self, *names: str, pace: float = 1.0) -> npt.NDArray[np.float32]:
        """Of the last lead named; all that are named go through the network together, as if the
        heart were ``pace`` times as fast."""
        new = [name for name in names if (name, pace) not in self._waves]
        if new:
            signal = np.stack([self._without_spikes.lead(name) for name in new])
            rows = wave_probabilities(signal, WORKING_RATE_HZ * pace)
            self._waves.update(zip([(name, pace) for name in new], rows, strict=True))
        return self._waves[names[-1], pace]

    @cached_property
    def _pace(self) -> float:
        """How many times faster T is sought than it came: as if RR were 1 s in slow hearts, but
        not too fast for the shape of their T; 1 in all others."""
        if self._beats.size < 2:
            return 1.0
        rr_s = float(np.median(np.diff(self._beats))) / WORKING_RATE_HZ
        return min(rr_s, _FASTEST_PACE) if rr_s > _SLOW_RR_S else 1.0

    def _with_t_of_slow_hearts(self, name: str, found: Delineation) -> tuple[_Points, list[str]]:
        """``found``'s points with T as the network sees it at a faster pace, and a note where that
        is not what it sees at the heart's own."""
        lead, anchors = self._without_spikes.lead(name), self._anchors(name)
        rows = self._probabilities(name, pace=self._pace)
        faster = delineate(lead, rows, anchors, WORKING_RATE_HZ * self._pace).points
        points = dict(found.points)
        seen = np.isfinite(faster["t_offset"])
        for point in ("t_onset", "t_peak", "t_offset"):
            points[point] = np.where(seen, faster[point], points[point])
        later = (faster["t_offset"] - found.points["t_offset"]) * 1000.0 / WORKING_RATE_HZ
        later = later[np.isfinite(later)]
        change = float(np.median(later)) if later.size else 0.0
        if abs(change) <= _PACE_DOUBTFUL_MS:
            return points, []
        end = f"{abs(change):.0f} ms {'earlier' if change > 0 else 'later'}"
        return points, [f"QT is doubtful: at the slow heart's own pace the network ends T {end}"]

    def leads_together(self) -> tuple[list[str], LeadQuality]:
        """The leads a global measurement takes, and how good they are."""
        names = [n for n, quality in self.quality.items() if quality.status == "usable"]
        names = names or [n for n, q in self.quality.items() if q.status == "doubtful"]
        if not names:
            return [], LeadQuality("unusable", "no lead is usable", 0.0)
        n_all = len(self.recording.leads)
        reason = "" if len(names) == n_all else f"{len(names)} of {n_all} leads are used"
        status = self.quality[names[0]].status
        return names, LeadQuality(status, reason, min(self.quality[n].score for n in names))

    def all_leads(self, names: list[str]) -> BeatTable:
        """Earliest onset to latest offset over the leads that agree, as electrocardiographs do.

        A lead that lies further out than those is named in a note.
        """
        if self._beats.size == 0 or not names:
            return _empty()
        self._probabilities(*names)
        if self._pace > 1:
            self._probabilities(*names, pace=self._pace)
        tables = [self.one_lead(name) for name in names]
        together = _together(tables)
        notes = _disputed(names, tables)
        by_pace = [note for table in tables for note in table.notes if note.startswith("QT")]
        if not notes and 2 * len(by_pace) >= len(tables):
            notes = ["QT is doubtful: in most leads the network ends T elsewhere at another pace"]
        return replace(together, notes=[*together.notes, *notes])


def _with_support(recording: Recording, name: str) -> Recording:
    others = [n for n in _SUPPORT if n in recording.leads and n != name]
    return recording.select([name, *others[:_SUPPORTING_LEADS]])


def _together(tables: list[BeatTable]) -> BeatTable:
    with_p = [t for t in tables if np.isfinite(t.points["p_onset"]).any()]
    notes = [] if 2 * len(with_p) >= len(tables) else [_no_p()]
    points = {name: _combined(name, tables) for name in FIDUCIALS}
    if notes:
        points |= _no_p_points(len(tables[0]))
    rr_before = _median_over_leads(np.stack([t.rr_before_ms for t in tables]))
    return BeatTable(points, WORKING_RATE_HZ, rr_before, notes)


def _combined(name: str, tables: list[BeatTable]) -> npt.NDArray[np.float64]:
    """Each beat's median over the leads, moved to where the outermost lead that agrees has it.

    How far a lead lies from the others is the median over its beats, so that the noise of single
    beats, of which the outermost would be taken, does not widen the intervals.
    """
    stack = np.stack([table.points[name] for table in tables])
    seen = np.isfinite(stack).any(axis=0)
    result = np.full(stack.shape[1], np.nan)
    if not seen.any():
        return result
    result[seen] = np.nanmedian(stack[:, seen], axis=0)
    if name in _AGREEMENT_MS:
        away, unsteadiness = _from_the_others(name, tables)
        steady = unsteadiness <= _UNSTEADY_T_MS
        if name.startswith("t_") and steady.sum() >= _FEWEST_STEADY:
            away = away[steady]
        near = away[np.abs(away) <= _AGREEMENT_MS[name]]
        if near.size:
            outermost = near.min() if name.endswith("onset") else near.max()
            result += outermost * WORKING_RATE_HZ / 1000.0
    return result


def _from_the_others(
    name: str, tables: list[BeatTable]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """How much later than in the median lead each lead has it, and how far a typical beat is from
    that, ms; NaN if in less than half of the beats."""
    stack = np.stack([table.points[name] for table in tables])
    stack = stack[:, np.isfinite(stack).any(axis=0)]
    away, unsteadiness = np.full((2, len(tables)), np.nan)
    often = 2 * np.isfinite(stack).sum(axis=1) >= max(stack.shape[1], 1)
    if often.any():
        middle = np.nanmedian(stack, axis=0)
        apart = (stack[often] - middle) * 1000.0 / WORKING_RATE_HZ
        away[often] = np.nanmedian(apart, axis=1)
        unsteadiness[often] = np.nanmedian(np.abs(apart - away[often, None]), axis=1)
    return away, unsteadiness


def _disputed(names: list[str], tables: list[BeatTable]) -> list[str]:
    """A note on a lead whose T ends so much later that the global QT leaves it out."""
    late = np.nan_to_num(_from_the_others("t_offset", tables)[0])
    if late.max() <= _STRAY_T_MS:
        return []
    return [
        f"QT is doubtful: in lead {names[int(late.argmax())]} T seems to end {late.max():.0f} ms "
        "later than in most"
    ]


def _scattered_p(tables: list[BeatTable]) -> bool:
    """Whether the leads' typical beats have their P waves at different places, or few have one."""
    pr = np.array([table.interval_ms("p_onset", "qrs_onset")[0] for table in tables])
    pr = pr[np.isfinite(pr)]
    if pr.size < _FEWEST_P_LEADS:
        return True
    low, high = np.percentile(pr, (25, 75))
    return bool(high - low > _P_SPREAD_MS)


def _rr_before(
    anchors: npt.NDArray[np.intp], lead: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """RR before each beat, ms; NaN for the first and where a gap may hide a beat."""
    rr = np.concatenate(([np.nan], np.diff(anchors))) * 1000.0 / WORKING_RATE_HZ
    missing = np.concatenate(([0], np.cumsum(np.isnan(lead))))[anchors]
    rr[1:][np.diff(missing) > _LONGEST_GAP_S * WORKING_RATE_HZ] = np.nan
    return rr


def _median_over_leads(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Median of each column (beat) over the leads that have it, NaN where none has."""
    result = np.full(values.shape[1], np.nan)
    seen = np.isfinite(values).any(axis=0)
    if seen.any():
        result[seen] = np.nanmedian(values[:, seen], axis=0)
    return result


def _without_gaps(
    points: dict[str, npt.NDArray[np.float64]], lead: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float64]]:
    """Points that fell into a gap were drawn on the bridge over it, so they are dropped."""
    gap = np.isnan(lead)
    if not gap.any():
        return points
    cleaned = {}
    for name, positions in points.items():
        index = np.clip(np.nan_to_num(positions).astype(np.intp), 0, lead.size - 1)
        cleaned[name] = np.where(gap[index] & (name != "r_peak"), np.nan, positions)
    return cleaned


def _no_p_points(n_beats: int) -> dict[str, npt.NDArray[np.float64]]:
    return {name: np.full(n_beats, np.nan) for name in FIDUCIALS if name.startswith("p_")}


def _no_p() -> str:
    return (
        "no PR: the beats share no P wave (as in atrial fibrillation, paced or junctional rhythm)"
    )


def _empty(*notes: str) -> BeatTable:
    nothing = np.empty(0)
    return BeatTable(dict.fromkeys(FIDUCIALS, nothing), WORKING_RATE_HZ, nothing, list(notes))
