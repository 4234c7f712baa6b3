"""What every format's parser hands back, and the checks they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.channels import Channel
from ecg_agent_ray.ecg.leads import STANDARD_LEADS
from ecg_agent_ray.ecg.recording import MAX_LEADS, MAX_VALUES
from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["Parsed", "check_size", "default_leads", "joined", "orient", "parsed_rows"]


@dataclass(frozen=True)
class Parsed:
    """A file's channels before it is decided which of them are an ECG.

    ``presumed_unit`` is what values without a unit are taken for, where the format has a custom,
    and ``presumption`` says so where the custom is not everybody's;
    ``notes`` tell what the reader took for granted, ``others`` what it set aside itself and why.
    """

    channels: Sequence[Channel]
    format: str
    record_id: str | None = None
    presumed_unit: str | None = None
    presumption: str = ""
    notes: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)


def parsed_rows(
    rows: npt.NDArray[np.generic],
    names: Sequence[str],
    rate: float | None,
    file_format: str,
    *,
    unit: str | None = "mV",
    are_leads: bool = True,
) -> Parsed:
    """Channels of one rate from (leads, samples); without a unit they are presumed to be in mV."""
    channels = [
        Channel(name, np.asarray(row), unit, rate, is_lead=are_leads)
        for name, row in zip(names, rows, strict=True)
    ]
    presumed = "mV" if unit is None else None
    return Parsed(channels, file_format, presumed_unit=presumed)


def joined(channels: list[Channel]) -> list[Channel]:
    """One channel for each lead; a lead's strips go to their places, the longest first."""
    by_name: dict[tuple[str, float | None, str | None], list[Channel]] = {}
    for channel in channels:
        by_name.setdefault((channel.name, channel.rate, channel.unit), []).append(channel)
    return [parts[0] if len(parts) == 1 else _join(parts) for parts in by_name.values()]


def _join(parts: list[Channel]) -> Channel:
    rate = parts[0].rate or 1.0
    begin = min(part.start_s for part in parts)
    firsts = [round((part.start_s - begin) * rate) for part in parts]
    length = max(first + len(part.values) for first, part in zip(firsts, parts, strict=True))
    check_size(1, length, "a lead in several strips")
    row = np.full(length, np.nan)
    for first, part in sorted(
        zip(firsts, parts, strict=True), key=lambda pair: -len(pair[1].values)
    ):
        target = row[first : first + len(part.values)]
        target[:] = np.where(np.isnan(target), part.values, target)
    return replace(parts[0], values=row, start_s=begin)


def check_size(n_leads: int, n_samples: int, what: str) -> None:
    """Raise before anything is allocated where a header claims more than a recording may hold."""
    if n_leads < 1 or n_samples < 1:
        raise CorruptRecordingError(f"{what} holds no samples ({n_leads} leads x {n_samples})")
    if n_leads > MAX_LEADS or n_leads * n_samples > MAX_VALUES:
        raise CorruptRecordingError(
            f"{what} claims {n_leads} leads x {n_samples} samples, more than one recording may hold"
        )


def orient(array: npt.NDArray[np.generic], what: str) -> npt.NDArray[np.generic]:
    """(leads, samples): the shorter side is the leads, since no ECG has more leads than samples."""
    squeezed = array.reshape([n for n in array.shape if n != 1] or [1])
    if squeezed.ndim == 1:
        squeezed = squeezed[np.newaxis]
    if squeezed.ndim != 2 or squeezed.dtype.kind not in "iufb":
        raise CorruptRecordingError(
            f"{what} holds a {array.dtype} array of shape {array.shape}, not (leads, samples)"
        )
    if squeezed.shape[0] > squeezed.shape[1]:
        squeezed = squeezed.T
    check_size(squeezed.shape[0], squeezed.shape[1], what)
    return squeezed


def default_leads(n_leads: int) -> list[str]:
    """Names where a file has none: the standard order for 12 rows, ``ECG`` for one, else numbers.

    Eight rows are what carts store: I, II, V1 to V6.
    """
    if n_leads == len(STANDARD_LEADS):
        return list(STANDARD_LEADS)
    if n_leads == 8:
        return ["I", "II", *STANDARD_LEADS[6:]]
    return ["ECG"] if n_leads == 1 else [f"ECG {i + 1}" for i in range(n_leads)]
