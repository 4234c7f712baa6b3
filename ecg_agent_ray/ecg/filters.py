"""Linear filters and resampling that keep gaps."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

__all__ = ["fill_gaps", "resample"]


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
