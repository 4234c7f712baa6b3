"""Any recording as what the classifier reads: windows of 12 x 5000 samples, mV, 500 Hz.

Nothing is filtered or normalised, as in the models' training. What had to be done to a recording
that is shorter, longer, sampled otherwise or lacks leads is said in ``notes``, so that it reaches
the user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.classifier.labels import configuration_leads
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import LeadError, RecordingError

__all__ = ["SAMPLING_RATE", "STANDARD_LEADS", "WINDOW_SAMPLES", "PreparedInput", "prepare"]

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SAMPLING_RATE = 500.0
WINDOW_SAMPLES = 5000
MAX_WINDOWS = 30
"""Longer recordings are read at this many evenly spaced windows (5 minutes in all)."""
_MIN_SECONDS = 1.0
_MAX_GAP_FRACTION = 0.5


@dataclass(frozen=True)
class PreparedInput:
    """``windows`` (n, 12, 5000) float32; ``starts_s`` where each begins; ``valid_samples`` of each
    window, below 5000 only in a short recording; ``leads`` that are not zero."""

    windows: npt.NDArray[np.float32]
    starts_s: tuple[float, ...]
    valid_samples: int
    leads: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def padding_mask(self) -> npt.NDArray[np.bool_] | None:
        """(n, 5000), True where padded; None where nothing is."""
        if self.valid_samples == WINDOW_SAMPLES:
            return None
        mask = np.zeros((len(self.windows), WINDOW_SAMPLES), dtype=bool)
        mask[:, self.valid_samples :] = True
        return mask


def prepare(recording: Recording, leads: str = "12-lead") -> PreparedInput:
    """Resample, choose leads, fill gaps, cut into 10 s windows.

    Raises
    ------
    LeadError
        Unknown configuration, or none of its leads holds a signal.
    RecordingError
        Shorter than one second.
    """
    wanted = configuration_leads(leads)
    if recording.duration_s < _MIN_SECONDS:
        raise RecordingError(
            f"{recording.record_id}: {recording.duration_s:.2f} s are too short to classify",
            hint=f"at least {_MIN_SECONDS:g} s are needed, 10 s are what the model was trained on",
        )
    notes: list[str] = []
    if recording.sampling_rate != SAMPLING_RATE:
        notes.append(f"resampled from {recording.sampling_rate:g} Hz to {SAMPLING_RATE:g} Hz")
        recording = recording.resample(SAMPLING_RATE)
    signal = np.zeros((len(STANDARD_LEADS), recording.n_samples), dtype=np.float32)
    used = []
    for name in wanted:
        if recording.has(name):
            values, note = _fill_gaps(name, recording.lead(name))
            if note:
                notes.append(note)
            if values is not None:
                signal[STANDARD_LEADS.index(name)] = values
                used.append(name)
    absent = [name for name in wanted if not recording.has(name)]
    if not used:
        raise LeadError(
            f"{recording.record_id}: none of the leads {', '.join(wanted)} holds a signal",
            hint=f"it has {', '.join(recording.leads)}",
        )
    if absent:
        notes.append(
            f"leads absent and fed as zero: {', '.join(absent)}; findings that need them are unsure"
        )
    return _windows(signal, tuple(used), notes)


def _fill_gaps(
    name: str, values: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32] | None, str | None]:
    """Gaps interpolated; None for a lead that is flat or mostly missing, with the reason."""
    present = np.isfinite(values)
    missing = 0.0 if present.all() else 1.0 - float(present.mean())
    if missing > _MAX_GAP_FRACTION:
        return None, f"lead {name} is missing for {missing:.0%} of the time and was fed as zero"
    known = values if missing == 0.0 else values[present]
    if known.min() == known.max():
        return None, f"lead {name} is flat and was fed as zero"
    if missing == 0.0:
        return values, None
    index = np.arange(len(values))
    filled = np.interp(index, index[present], values[present]).astype(np.float32)
    return filled, f"lead {name}: {missing:.1%} of samples missing, interpolated"


def _windows(
    signal: npt.NDArray[np.float32], used: tuple[str, ...], notes: list[str]
) -> PreparedInput:
    samples = signal.shape[1]
    valid = min(samples, WINDOW_SAMPLES)
    if samples < WINDOW_SAMPLES:
        notes.append(
            f"only {samples / SAMPLING_RATE:.1f} s long: padded to 10 s, "
            "probabilities are less sure than for a full recording"
        )
        signal = np.pad(signal, ((0, 0), (0, WINDOW_SAMPLES - samples)))
        starts = [0]
    else:
        # as many as fit, spread so that first and last samples are both read
        count = min(MAX_WINDOWS, -(-samples // WINDOW_SAMPLES))
        if samples < WINDOW_SAMPLES + int(_MIN_SECONDS * SAMPLING_RATE):
            count = 1
        starts = [round(s) for s in np.linspace(0, samples - WINDOW_SAMPLES, count)]
        if count > 1:
            notes.append(
                f"{samples / SAMPLING_RATE:.1f} s long: probabilities are the mean over "
                f"{count} windows of 10 s"
            )
    windows = np.stack([signal[:, start : start + WINDOW_SAMPLES] for start in starts])
    return PreparedInput(
        windows=np.ascontiguousarray(windows, dtype=np.float32),
        starts_s=tuple(start / SAMPLING_RATE for start in starts),
        valid_samples=valid,
        leads=used,
        notes=tuple(notes),
    )
