"""A small 1-D U-Net that says for every sample whether it is of P, QRS, T or none of them.

The network (0.4 million parameters, trained by ``jobs/train_delineator.py``; its card is
``_data/delineator/README.md``) takes one lead at 250 Hz. It runs in ONNX Runtime on one thread, so
that measuring needs no torch and a replica takes the one core it asks for.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.filters import band, fill_gaps, median, quantile, resample
from ecg_agent_ray.errors import ModelNotFoundError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["NETWORK_RATE_HZ", "WAVES", "prepare_lead", "wave_probabilities"]

NETWORK_RATE_HZ = 250.0
WAVES = ("none", "p", "qrs", "t")
_HIGH_PASS_HZ = 0.5
_SCALE_QUANTILE, _SMALLEST_SCALE_MV = 0.98, 1e-3
# the U-Net halves the rate five times
_MULTIPLE = 32
# longer recordings go through in windows, of which the outer parts, that lack context, are dropped
_WINDOW_S, _CONTEXT_S = 64.0, 4.0
_BATCH = 16


def prepare_lead(signal: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """What the network takes: (..., samples) mV at 250 Hz without gaps, centred, without baseline
    wander, and with the 98th percentile of its magnitude at 1."""
    level = band(signal, NETWORK_RATE_HZ, _HIGH_PASS_HZ, None)
    level = level - median(level)
    scale = quantile(np.abs(level), _SCALE_QUANTILE)
    return np.asarray(level / np.maximum(scale, _SMALLEST_SCALE_MV), dtype=np.float32)


def wave_probabilities(signal: npt.NDArray[np.floating], rate: float) -> npt.NDArray[np.float32]:
    """Probability of each of :data:`WAVES` at 250 Hz: (leads, 4, samples * 250 / rate).

    ``signal`` is (leads, samples) at ``rate`` Hz in mV; gaps are bridged. Each lead is judged by
    itself.

    Raises
    ------
    ModelNotFoundError
        ``ECG_AGENT_DELINEATOR`` names no network.
    """
    slow = resample(fill_gaps(signal), rate, NETWORK_RATE_HZ)
    length = slow.shape[-1]
    window, context = round(_WINDOW_S * NETWORK_RATE_HZ), round(_CONTEXT_S * NETWORK_RATE_HZ)
    if length <= window:
        return _softmax(_run(prepare_lead(slow)))[..., :length]
    step = window - 2 * context
    starts = np.arange(0, max(length - 2 * context, 1), step)
    padded = np.pad(slow, ((0, 0), (0, int(starts[-1]) + window - length)), mode="edge")
    result = np.empty((len(slow), len(WAVES), length), dtype=np.float32)
    for lead, row in enumerate(padded):
        pieces = _softmax(_run(prepare_lead(np.stack([row[s : s + window] for s in starts]))))
        for start, piece in zip(starts, pieces, strict=True):
            first = 0 if start == 0 else context
            last = min(window - context, length - start) if start != starts[-1] else length - start
            result[lead, :, start + first : start + last] = piece[:, first:last]
    return result


def _run(leads: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits (rows, 4, samples) of prepared rows (rows, samples)."""
    length = leads.shape[-1]
    padding = math.ceil(length / _MULTIPLE) * _MULTIPLE - length
    padded = np.pad(leads, ((0, 0), (0, padding)), mode="edge")[:, np.newaxis]
    session = _session(os.environ.get("ECG_AGENT_DELINEATOR"))
    batches = [
        session.run(None, {"lead": padded[i : i + _BATCH]})[0]
        for i in range(0, len(padded), _BATCH)
    ]
    return np.asarray(np.concatenate(batches)[..., :length], dtype=np.float32)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


@lru_cache(maxsize=4)
def _session(named: str | None) -> InferenceSession:
    """Of the network that ``ECG_AGENT_DELINEATOR`` names, or the shipped one."""
    import onnxruntime

    from ecg_agent_ray.settings import load_settings

    own = load_settings().delineator if named else None
    shipped = resources.files("ecg_agent_ray") / "_data" / "delineator" / "model.onnx"
    model = own.expanduser().resolve() if own else Path(str(shipped))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            model.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the runtime's exceptions have no common class
        raise ModelNotFoundError(
            f"cannot load the delineation network {model}: {error}",
            hint="ECG_AGENT_DELINEATOR names an ONNX file made by `train delineator`",
        ) from error
