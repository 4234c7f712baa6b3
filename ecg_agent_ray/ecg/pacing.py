"""Pacemaker spikes: found by their shape and cut out, so that none is taken for a QRS complex."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["remove_spikes"]

_SMALLEST_MV = 0.12
_HALF_WIDTH_S = 0.008
_QUIET_BEFORE_S = 0.030
_QUIET_SHARE, _RETURN_SHARE = 0.25, 0.5
_VOTING_SHARE = 0.5
_TAIL_S = 0.024


def remove_spikes(
    signal: npt.NDArray[np.floating], rate: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(leads, samples) with spikes bridged by a straight line, and where they were.

    A spike rises and returns within 16 ms out of a baseline that was quiet for 22 ms; a QRS complex
    climbs for longer. ``signal`` has no gaps; rates below 250 Hz are returned as they are, since
    nothing of a spike is left in them.
    """
    from scipy.ndimage import binary_dilation, maximum_filter1d

    clean = np.array(signal, dtype=np.float64)
    half, quiet = round(_HALF_WIDTH_S * rate), round(_QUIET_BEFORE_S * rate)
    spikes = np.zeros(clean.shape, dtype=bool)
    if rate < 250 or clean.shape[-1] < 4 * quiet:
        return clean, spikes
    middle = slice(quiet, -half)
    before = clean[:, quiet - half : clean.shape[1] - 2 * half]
    after = clean[:, quiet + half :]
    height = np.abs(clean[:, middle] - (before + after) / 2)
    sharp = (height > _SMALLEST_MV) & (np.abs(after - before) < _RETURN_SHARE * height)
    if not sharp.any():
        return clean, spikes
    # how much the samples from ``quiet`` to ``half`` before each candidate move
    rows, columns = np.nonzero(sharp)
    windows = np.lib.stride_tricks.sliding_window_view(clean, quiet - half + 1, axis=1)
    calm = np.ptp(windows[rows, columns], axis=1) < _QUIET_SHARE * height[rows, columns]
    spikes[rows[calm], columns[calm] + quiet] = True
    if not spikes.any():
        return clean, spikes
    # a pacemaker is seen by most leads at once, an artefact or a notch of one lead is not
    votes = maximum_filter1d(spikes, 2 * half + 1, axis=1).sum(axis=0)
    spikes &= votes >= _VOTING_SHARE * len(clean)
    if spikes.any():
        # the amplifier's recovery makes a tail behind the spike, which goes with it
        tail = round(_TAIL_S * rate)
        structure = np.zeros((1, 2 * tail + 1), dtype=bool)
        structure[0, tail - half :] = True
        spikes = binary_dilation(spikes, structure)
        columns = np.arange(clean.shape[1])
        for row, bad in zip(clean, spikes, strict=True):
            if bad.any() and not bad.all():
                row[bad] = np.interp(columns[bad], columns[~bad], row[~bad])
    return clean, spikes
