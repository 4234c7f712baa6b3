"""Which of a file's channels are an ECG: decided once, for every format, before anything is read.

By name (a lead, or the word ECG; or another signal that monitors record), by unit (a voltage or
not) and, where a file tells neither, by the samples (counters, switches). The words for other
signals are those of the EDF+ specification's standard texts (Kemp and Olivan 2003) and PhysioNet's
signal classes. A name that is in no vocabulary is a lead only where no channel has a lead's name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.leads import KNOWN_LEADS, normalise_lead
from ecg_agent_ray.ecg.units import millivolts_per, tells_unit

__all__ = ["Channel", "axis_kind", "is_counter", "name_kind", "why_not_ecg"]

NameKind = Literal["ecg", "other", "unknown"]

_ECG_WORD = re.compile(r"^(?:ecg|ekg)|(?:ecg|ekg)$|ele[ck]trokardio|electrocardio")
# bipolar and modified chest leads of Holter recorders, Frank's, EASI's, pairs of electrodes
_OTHER_LEADS = re.compile(
    r"^(?:(?:MOD[ ._]?)?(?:MV|ML|MCL|C[MSCBR]|MC|CL|MX)[ _-]?(?:\d|I{1,3}|V\d?|L|F|R)?(?:R)?|"
    r"MOD[ ._]?V?\d|V\d{0,2}R?|V[XYZ]|NEHB ?[DAJ]|[AES]-[SI]|"
    r"(?:RA|LA|LL|RL|V\d?|WCT)-(?:RA|LA|LL|RL|V\d?|WCT))$",
    re.I,
)


def _vocabulary(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


_OTHER_WORDS = _vocabulary(
    # EDF+ standard texts
    "eeg eog erg emg meg mcg ep temp resp sao2 spo2 light sound event events distance status",
    # PhysioNet's signal classes
    "bp abp art ao pap paw cvp icp ibp nibp ubp fap rap lap co co2 etco2 o2 eto2 hr pr rr pleth",
    "ppg respiration breathing flow airflow abdo nasal oral effort pressure press position scg bcg",
    "imp impedance snore tidal volume stat st prv pulse spo sao perf",
    # sensors beside an ECG in wearables
    "acc accel acceleration accelerometer gyro gyroscope mag magnetometer gsr eda scr bvp",
    "temperature humidity battery vbat barometer altitude",
    # what programs add to an ECG
    "rate quality peak peaks rpeak rpeaks phase label labels class target annotation annotations",
    "symbol beat beats rhythm marker markers trigger trig stim button checksum",
)
_TIME_WORDS = _vocabulary(
    "time times timestamp timestamps elapsed zeit zeitstempel temps tiempo tempo tijd datetime",
    "date datum clock seconds second sec secs milliseconds msec millis",
)
_TIME_NAMES = _vocabulary("t s ms us ns")
_INDEX_NAMES = frozenset(("n", "nr", "no", "id", "#", ""))
_INDEX_WORDS = _vocabulary(
    "index idx sample samples samp nseq seq sequence counter count row rownum frame packet number",
    "unnamed",
)
_STEADY_SHARE = 0.8
_FEWEST_VALUES = 8


@dataclass(frozen=True)
class Channel:
    """One channel as its file has it.

    ``values`` (samples,) are in ``unit``; ``unit`` is None where the file does not tell. ``rate``
    in Hz, None where the file does not tell; ``start_s`` is when the first sample was taken, in
    seconds from an origin that the file's channels share; ``is_lead`` where a code of the format
    says that this is a lead, whatever its name.
    """

    name: str
    values: npt.NDArray[np.floating | np.integer]
    unit: str | None = None
    rate: float | None = None
    start_s: float = 0.0
    is_lead: bool = False


@lru_cache(maxsize=4096)
def _words(name: str) -> frozenset[str]:
    """Lower-case words, split at signs and at capitals (``RespRate``), digits behind taken off."""
    camel = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = {w for text in (name, camel) for w in re.split(r"[\W_]+", text.lower()) if w}
    return frozenset(words | {w.rstrip("0123456789") for w in words if not w.isdigit()})


@lru_cache(maxsize=4096)
def name_kind(name: str) -> NameKind:
    """Whether this names an ECG lead, another signal, or neither surely.

    >>> [name_kind(n) for n in ("MCL1", "ECG 2", "RESP", "ECG_Rate", "chan 3")]
    ['ecg', 'ecg', 'other', 'other', 'unknown']
    """
    lead = normalise_lead(name)
    if lead in KNOWN_LEADS:
        return "ecg"
    if _words(name) & _OTHER_WORDS:
        return "other"
    cleaned = name.strip()
    if any(_ECG_WORD.search(word) for word in _words(name)) or _OTHER_LEADS.match(cleaned):
        return "ecg"
    if re.match(r"^(?:lead|ableitung|d[ée]rivation|derivaci[óo]n|derivazione)\b", cleaned, re.I):
        return "ecg"
    return "unknown"


@lru_cache(maxsize=4096)
def axis_kind(name: str) -> Literal["time", "index"] | None:
    """Whether a table's column of this name holds times or numbers its rows."""
    words, whole = _words(name), name.strip().lower()
    if whole in _TIME_NAMES:
        return "time"
    if whole in _INDEX_NAMES:
        return "index"
    if name_kind(name) != "unknown":
        return None
    if words & _TIME_WORDS:
        return "time"
    return "index" if words & _INDEX_WORDS else None


def is_counter(values: npt.NDArray[np.floating | np.integer]) -> bool:
    """Whether the values count: one positive step nearly throughout, also one that wraps round.

    A strictly rising column over its whole length is a clock or counter too; no ECG rises on.
    """
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size < _FEWEST_VALUES:
        return False
    steps = np.diff(numbers)
    if np.all(steps > 0):
        return True
    usual = float(np.median(steps))
    if not usual > 0:
        return False
    steady = np.abs(steps - usual) <= 1e-6 * usual
    return bool(steady.mean() >= _STEADY_SHARE)


def why_not_ecg(channels: Sequence[Channel]) -> list[str | None]:
    """For each channel None where it is an ECG, else the reason why it is not."""
    reasons = [_own_reason(channel) for channel in channels]
    sure = [_surely_lead(channel) for channel in channels]
    if not any(s and reason is None for s, reason in zip(sure, reasons, strict=True)):
        return reasons
    return [
        reason or (None if s else "its name is not an ECG lead's")
        for s, reason in zip(sure, reasons, strict=True)
    ]


def _surely_lead(channel: Channel) -> bool:
    return channel.is_lead or name_kind(channel.name) == "ecg"


def _own_reason(channel: Channel) -> str | None:
    volts = channel.unit is not None and millivolts_per(channel.unit) is not None
    if tells_unit(channel.unit) and not volts:
        return f"it is in {channel.unit}, not in volts"
    if channel.is_lead:
        return None
    kind = name_kind(channel.name)
    if kind == "other":
        return "its name is another signal's"
    if volts:
        return None
    if is_counter(channel.values):
        return "it counts or tells the time"
    if kind == "unknown" and _is_switch(channel.values):
        return "it has two values only"
    return None


def _is_switch(values: npt.NDArray[np.floating | np.integer]) -> bool:
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    return bool(numbers.size >= 100 and np.unique(numbers).size == 2)
