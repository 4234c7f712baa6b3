"""The cells of a lead's spectrogram, and ranking them by SpectralX with FIA (arXiv 2408.03636)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FRAME", "HOP", "cell_candidates", "istft_cells", "rank_cells", "stft_cells"]

Array = npt.NDArray[np.floating[Any]]

# ECG-Agent's settings of SpectralX (SPEC of its explanation tool): 512-sample frames, hop 128 at
# 500 Hz, 50 sets of one cell, insertion weighted 0.8, deletion 0.2, seed 42
FRAME, HOP = 512, 128
_PERTURBATIONS = 50
_INSERTION_WEIGHT, _DELETION_WEIGHT = 0.8, 0.2
_SEED = 42
_MAX_HZ = 50.0
"""Cells above hold no ECG worth explaining (diagnostic content ends near 40 Hz)."""


def rank_cells(
    window: Array,
    row: int,
    score: Any,
    *,
    top_k: int,
    perturbations: int = _PERTURBATIONS,
    set_size: int = 1,
    seed: int = _SEED,
) -> list[tuple[tuple[int, int], float]]:
    """Greedy FIA ranking of the spectrogram cells of ``window[row]``.

    Parameters
    ----------
    window : (leads, samples) mV at 500 Hz
    row : lead that is perturbed; the others stay as they are
    score : callable (n, leads, samples) -> (n,) probabilities
    top_k : cells wanted; fewer come back if there are fewer

    Returns
    -------
    list of ((frequency bin, frame), combined score), best first
    """
    rng = np.random.default_rng(seed)
    spectrum = stft_cells(window[row])
    background = _background(spectrum)
    candidates = cell_candidates(spectrum)
    inserted, deleted = background.copy(), spectrum.copy()
    ranked: list[tuple[tuple[int, int], float]] = []
    for _ in range(min(top_k, len(candidates))):
        size = min(set_size, len(candidates))
        sets = _draw_sets(rng, candidates, spectrum, perturbations, size)
        variants = []
        for cells in sets:
            f, t = np.array(cells).T
            with_cells, without_cells = inserted.copy(), deleted.copy()
            with_cells[f, t] = spectrum[f, t]
            without_cells[f, t] = background[f, t]
            variants += [with_cells, without_cells]
        batch = np.repeat(window[None].astype(np.float32), len(variants), axis=0)
        batch[:, row] = [istft_cells(v, window.shape[1]) for v in variants]
        results = score(batch)
        combined = _INSERTION_WEIGHT * results[0::2] - _DELETION_WEIGHT * results[1::2]
        best, value = _best_cell(sets, combined)
        ranked.append((best, value))
        candidates.remove(best)
        inserted[best] = spectrum[best]
        deleted[best] = background[best]
    return ranked


def _draw_sets(
    rng: np.random.Generator,
    candidates: Sequence[tuple[int, int]],
    spectrum: npt.NDArray[np.complexfloating[Any, Any]],
    count: int,
    size: int,
) -> list[list[tuple[int, int]]]:
    """Random sets of distinct cells, drawn by their magnitude.

    Fifty uniform draws of a cell among thousands would mostly test silence; a cell that holds more
    of the signal is drawn more often, and every cell can be.
    """
    weight = np.array([abs(spectrum[cell]) for cell in candidates]) + 1e-6
    weight /= weight.sum()
    return [
        [candidates[i] for i in rng.choice(len(candidates), size, replace=False, p=weight)]
        for _ in range(count)
    ]


def _best_cell(
    sets: Sequence[Sequence[tuple[int, int]]], combined: Array
) -> tuple[tuple[int, int], float]:
    """The drawn cell with the greatest mean over the sets that hold it, by cell and not by
    position, so that a cell no set holds shifts nothing."""
    totals: dict[tuple[int, int], list[float]] = {}
    for cells, value in zip(sets, combined, strict=True):
        for cell in cells:
            totals.setdefault(cell, []).append(float(value))
    means = {cell: float(np.mean(values)) for cell, values in totals.items()}
    best = max(means, key=lambda cell: means[cell])
    return best, means[best]


def cell_candidates(
    spectrum: npt.NDArray[np.complexfloating[Any, Any]],
) -> list[tuple[int, int]]:
    """(frequency bin, frame) of every cell that may explain something: those up to 50 Hz."""
    usable = int(_MAX_HZ * FRAME / 500.0) + 1
    return [(f, t) for f in range(usable) for t in range(spectrum.shape[1])]


def stft_cells(signal: Array) -> npt.NDArray[np.complexfloating[Any, Any]]:
    """Spectrogram (frequency bins, frames) of a lead at 500 Hz; its entries are the cells."""
    from scipy.signal import stft

    size = min(FRAME, len(signal))
    padded = np.pad(signal, (0, max(0, FRAME - size)))
    _, _, spectrum = stft(padded, nperseg=FRAME, noverlap=FRAME - HOP, boundary="zeros")
    result: npt.NDArray[np.complexfloating[Any, Any]] = spectrum
    return result


def istft_cells(spectrum: npt.NDArray[np.complexfloating[Any, Any]], samples: int) -> Array:
    """Signal (…, samples) of spectrograms (…, frequency bins, frames), inverse of `stft_cells`."""
    from scipy.signal import istft

    _, signal = istft(spectrum, nperseg=FRAME, noverlap=FRAME - HOP, boundary=True)
    result: Array = np.asarray(signal[..., :samples], dtype=np.float64)
    missing = samples - result.shape[-1]
    return np.pad(result, [(0, 0)] * (result.ndim - 1) + [(0, missing)]) if missing else result


def _background(
    spectrum: npt.NDArray[np.complexfloating[Any, Any]],
) -> npt.NDArray[np.complexfloating[Any, Any]]:
    """Only the steadiest frequency row (greatest mean over deviation of magnitude) is kept."""
    magnitude = np.abs(spectrum)
    steadiness = magnitude.mean(axis=1) / (magnitude.std(axis=1) + 1e-12)
    background = np.zeros_like(spectrum)
    row = int(steadiness.argmax())
    background[row] = spectrum[row]
    return background
