"""Linear filters and resampling that keep gaps."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "band",
    "bands",
    "fill_gaps",
    "low_passes",
    "median",
    "moving_average",
    "quantile",
    "resample",
]

# order, low and high edge in Hz
_Edges = tuple[int, float | None, float | None]

_LONG_PAD_S, _SHORT_PAD_S = 3.0, 0.2


def fill_gaps(signal: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """NaN replaced by the line between its neighbours along the last axis; all-NaN rows by 0."""
    filled = np.array(signal, dtype=np.float64)
    if np.isfinite(filled).all():
        return filled
    rows = filled.reshape(-1, filled.shape[-1])
    index = np.arange(rows.shape[1])
    for row in rows:
        bad = ~np.isfinite(row)
        if bad.all():
            row[:] = 0.0
        elif bad.any():
            row[bad] = np.interp(index[bad], index[~bad], row[~bad])
    return filled


def resample(
    signal: npt.NDArray[np.floating], from_hz: float, to_hz: float
) -> npt.NDArray[np.float32]:
    """Polyphase resampling of (leads, samples); gaps are bridged for the filter and put back."""
    if from_hz == to_hz:
        return np.asarray(signal, dtype=np.float32)
    from scipy.signal import resample_poly

    ratio = Fraction(to_hz / from_hz).limit_denominator(1000)
    # the ends are held, so that an offset does not ring there
    up, down = ratio.numerator, ratio.denominator
    taps = _resampling_filter(max(up, down))
    out = resample_poly(fill_gaps(signal), up, down, axis=-1, window=taps, padtype="line")
    gaps = ~np.isfinite(signal)
    if gaps.any():
        nearest = np.minimum(
            (np.arange(out.shape[-1]) * float(1 / ratio)).round().astype(int), signal.shape[-1] - 1
        )
        out[gaps[..., nearest]] = np.nan
    return np.asarray(out, dtype=np.float32)


@lru_cache(maxsize=32)
def _resampling_filter(ratio: int) -> npt.NDArray[np.float64]:
    """The low-pass that ``scipy.signal.resample_poly`` would design anew at every call."""
    from scipy.signal import firwin

    taps: npt.NDArray[np.float64] = firwin(20 * ratio + 1, 1.0 / ratio, window=("kaiser", 5.0))
    taps.setflags(write=False)
    return taps


def band(
    signal: npt.NDArray[np.floating],
    rate: float,
    low_hz: float | None,
    high_hz: float | None,
    order: int = 2,
) -> npt.NDArray[np.float64]:
    """Zero-phase Butterworth filter along the last axis; either edge may be left open.

    The same as filtering forwards and backwards, done in one go on the spectrum. A high edge at or
    above 0.45 of the rate is left open: there is nothing above it to remove.
    """
    cascade = _cascade(low_hz, high_hz, rate, order)
    if not cascade:
        return np.asarray(signal, dtype=np.float64)
    pad_s = _LONG_PAD_S if low_hz else _SHORT_PAD_S
    return _filtered(signal, rate, pad_s, [cascade])[0]


def bands(
    signal: npt.NDArray[np.floating],
    rate: float,
    edges_hz: Sequence[tuple[float | None, float | None]],
) -> list[npt.NDArray[np.float64]]:
    """Several bands of one signal, each as of :func:`band`, from one spectrum."""
    cascades = [_cascade(low_hz, high_hz, rate) for low_hz, high_hz in edges_hz]
    return _filtered(signal, rate, _LONG_PAD_S, cascades)


def low_passes(
    signal: npt.NDArray[np.floating], rate: float, low_hz: float, high_hz: Sequence[float]
) -> list[npt.NDArray[np.float64]]:
    """``signal`` above ``low_hz``, once below each of ``high_hz``: as of :func:`band` with the
    one and then with the other edge, for half the transforms."""
    cascades = [[(2, low_hz, None), *_cascade(None, high, rate)] for high in high_hz]
    return _filtered(signal, rate, _LONG_PAD_S, cascades)


def _cascade(
    low_hz: float | None, high_hz: float | None, rate: float, order: int = 2
) -> list[_Edges]:
    """The filter of a band, or none where nothing of the signal is outside it."""
    if high_hz is not None and high_hz >= 0.45 * rate:
        high_hz = None
    return [] if low_hz is None and high_hz is None else [(order, low_hz, high_hz)]


def _filtered(
    signal: npt.NDArray[np.floating],
    rate: float,
    pad_s: float,
    cascades: Sequence[Sequence[_Edges]],
) -> list[npt.NDArray[np.float64]]:
    """One result for each cascade of filters."""
    from scipy.fft import irfft, next_fast_len, rfft

    n = signal.shape[-1]
    # long enough that nothing of one end is heard at the other
    pad = min(n - 1, int(rate * pad_s))
    size = next_fast_len(n + 2 * pad, real=True)
    padded = np.empty((*signal.shape[:-1], size))
    inner = padded[..., : n + 2 * pad]
    inner[..., pad : pad + n] = signal
    # each end goes on turned over about its last sample, and the two are joined by a ramp
    if pad:
        first, last = inner[..., pad : pad + 1], inner[..., pad + n - 1 : pad + n]
        inner[..., :pad] = 2 * first - inner[..., 2 * pad : pad : -1]
        inner[..., pad + n :] = 2 * last - inner[..., pad + n - 2 : n - 2 : -1]
    rest = size - inner.shape[-1]
    share = np.arange(1, rest + 1) / (rest + 1)
    start, end = inner[..., :1], inner[..., -1:]
    padded[..., inner.shape[-1] :] = end + (start - end) * share
    spectrum = rfft(padded, axis=-1)
    results = []
    for cascade in cascades:
        kept = spectrum * _cascade_response(tuple(cascade), rate, size)
        results.append(irfft(kept, n=size, axis=-1, overwrite_x=True)[..., pad : pad + n])
    return results


@lru_cache(maxsize=128)
def _cascade_response(
    cascade: tuple[_Edges, ...], rate: float, size: int
) -> npt.NDArray[np.float64]:
    """|H|^2 of filters in a row, at the frequencies of a real FFT of ``size`` samples."""
    power = np.ones(size // 2 + 1)
    for edges in cascade:
        power *= _power_response(*edges, rate, size)
    power.setflags(write=False)
    return power


def _power_response(
    order: int, low_hz: float | None, high_hz: float | None, rate: float, size: int
) -> npt.NDArray[np.float64]:
    from scipy.signal import butter, freqz_sos

    edges = (low_hz, high_hz) if low_hz and high_hz else low_hz or high_hz
    kind = "bandpass" if low_hz and high_hz else "highpass" if low_hz else "lowpass"
    sos = butter(order, edges, kind, fs=rate, output="sos")
    _, response = freqz_sos(sos, worN=2 * np.pi * np.arange(size // 2 + 1) / size)
    return np.asarray(np.abs(response) ** 2, dtype=np.float64)


def moving_average(signal: npt.NDArray[np.floating], width: int) -> npt.NDArray[np.float64]:
    """Centred mean over ``width`` samples along the last axis, ends held."""
    from scipy.ndimage import uniform_filter1d

    out: npt.NDArray[np.float64] = uniform_filter1d(
        np.asarray(signal, dtype=np.float64), max(int(width), 1), axis=-1, mode="nearest"
    )
    return out


def quantile(values: npt.NDArray[Any], share: float) -> npt.NDArray[Any]:
    """Along the last axis, which is kept with length one: as ``numpy.quantile``, whose call takes
    ten times as long on the few hundred values of a beat. ``values`` hold no NaN."""
    place = share * (values.shape[-1] - 1)
    low = int(place)
    high = min(low + 1, values.shape[-1] - 1)
    ordered = np.partition(values, (low, high), axis=-1)
    below, above = ordered[..., low : low + 1], ordered[..., high : high + 1]
    return np.asarray(below + (above - below) * (place - low))


def median(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The :func:`quantile` of one half."""
    return quantile(values, 0.5)
