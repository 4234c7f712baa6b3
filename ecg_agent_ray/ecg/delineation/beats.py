"""Where the heart beats: QRS complexes in one lead or in several at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.filters import band, moving_average, quantile

__all__ = ["QRS_BAND_HZ", "find_beats", "find_beats_in_band"]

QRS_BAND_HZ = (8.0, 25.0)
_REFRACTORY_S = 0.24
_ENVELOPE_S = 0.10
_BLOCK_S, _LOCAL_BLOCKS, _WIDE_BLOCKS, _WIDE_SHARE = 0.5, 5, 14, 0.25
_THRESHOLD, _SEARCH_BACK = 0.42, 0.22


def find_beats(signal: npt.NDArray[np.floating], rate: float) -> npt.NDArray[np.intp]:
    """Sample index of each beat's steepest QRS energy.

    ``signal`` is (leads, samples) without gaps. The energy is the slope of the 8 to 25 Hz band,
    each lead scaled by its own, summed over the leads; a beat is a peak of it above a share of what
    the beats around it reach. Gaps over 1.66 of the median RR are searched again with half of
    that share (Pan and Tompkins 1985).
    """
    return find_beats_in_band(band(signal, rate, *QRS_BAND_HZ), rate)


def find_beats_in_band(qrs: npt.NDArray[np.floating], rate: float) -> npt.NDArray[np.intp]:
    """:func:`find_beats` of a signal of which only ``QRS_BAND_HZ`` is left."""
    from scipy.signal import find_peaks

    if qrs.shape[-1] < 0.5 * rate:
        return np.empty(0, dtype=np.intp)
    slopes = np.gradient(qrs, axis=-1)
    scale = quantile(np.abs(slopes), 0.98)
    slopes /= np.where(scale > 0, scale, np.inf)
    power = np.einsum("ls,ls->s", slopes, slopes)
    envelope = np.sqrt(np.maximum(moving_average(power, round(_ENVELOPE_S * rate)), 0))
    peaks, _ = find_peaks(envelope, distance=max(round(_REFRACTORY_S * rate), 1))
    if peaks.size == 0:
        return np.empty(0, dtype=np.intp)
    level = _local_level(envelope, rate)
    strength = envelope[peaks] / np.maximum(level[peaks], 1e-12)
    kept: npt.NDArray[np.intp] = peaks[strength >= _THRESHOLD]
    if kept.size >= 3:
        kept = _search_back(kept, peaks, strength)
    return kept


def _local_level(envelope: npt.NDArray[np.float64], rate: float) -> npt.NDArray[np.float64]:
    """What beats reach around each sample: a high percentile of half-second maxima over 2.5 s.

    Between the beats of a slow heart that would fall to the noise, so it keeps to a share of the
    second largest of seven seconds, in which 20 beats a minute still have two.
    """
    from scipy.ndimage import median_filter, percentile_filter, rank_filter

    step = max(round(_BLOCK_S * rate), 1)
    blocks = envelope[: envelope.size // step * step].reshape(-1, step).max(axis=1)
    if blocks.size < 3:
        return np.full(envelope.size, envelope.max())
    local = percentile_filter(blocks, 80, size=_LOCAL_BLOCKS, mode="nearest")
    typical = median_filter(local, size=min(21, blocks.size), mode="nearest")
    local = np.clip(local, 0.5 * typical, 2.0 * typical)
    wide = rank_filter(blocks, -2, size=min(_WIDE_BLOCKS, blocks.size), mode="nearest")
    local = np.maximum(local, _WIDE_SHARE * wide)
    centres = (np.arange(blocks.size) + 0.5) * step
    return np.asarray(np.interp(np.arange(envelope.size), centres, local), dtype=np.float64)


def _search_back(
    kept: npt.NDArray[np.intp], peaks: npt.NDArray[np.intp], strength: npt.NDArray[np.float64]
) -> npt.NDArray[np.intp]:
    rr = np.diff(kept)
    limit = 1.66 * np.median(rr)
    refractory = 0.4 * np.median(rr)
    found = list(kept)
    for start, end in pairwise(kept):
        if end - start <= limit:
            continue
        inside = (peaks > start + refractory) & (peaks < end - refractory)
        inside &= strength >= _SEARCH_BACK
        if inside.any():
            candidates = np.flatnonzero(inside)
            found.append(peaks[candidates[np.argmax(strength[candidates])]])
    return np.sort(np.array(found, dtype=np.intp))
