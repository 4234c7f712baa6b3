"""From a file's channels to a recording: which are leads, in which unit, at which rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.channels import Channel, is_counter, name_kind, why_not_ecg
from ecg_agent_ray.ecg.formats.parsed import Parsed, check_size
from ecg_agent_ray.ecg.leads import derive_limb_leads, standard_order, unique_leads
from ecg_agent_ray.ecg.recording import Recording
from ecg_agent_ray.ecg.units import COUNTS, millivolts_per, tells_unit
from ecg_agent_ray.errors import RecordingError

__all__ = ["ReadingOptions", "assemble"]

# one ECG is one recording whichever of these it was exported as, so their leads are put in order
_CLINICAL_FORMATS = ("dicom", "aecg", "muse-xml", "philips-xml", "scp-ecg")
_RATE_TOLERANCE = 1e-3
_TYPICAL_MOST_MV = 30.0
"""Peak to peak in a typical second beyond which numbers without a unit cannot be millivolts."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """What the caller knows of files that do not tell it.

    Parameters
    ----------
    sampling_rate : Hz
    unit : ``mV``, ``uV``, ``V`` … of the values, or ``adc`` for a converter's counts
    gain : counts per mV; implies ``adc``
    lead_names : of the file's channels in its order; times and counters are not channels
    """

    sampling_rate: float | None = None
    unit: str | None = None
    gain: float | None = None
    lead_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("sampling_rate", "gain"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise RecordingError(f"{name} is a positive number, not {value:g}")
        unit = self.unit
        if unit is not None and unit.lower() != COUNTS and millivolts_per(unit) is None:
            raise RecordingError(f"unit {unit!r} is not known", hint="give mV, uV, V or adc")
        if self.gain is not None and unit is not None and unit.lower() != COUNTS:
            raise RecordingError(
                f"gain is for counts, the unit given is {unit}", hint="leave one of them out"
            )
        if unit is not None and unit.lower() == COUNTS and self.gain is None:
            raise RecordingError(
                "counts (unit adc) need a gain", hint="give gain, the counts per mV"
            )
        if self.lead_names is not None and (
            isinstance(self.lead_names, str) or not all(str(n).strip() for n in self.lead_names)
        ):
            raise RecordingError("lead_names is a list of names, none of them empty")


def assemble(parsed: Parsed, stem: str, options: ReadingOptions) -> Recording:
    """The recording of a file's ECG channels; the others are named in ``other_channels``.

    Raises RecordingError where no channel is an ECG, or unit, rate or names are not told or
    contradict what is given.
    """
    channels = _named(parsed.channels, options.lead_names)
    reasons = why_not_ecg(channels)
    reasons = _without_scale_apart(channels, reasons, parsed, options)
    channels, reasons = _at_one_rate(channels, reasons, options.sampling_rate)
    kept = [channel for channel, reason in zip(channels, reasons, strict=True) if reason is None]
    others = dict(parsed.others) | {
        channel.name: reason
        for channel, reason in zip(channels, reasons, strict=True)
        if reason is not None
    }
    if not kept:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(others.items())[:5])
        raise RecordingError(
            f"no channel is an ECG ({told or 'there is none'})",
            hint="name the channels with lead_names if one is",
        )
    rate, scaled, notes = _rate_and_millivolts(kept, parsed, options)
    signal = _placed(scaled, rate)
    signal, leads = derive_limb_leads(signal, unique_leads([c.name or "ECG" for c in kept]))
    if parsed.format in _CLINICAL_FORMATS:
        signal, leads = standard_order(signal, leads)
    return Recording(
        signal=signal,
        sampling_rate=rate,
        leads=leads,
        record_id=parsed.record_id or stem,
        format=parsed.format,
        other_channels=others,
        notes=(*parsed.notes, *notes),
    )


def _named(channels: Sequence[Channel], names: Sequence[str] | None) -> list[Channel]:
    """The channels under the names given: all of them, all but counters, or those of the ECG."""
    if names is None:
        return list(channels)
    candidates = [
        list(range(len(channels))),
        [i for i, c in enumerate(channels) if tells_unit(c.unit) or not is_counter(c.values)],
        [i for i, reason in enumerate(why_not_ecg(channels)) if reason is None],
    ]
    chosen = next((indices for indices in candidates if len(indices) == len(names)), None)
    if chosen is None:
        there = ", ".join(channels[i].name or "(no name)" for i in candidates[1][:24])
        raise RecordingError(
            f"{len(names)} lead names for {len(candidates[1])} channels", hint=f"it has {there}"
        )
    given = dict(zip(chosen, names, strict=True))
    return [
        replace(channel, name=str(given.get(i, channel.name)).strip())
        for i, channel in enumerate(channels)
        # what the caller passes over is neither a lead nor worth telling
        if i in given or name_kind(channel.name) != "unknown"
    ]


def _without_scale_apart(
    channels: list[Channel], reasons: list[str | None], parsed: Parsed, options: ReadingOptions
) -> list[str | None]:
    """A channel whose unit was lost does not spoil a file whose others are in volts."""
    told = [channel.unit is not None and millivolts_per(channel.unit) for channel in channels]
    given = options.unit or options.gain or parsed.presumed_unit
    if given or not any(t and r is None for t, r in zip(told, reasons, strict=True)):
        return reasons
    return [
        reason or (None if t else "it does not tell its unit, as others do")
        for t, reason in zip(told, reasons, strict=True)
    ]


def _at_one_rate(
    channels: list[Channel], reasons: list[str | None], given: float | None
) -> tuple[list[Channel], list[str | None]]:
    """Leads of another rate than most are no part of one recording (the higher rate wins ties)."""
    rates = Counter(c.rate for c, reason in zip(channels, reasons, strict=True) if reason is None)
    if len(rates) < 2:
        return channels, reasons
    wanted = max(rates, key=lambda rate: (rate == given, rates[rate], rate or 0.0))
    return channels, [
        reason
        or (None if c.rate == wanted else f"it is sampled at {c.rate:g} Hz, others at {wanted:g}")
        for c, reason in zip(channels, reasons, strict=True)
    ]


def _rate_and_millivolts(
    channels: list[Channel], parsed: Parsed, options: ReadingOptions
) -> tuple[float, list[Channel], list[str]]:
    """What a file tells neither of is asked for at once."""
    problems: list[RecordingError] = []
    try:
        rate = _rate(channels[0].rate, parsed.format, options.sampling_rate)
    except RecordingError as error:
        problems.append(error)
    try:
        scaled, notes = _in_millivolts(channels, parsed, options)
    except RecordingError as error:
        problems.append(error)
    if problems:
        hints = "; ".join(error.hint for error in problems if error.hint)
        message = "; ".join(error.message for error in problems)
        raise RecordingError(message, hint=hints or None)
    return rate, scaled, notes


def _rate(told: float | None, file_format: str, given: float | None) -> float:
    if told is None:
        if given is None:
            raise RecordingError(
                f"the {file_format} file does not tell its sampling rate",
                hint="give sampling_rate (--sampling-rate), or a time column",
            )
        return float(given)
    if given is not None and abs(told - given) > _RATE_TOLERANCE * told:
        raise RecordingError(f"it is sampled at {told:g} Hz, not the {given:g} Hz given")
    return told


def _in_millivolts(
    channels: list[Channel], parsed: Parsed, options: ReadingOptions
) -> tuple[list[Channel], list[str]]:
    scaled: list[Channel] = []
    notes: list[str] = []
    zeros: set[float] = set()
    for channel in channels:
        factor = None if channel.unit is None else millivolts_per(channel.unit)
        if factor is not None:
            _check_given_unit(channel, factor, options)
            zero = 0.0
        elif options.gain is not None:
            factor, zero = 1.0 / options.gain, _mid_scale(channel.values)
            zeros.add(zero)
        else:
            unit = options.unit or (parsed.presumed_unit if not channel.unit else None)
            factor, zero = (millivolts_per(unit) if unit else None), 0.0
            if factor is None:
                raise _no_unit(channel)
            if options.unit is None and _typical_swing(channel) * factor > _TYPICAL_MOST_MV:
                raise _no_unit(channel, _typical_swing(channel))
            if options.unit is None and parsed.presumption not in ("", *notes):
                notes.append(parsed.presumption)
        scaled.append(replace(channel, values=_scaled(channel.values, zero, factor)))
    if zeros - {0.0}:
        text = ", ".join(f"{zero:g}" for zero in sorted(zeros))
        notes.append(f"counts are taken from the middle of the converter's scale ({text})")
    return scaled, notes


def _check_given_unit(channel: Channel, factor: float, options: ReadingOptions) -> None:
    if options.gain is not None:
        raise RecordingError(
            f"channel {channel.name} is in {channel.unit}, so no gain is to be given"
        )
    if options.unit is not None and millivolts_per(options.unit) != factor:
        raise RecordingError(f"channel {channel.name} is in {channel.unit}, not in {options.unit}")


def _no_unit(channel: Channel, swing: float | None = None) -> RecordingError:
    why = "" if swing is None else f" and swings by {swing:.4g}, too much for mV"
    return RecordingError(
        f"channel {channel.name or 'ECG'} does not tell its unit{why}",
        hint="give unit (--unit mV, uV or V), or for a converter's counts gain (--gain), the "
        "counts per mV",
    )


def _typical_swing(channel: Channel) -> float:
    """Median over blocks of what the values span, so that a single artefact does not count."""
    values = np.asarray(channel.values, dtype=np.float64)
    width = max(round(channel.rate or 250.0), 1)
    if values.size >= 3 * width:
        values = values[: values.size // width * width].reshape(-1, width)
    else:
        values = values[np.newaxis]
    values = values[np.isfinite(values).any(axis=1)]
    if not values.size:
        return 0.0
    return float(np.median(np.nanmax(values, axis=1) - np.nanmin(values, axis=1)))


def _mid_scale(values: npt.NDArray[np.floating | np.integer]) -> float:
    """Where a converter's zero lies: 0 for signed counts, half of the range for unsigned ones."""
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size or numbers.min() < 0 or numbers.max() < 2:
        return 0.0
    return float(2 ** (int(numbers.max()).bit_length() - 1))


def _scaled(
    values: npt.NDArray[np.floating | np.integer], zero: float, factor: float
) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        if values.dtype == np.float32 and zero == 0 and factor == 1:
            return np.asarray(values, dtype=np.float32)
        exact = np.asarray(values, dtype=np.float64)
        return np.asarray((exact - zero) * factor, dtype=np.float32)


def _placed(channels: list[Channel], rate: float) -> npt.NDArray[np.float32]:
    """(leads, samples), each channel from its start; NaN where it has no samples."""
    origin = min(channel.start_s for channel in channels)
    starts = [round((channel.start_s - origin) * rate) for channel in channels]
    length = max(start + len(c.values) for start, c in zip(starts, channels, strict=True))
    check_size(len(channels), length, "the recording")
    signal = np.full((len(channels), length), np.nan, dtype=np.float32)
    for row, start, channel in zip(signal, starts, channels, strict=True):
        row[start : start + len(channel.values)] = channel.values
    return signal
