"""One electrocardiogram in memory: millivolts, lead names, sampling rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.leads import normalise_lead
from ecg_agent_ray.errors import LeadError, RecordingError

__all__ = ["MAX_VALUES", "Recording"]

MIN_RATE_HZ, MAX_RATE_HZ = 50.0, 20_000.0
MAX_LEADS = 256
MAX_VALUES = 150_000_000
"""Most values (leads x samples) of one recording: 600 MB; 12 leads, 2000 Hz, 100 minutes."""
_MAX_MILLIVOLTS = 1e6


@dataclass(frozen=True, eq=False, kw_only=True)
class Recording:
    """A frozen ECG. ``signal`` is read-only float32 of shape (leads, samples) in mV.

    NaN marks a gap (a lead that was off, a value the format calls invalid); infinities and values
    beyond a kilovolt, which no amplifier gives, become gaps too.

    Parameters
    ----------
    signal : array (leads, samples) or (samples,), mV; copied
    sampling_rate : float, Hz, 50 to 20000
    leads : names, normalised by `normalise_lead`; as many as rows, no two alike
    record_id : str, the file's stem
    format : str, the format it was read from; ``array`` where it was made in memory
    other_channels : what else its file holds and why it is no lead, by name
    notes : what the reader took for granted

    Raises
    ------
    RecordingError : wrong shape, rate, names, or nothing in it
    """

    signal: npt.NDArray[np.float32]
    sampling_rate: float
    leads: tuple[str, ...]
    record_id: str = "recording"
    format: str = "array"
    other_channels: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        signal = _checked_signal(self.signal)
        rate = float(self.sampling_rate)
        if not (math.isfinite(rate) and MIN_RATE_HZ <= rate <= MAX_RATE_HZ):
            raise RecordingError(
                f"{self.record_id}: a sampling rate of {rate:g} Hz is outside "
                f"{MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz"
            )
        leads = tuple(normalise_lead(name) for name in self.leads)
        if len(leads) != len(signal):
            raise RecordingError(
                f"{self.record_id}: {len(leads)} lead names for {len(signal)} rows of signal"
            )
        if len(set(leads)) != len(leads):
            raise RecordingError(f"{self.record_id}: two leads have one name: {', '.join(leads)}")
        object.__setattr__(self, "signal", signal)
        object.__setattr__(self, "sampling_rate", rate)
        object.__setattr__(self, "leads", leads)

    def __repr__(self) -> str:
        return (
            f"Recording({self.record_id!r}, {self.format}, {len(self.leads)} leads, "
            f"{self.sampling_rate:g} Hz, {self.duration_s:.1f} s)"
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Recording)
            and (self.leads, self.sampling_rate) == (other.leads, other.sampling_rate)
            and np.array_equal(self.signal, other.signal, equal_nan=True)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def n_samples(self) -> int:
        return int(self.signal.shape[1])

    @property
    def duration_s(self) -> float:
        """Seconds from the first sample to one sample after the last."""
        return self.n_samples / self.sampling_rate

    def has(self, name: str) -> bool:
        return normalise_lead(name) in self.leads

    def lead(self, name: str) -> npt.NDArray[np.float32]:
        """One lead, (samples,) in mV. Raises LeadError where there is none of that name."""
        wanted = normalise_lead(name)
        if wanted not in self.leads:
            raise LeadError(
                f"{self.record_id} has no lead {wanted}", hint=f"it has {', '.join(self.leads)}"
            )
        row: npt.NDArray[np.float32] = self.signal[self.leads.index(wanted)]
        return row

    def select(self, leads: Sequence[str]) -> Recording:
        """Only these leads, in this order. Raises LeadError for an absent one."""
        return self._replace(
            signal=np.stack([self.lead(name) for name in leads]) if leads else np.empty((0, 0)),
            leads=tuple(leads),
        )

    def crop(self, start_s: float, end_s: float) -> Recording:
        """From ``start_s`` to ``end_s`` (seconds), cut to what there is."""
        first = max(0, round(start_s * self.sampling_rate))
        return self._replace(signal=self.signal[:, first : round(end_s * self.sampling_rate)])

    def resample(self, hz: float) -> Recording:
        """At another rate, by a polyphase filter (no aliasing); gaps stay gaps."""
        if hz == self.sampling_rate:
            return self
        from ecg_agent_ray.ecg.filters import resample

        return self._replace(signal=resample(self.signal, self.sampling_rate, hz), sampling_rate=hz)

    def _replace(self, **changes: Any) -> Recording:
        fields: dict[str, Any] = {
            "signal": self.signal,
            "sampling_rate": self.sampling_rate,
            "leads": self.leads,
            "record_id": self.record_id,
            "format": self.format,
            "other_channels": self.other_channels,
            "notes": self.notes,
        }
        return Recording(**(fields | changes))


def _checked_signal(values: Any) -> npt.NDArray[np.float32]:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise RecordingError(f"a signal of {array.dtype} values is no ECG")
    if array.ndim == 1:
        array = array[np.newaxis]
    if array.ndim != 2 or 0 in array.shape:
        raise RecordingError(
            f"a signal is (leads, samples) with at least one of each, not {array.shape}"
        )
    if array.shape[0] > MAX_LEADS or array.size > MAX_VALUES:
        raise RecordingError(
            f"{array.shape[0]} leads of {array.shape[1]} samples are more than a recording may be "
            f"({MAX_LEADS} leads, {MAX_VALUES} values)"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        signal = np.array(array, dtype=np.float32, order="C")
        bad = ~(np.abs(signal) <= _MAX_MILLIVOLTS)
    if bad.any():
        signal[bad] = np.nan
    signal.setflags(write=False)
    return signal
