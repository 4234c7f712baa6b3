"""Faithfulness@k of the cells that an explanation ranks: how far the probability falls when the top
k cells of the lead's spectrogram are set to zero (SpectralX, arXiv 2408.03636).

Beside the tool's own ranking stand three others of the same cells: at random; by magnitude, since
whatever holds much of the signal matters somewhat; and by integrated gradients (Sundararajan et al.
2017, arXiv:1703.01365) from the lead zeroed to the lead, each cell being given the gradients'
product with its part of the signal, so that all cells' scores add up to the change of probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.classifier import Classifier
from ecg_agent_ray.tools.spectrogram_cells import (
    cell_candidates,
    istft_cells,
    rank_cells,
    stft_cells,
)

__all__ = ["RANKINGS", "TOP", "cell_faithfulness", "integrated_gradients"]

TOP = (1, 2, 4)
RANKINGS = ("tool", "integrated_gradients", "magnitude", "random")
Array = npt.NDArray[np.floating[Any]]
CellIndex = tuple[int, int]
_STEPS = 32


def cell_faithfulness(
    classifier: Classifier,
    window: Array,
    row: int,
    column: int,
    leads: str,
    score: Callable[[Array], Array],
    rng: np.random.Generator,
    draws: int,
) -> dict[str, list[float]]:
    """Fall of probability for each of `TOP`, by ranking; random is the mean over ``draws``.

    Parameters
    ----------
    window : (12, samples) mV at 500 Hz
    row : the lead whose cells are ranked
    column : of the label
    score : callable (n, 12, samples) -> (n,) probabilities of the label
    """
    spectrum = stft_cells(window[row])
    cells = cell_candidates(spectrum)
    most = max(TOP)
    gradients = integrated_gradients(classifier, window, row, column, leads)
    parts = _products(spectrum, cells, gradients)
    loudness = np.array([abs(spectrum[cell]) for cell in cells])
    rankings = {
        "tool": [cell for cell, _ in rank_cells(window, row, score, top_k=most)],
        "integrated_gradients": [cells[i] for i in np.argsort(-parts)[:most]],
        "magnitude": [cells[i] for i in np.argsort(-loudness)[:most]],
    }
    random = [[cells[i] for i in rng.choice(len(cells), most, False)] for _ in range(draws)]
    orders = [*rankings.values(), *random]
    without = [_without(window, row, spectrum, order[:k]) for order in orders for k in TOP]
    scores = score(np.stack([window, *without]))
    falls = (scores[0] - scores[1:]).reshape(len(orders), len(TOP))
    result = {name: falls[i].tolist() for i, name in enumerate(rankings)}
    return {**result, "random": falls[len(rankings) :].mean(axis=0).tolist()}


def _without(window: Array, row: int, spectrum: Any, cells: Sequence[CellIndex]) -> Array:
    emptied, changed = spectrum.copy(), window.copy()
    for cell in cells:
        emptied[cell] = 0
    changed[row] = istft_cells(emptied, window.shape[1])
    return changed


def integrated_gradients(
    classifier: Classifier, window: Array, row: int, column: int, leads: str
) -> Array:
    """Mean gradient (samples,) of the label's probability by the lead, on the straight way from the
    lead zeroed to the lead (midpoints of 32 steps)."""
    import torch

    share = (torch.arange(_STEPS, device=classifier.device) + 0.5) / _STEPS
    whole = torch.tensor(window, dtype=torch.float32, device=classifier.device)
    lead = (whole[row] * share[:, None]).requires_grad_(True)
    batch = whole.repeat(_STEPS, 1, 1)
    batch = torch.cat([batch[:, :row], lead[:, None], batch[:, row + 1 :]], dim=1)
    logits = classifier.network(batch, None).logits[:, column]
    if classifier.calibration is not None:
        slope, offset = classifier.calibration.arrays(leads, classifier.labels)
        logits = logits * slope[column] + offset[column]
    (gradient,) = torch.autograd.grad(logits.sigmoid().sum(), lead)
    result: Array = gradient.mean(0).double().cpu().numpy()
    return result


def _products(spectrum: Any, cells: Sequence[CellIndex], gradient: Array) -> Array:
    """Product of each cell's part of the signal with the gradient, a frame at a time."""
    by_frame: dict[int, list[int]] = {}
    for index, (_, frame) in enumerate(cells):
        by_frame.setdefault(frame, []).append(index)
    result = np.zeros(len(cells))
    for indices in by_frame.values():
        alone = np.zeros((len(indices), *spectrum.shape), dtype=spectrum.dtype)
        for position, index in enumerate(indices):
            alone[position][cells[index]] = spectrum[cells[index]]
        result[indices] = istft_cells(alone, len(gradient)) @ gradient
    return result
