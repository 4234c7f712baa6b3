"""HL7 annotated ECG (FDA): the recorded series, not the derived beats."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from xml.etree import ElementTree

import numpy as np

from ecg_agent_ray.ecg.channels import Channel
from ecg_agent_ray.ecg.formats.markup import parse_document
from ecg_agent_ray.ecg.formats.parsed import Parsed, joined
from ecg_agent_ray.ecg.leads import lead_of_code
from ecg_agent_ray.ecg.units import millivolts_per
from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["parse_aecg"]

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_ABSOLUTE = re.compile(r"^(\d{8})(\d{2})(\d{2})(\d{2}(?:\.\d+)?)")


def parse_aecg(data: bytes) -> Parsed:
    """The first series that holds leads: its sequence sets, each at its own time.

    Raises CorruptRecordingError where no series holds leads, or a set no time increment.
    """
    root = parse_document(data)
    for series in root.findall(".//{*}series"):
        # derived beats lie deeper, below a derivation
        channels = [
            channel
            for sequences in series.findall("{*}component/{*}sequenceSet")
            for channel in _sequence_set(sequences)
        ]
        if channels:
            return Parsed(joined(channels), "aecg")
    raise CorruptRecordingError("the aECG holds no series with leads")


def _sequence_set(sequences: ElementTree.Element) -> list[Channel]:
    rate: float | None = None
    start_s = 0.0
    channels: list[Channel] = []
    for sequence in sequences.findall(".//{*}sequence"):
        code = sequence.find("{*}code")
        value = sequence.find("{*}value")
        if code is None or value is None:
            continue
        name = code.get("code", "")
        if name.startswith("TIME_"):
            rate, start_s = _rate(value), _start_s(value)
        elif (channel := _channel(name, value)) is not None:
            channels.append(channel)
    if channels and rate is None:
        raise CorruptRecordingError("the aECG gives no time increment")
    return [replace(channel, rate=rate, start_s=start_s) for channel in channels]


def _rate(value: ElementTree.Element) -> float | None:
    increment = value.find("{*}increment")
    if increment is None:
        return None
    scale = _SECONDS.get(increment.get("unit", "s"))
    step = _quantity(increment.get("value")) * (scale or 0)
    return 1.0 / step if step > 0 else None


def _start_s(value: ElementTree.Element) -> float:
    """Seconds since midnight for an absolute time (YYYYMMDDhhmmss.sss), since 0 for a relative."""
    head = value.find("{*}head")
    if head is None or not head.get("value"):
        return 0.0
    text = str(head.get("value"))
    if match := _ABSOLUTE.match(text):
        day, hours, minutes, seconds = match.groups()
        return _days(day) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return _quantity(text) * _SECONDS.get(head.get("unit", "s"), 1.0)


def _days(text: str) -> int:
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8])).toordinal()
    except ValueError as error:
        raise CorruptRecordingError(f"the aECG's date {text!r} is none") from error


def _channel(name: str, value: ElementTree.Element) -> Channel | None:
    """A lead, or another signal, without its times; None for what holds no digits."""
    origin, scale, digits = (value.find(f"{{*}}{part}") for part in ("origin", "scale", "digits"))
    if scale is None or digits is None or not digits.text:
        return None
    try:
        numbers = np.array(digits.text.split(), dtype=np.float64)
    except ValueError as error:
        raise CorruptRecordingError(f"the aECG's digits are no numbers: {error}") from error
    unit = scale.get("unit", "uV")
    zero = 0.0
    if origin is not None and origin.get("value"):
        zero = _quantity(origin.get("value")) * _ratio(origin.get("unit", unit), unit)
    with np.errstate(over="ignore", invalid="ignore"):
        values = numbers * _quantity(scale.get("value")) + zero
    lead = lead_of_code(name)
    return Channel(lead or name, values, unit, is_lead=lead is not None)


def _ratio(unit: str, wanted: str) -> float:
    """What one ``unit`` is in ``wanted``."""
    if unit == wanted:
        return 1.0
    one, other = millivolts_per(unit), millivolts_per(wanted)
    if one is None or other is None:
        raise CorruptRecordingError(f"the aECG's origin is in {unit}, its scale in {wanted}")
    return one / other


def _quantity(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError as error:
        raise CorruptRecordingError(f"the aECG's {text!r} is no number") from error
