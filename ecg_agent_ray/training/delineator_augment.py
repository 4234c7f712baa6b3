"""Training examples for the delineation network, varied in time, shape, rhythm and noise.

Waves and the stretches between them are stretched each by a factor of its own, which makes slow and
fast hearts, long and short QT, PR and wide QRS out of any record, with their boundaries known.
P waves are scaled or taken away, with fibrillatory waves put in their place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.delineation.network import NETWORK_RATE_HZ, WAVES, prepare_lead
from ecg_agent_ray.ecg.filters import band
from ecg_agent_ray.training.delineator_data import SOURCE_RATE_HZ, AnnotatedLead, FreeLead

__all__ = ["EXAMPLE_SAMPLES", "annotated_example", "free_example"]

EXAMPLE_SAMPLES = 2560
Array = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

_P, _QRS, _T = 1, 2, 3
# kinds of stretches between waves
_REST, _PQ, _ST = 0, 4, 5
_DURATION_S = EXAMPLE_SAMPLES / NETWORK_RATE_HZ
_LONG_QT_SHARE = 0.1
_STRETCH_SMOOTHING_S = 0.030
_P_TAPER_S = 0.030
# how far around a marked beat of a sparsely marked record nothing else can be
_KNOWN_BEFORE_S, _KNOWN_AFTER_S = 0.05, 0.06


def annotated_example(
    lead: AnnotatedLead, rng: np.random.Generator
) -> tuple[Float32, Float32, Float32]:
    """A varied stretch of ``lead``: input (n,), target (4, n) summing to 1, and where the target is
    known (n,), with n = :data:`EXAMPLE_SAMPLES`. Targets at boundaries are shares of a sample."""
    signal, without_p = _with_other_p(lead, rng)
    timing = _warped(lead, rng, irregular=without_p)
    times = _start(lead, timing, rng) + np.arange(EXAMPLE_SAMPLES) / NETWORK_RATE_HZ
    source = np.interp(times, timing.new, timing.old)
    values = np.interp(source * SOURCE_RATE_HZ, np.arange(signal.size), signal)
    target = _target(lead, timing, times, without_p)
    known = _known(lead, timing, times) & (times >= timing.new[0]) & (times <= timing.new[-1])
    size = _size(values)
    if without_p and rng.random() < 0.8:
        values = values + _fibrillation(rng) * size * 10 ** rng.uniform(-2.2, -0.7)
    return _recorded(values, size, rng), target, known.astype(np.float32)


def free_example(lead: FreeLead, rng: np.random.Generator) -> tuple[Float32, Float32]:
    """A stretch of a lead without marks as it is and with noise: two inputs (n,)."""
    step = round(SOURCE_RATE_HZ / NETWORK_RATE_HZ)
    first = rng.integers(0, max(lead.signal.size - step * EXAMPLE_SAMPLES, 0) + 1)
    values = lead.signal[first : first + step * EXAMPLE_SAMPLES : step].astype(np.float64)
    values = np.pad(values, (0, EXAMPLE_SAMPLES - values.size), mode="edge")
    return prepare_lead(values), _recorded(values, _size(values), rng)


@dataclass(frozen=True)
class _Timing:
    """Knots of a map from the lead's own time to the example's, both in seconds."""

    old: Array
    new: Array

    def moved(self, seconds: npt.ArrayLike) -> Array:
        return np.interp(np.asarray(seconds, dtype=np.float64), self.old, self.new)


def _stretches(lead: AnnotatedLead) -> tuple[Array, npt.NDArray[np.intp]]:
    """Ends of the waves and of what lies between them in seconds, and the kind of each stretch."""
    onsets = np.where(np.isnan(lead.waves[:, 1]), lead.waves[:, 2], lead.waves[:, 1])
    knots, kinds, last = [0.0], [], _REST
    for index in np.argsort(onsets):
        kind, offset = int(lead.waves[index, 0]), lead.waves[index, 3]
        if onsets[index] < knots[-1]:
            continue
        between = {(_P, _QRS): _PQ, (_QRS, _T): _ST}.get((last, kind), _REST)
        kinds += [between, kind]
        knots += [float(onsets[index]), float(offset)]
        last = kind
    end = lead.signal.size / SOURCE_RATE_HZ
    if end > knots[-1]:
        kinds.append(_REST)
        knots.append(end)
    return np.array(knots), np.array(kinds, dtype=np.intp)


def _warped(lead: AnnotatedLead, rng: np.random.Generator, *, irregular: bool) -> _Timing:
    knots, kinds = _stretches(lead)

    def usually(spread: float, rarely: tuple[float, float] | None = None) -> float:
        if rarely is not None and rng.random() < 0.2:
            return float(rng.uniform(*rarely))
        return float(np.exp(rng.normal(0, spread)))

    factors = np.full(6, usually(0.10))
    if rng.random() < 0.7:
        factors[_P] *= usually(0.15)
        factors[_PQ] *= usually(0.35)
        factors[_QRS] *= usually(0.12, rarely=(1.0, 1.7))
        factors[_T] *= usually(0.18, rarely=(1.0, 1.9))
        factors[_ST] *= usually(0.30)
        factors[_REST] *= usually(0.35, rarely=(1.3, 3.5))
    if rng.random() < _LONG_QT_SHARE:
        # a long QT read as a normal one is the worst mistake such a tool can make
        factors[[_ST, _T]] *= rng.uniform(1.2, 1.9)
        factors[_REST] *= rng.uniform(1.0, 2.5)
    each = factors[kinds]
    if irregular or rng.random() < 0.3:
        jitter = np.exp(rng.normal(0, 0.25 if irregular else 0.1, kinds.size))
        each = each * np.where(kinds == _REST, jitter, 1.0)
    return _smooth_timing(knots, each)


def _smooth_timing(knots: Array, factors: Array) -> _Timing:
    """Stretch by ``factors`` between ``knots``, the change from one to the next spread over time.

    Were it sudden, the kink in the signal would give the boundary of the wave away.
    """
    from scipy.ndimage import gaussian_filter1d

    step = 1.0 / NETWORK_RATE_HZ
    old = np.arange(0.0, knots[-1] + step, step)
    stretch = np.log(factors)[np.clip(np.searchsorted(knots, old) - 1, 0, factors.size - 1)]
    smooth = np.exp(gaussian_filter1d(stretch, _STRETCH_SMOOTHING_S / step, mode="nearest"))
    return _Timing(old, np.concatenate(([0.0], np.cumsum(smooth[:-1]) * step)))


def _start(lead: AnnotatedLead, timing: _Timing, rng: np.random.Generator) -> float:
    """Where the example begins; up to 0.3 s of it may hang over an end of a complete lead."""
    if lead.complete:
        return float(rng.uniform(-0.3, max(timing.new[-1] - _DURATION_S, 0) + 0.3))
    first = float(timing.moved(np.nanmin(lead.waves[:, 1])))
    last = float(timing.moved(np.nanmax(lead.waves[:, 3])))
    return float(rng.uniform(first - 1.0, max(last - _DURATION_S, first - 1.0) + 1.0))


def _target(lead: AnnotatedLead, timing: _Timing, times: Array, without_p: bool) -> Float32:
    half = 0.5 / NETWORK_RATE_HZ
    target = np.zeros((len(WAVES), times.size), dtype=np.float32)
    for kind, onset, peak, offset in lead.waves:
        if kind == _P and without_p:
            continue
        first, last = timing.moved([peak if np.isnan(onset) else onset, offset])
        if last < times[0] or first > times[-1]:
            continue
        covered = (np.minimum(times + half, last) - np.maximum(times - half, first)) / (2 * half)
        row = target[int(kind)]
        np.maximum(row, np.clip(covered, 0, 1), out=row)
    target[0] = np.clip(1 - target[1:].sum(axis=0), 0, 1)
    return target / target.sum(axis=0)


def _known(lead: AnnotatedLead, timing: _Timing, times: Array) -> npt.NDArray[np.bool_]:
    if lead.complete:
        first, last = timing.moved([np.nanmin(lead.waves[:, 1:]), np.nanmax(lead.waves[:, 1:])])
        return (times >= first) & (times <= last)
    known = np.zeros(times.size, dtype=bool)
    for before, wave, after in _neighbours(lead.waves):
        if wave[0] != _QRS:
            continue
        has_p = before is not None and before[0] == _P and wave[1] - before[2] < 0.5
        first = (before[1] if has_p and before is not None else wave[1]) - _KNOWN_BEFORE_S
        spans = [(first, wave[3] + _KNOWN_BEFORE_S / 5)]
        if after is not None and after[0] == _T:
            # where the onset of T was not marked, nothing is known up to its peak
            spans.append((after[2] if np.isnan(after[1]) else wave[3], after[3] + _KNOWN_AFTER_S))
        for begin, end in spans:
            begin, end = timing.moved([begin, end])
            known |= (times >= begin) & (times <= end)
    return known


def _neighbours(waves: Array) -> list[tuple[Array | None, Array, Array | None]]:
    rows = [None, *waves, None]
    return [(rows[i], rows[i + 1], rows[i + 2]) for i in range(len(waves))]  # type: ignore[misc]


def _with_other_p(lead: AnnotatedLead, rng: np.random.Generator) -> tuple[Array, bool]:
    """The signal with its P waves scaled, turned over or taken away; whether they are gone."""
    chance, factor = rng.random(), 1.0
    if (lead.waves[:, 0] == _P).any():
        if lead.complete and chance < 0.12:
            factor = 0.0
        elif chance < 0.5:
            factor = float(np.exp(rng.normal(0, 0.5))) * (1 if rng.random() < 0.9 else -1)
    signal = lead.signal.astype(np.float64)
    taper = round(_P_TAPER_S * SOURCE_RATE_HZ)
    for kind, onset, _, offset in lead.waves if factor != 1.0 else ():
        if kind != _P or np.isnan(onset):
            continue
        first = int(onset * SOURCE_RATE_HZ) - taper
        last = int(offset * SOURCE_RATE_HZ) + taper
        if first >= 0 and last < signal.size:
            chord = np.linspace(signal[first], signal[last], last - first)
            # fades in and out beside the wave, so that no edge marks its ends
            ends = np.minimum(np.arange(last - first), np.arange(last - first)[::-1]) / taper
            weight = 0.5 - 0.5 * np.cos(np.pi * np.clip(ends, 0, 1))
            change = (factor - 1.0) * weight * (signal[first:last] - chord)
            signal[first:last] += change
    return signal, factor == 0.0


def _size(values: Array) -> float:
    return float(np.percentile(np.abs(values - np.median(values)), 99)) + 1e-3


def _recorded(values: Array, size: float, rng: np.random.Generator) -> Float32:
    """As another device and patient would have it: noise, polarity, bandwidth, gain."""
    values = values + _noise(values.size, rng) * size
    if rng.random() < 0.15:
        values = -values
    if rng.random() < 0.3:
        # whole hertz, since designed filters are kept
        values = band(values, NETWORK_RATE_HZ, None, float(rng.integers(25, 100)), order=1)
    return prepare_lead(values) * np.float32(np.exp(rng.normal(0, 0.2)))


def _noise(n: int, rng: np.random.Generator) -> Array:
    """Baseline wander, muscle and mains noise, in units of the signal's size."""
    from scipy.ndimage import gaussian_filter1d

    times, noise = np.arange(n) / NETWORK_RATE_HZ, np.zeros(n)

    def wave(hz: float) -> Array:
        return np.sin(2 * np.pi * (hz * times + rng.random()))

    if rng.random() < 0.6:
        noise += sum(rng.uniform(0, 0.5) * wave(rng.uniform(0.05, 0.6)) for _ in range(3))
    if rng.random() < 0.5:
        noise += rng.standard_normal(n) * 10 ** rng.uniform(-3, -1.1)
    if rng.random() < 0.2:
        noise += wave(float(rng.choice([50, 60]))) * 10 ** rng.uniform(-2.5, -1)
    if rng.random() < 0.25:
        coloured = gaussian_filter1d(rng.standard_normal(n), rng.uniform(1, 12))
        noise += coloured / coloured.std() * 10 ** rng.uniform(-2.5, -1.1)
    return noise


def _fibrillation(rng: np.random.Generator) -> Array:
    """Fibrillatory waves of 4 to 9.5 Hz, rate and size wandering; at times flutter's saw teeth."""
    times = np.arange(EXAMPLE_SAMPLES) / NETWORK_RATE_HZ
    knots = np.arange(0, times[-1] + 1, 0.4)
    wander = np.interp(times, knots, rng.standard_normal(knots.size))
    cycles = np.cumsum(rng.uniform(4, 9.5) * (1 + 0.15 * wander)) / NETWORK_RATE_HZ
    if rng.random() < 0.3:
        shape = 2 * (cycles % 1) - 1
    else:
        shape = np.sin(2 * np.pi * cycles) + 0.4 * np.sin(4 * np.pi * cycles + rng.uniform(0, 6))
    size = np.interp(times, np.linspace(0, times[-1], 8), rng.uniform(0.3, 1, 8))
    return np.asarray(shape * size, dtype=np.float64)
