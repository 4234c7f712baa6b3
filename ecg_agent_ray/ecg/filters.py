"""Linear filters and resampling that keep gaps."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

__all__ = ["band", "fill_gaps", "moving_average", "resample"]


def fill_gaps(signal: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """NaN replaced by the line between its neighbours along the last axis; all-NaN rows by 0."""
    filled = np.array(signal, dtype=np.float64)
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
    out = resample_poly(
        fill_gaps(signal), ratio.numerator, ratio.denominator, axis=-1, padtype="line"
    )
    gaps = ~np.isfinite(signal)
    if gaps.any():
        nearest = np.minimum(
            (np.arange(out.shape[-1]) * float(1 / ratio)).round().astype(int), signal.shape[-1] - 1
        )
        out[gaps[..., nearest]] = np.nan
    return np.asarray(out, dtype=np.float32)


def band(
    signal: npt.NDArray[np.floating],
    rate: float,
    low_hz: float | None,
    high_hz: float | None,
    order: int = 2,
) -> npt.NDArray[np.float64]:
    """Zero-phase Butterworth filter along the last axis; either edge may be left open.

    A high edge at or above 0.45 of the rate is left open: there is nothing above it to remove.
    """
    from scipy.signal import butter, sosfiltfilt

    if high_hz is not None and high_hz >= 0.45 * rate:
        high_hz = None
    if low_hz is None and high_hz is None:
        return np.asarray(signal, dtype=np.float64)
    if low_hz is None:
        sos = butter(order, high_hz, "lowpass", fs=rate, output="sos")
    elif high_hz is None:
        sos = butter(order, low_hz, "highpass", fs=rate, output="sos")
    else:
        sos = butter(order, (low_hz, high_hz), "bandpass", fs=rate, output="sos")
    # long enough that a slow high-pass has settled before the first beat
    pad = min(signal.shape[-1] - 1, int(rate * (1.5 if low_hz else 0.2)))
    filtered: npt.NDArray[np.float64] = sosfiltfilt(sos, signal, axis=-1, padlen=max(pad, 0))
    return filtered


def moving_average(signal: npt.NDArray[np.floating], width: int) -> npt.NDArray[np.float64]:
    """Centred mean over ``width`` samples along the last axis, ends held."""
    from scipy.ndimage import uniform_filter1d

    out: npt.NDArray[np.float64] = uniform_filter1d(
        np.asarray(signal, dtype=np.float64), max(int(width), 1), axis=-1, mode="nearest"
    )
    return out
