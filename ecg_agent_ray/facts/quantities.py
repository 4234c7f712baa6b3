"""Everything that is measured: one table of names, units, usual ranges, keys and words.

Ranges are the customary ones for resting adults: heart rate 60-100 bpm; PR 120-200 ms; QRS below
120 ms; QTc 350 ms to 450 ms in men and 460 ms in women; frontal axis -30 to +90 degrees; P up to
120 ms (AHA/ACCF/HRS recommendations, Circulation 2009;119:e235 and e241). They word an answer;
they are no diagnosis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any, Literal

from ecg_agent_ray.errors import DialogueError

__all__ = [
    "ALL_QUANTITIES",
    "QUANTITIES",
    "Quantity",
    "Rating",
    "Sex",
    "measured",
    "rounded",
]

Rating = Literal["low", "normal", "high"]
Sex = Literal["male", "female"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """One measured value.

    Attributes
    ----------
    key
        The name in ECG-MTD's tool outputs and in slots.
    detail
        The name in the measurement tool's JSON.
    low, high
        What counts as usual lies between them, both included; None where there is no limit.
    high_female
        The upper limit of women where it differs.
    usual, meaning
        In words; ``meaning`` is a noun phrase that reads after "is".
    words
        What people call it, in small letters; the first is the one to show.
    below, above
        How a value outside the range is rated; reads after "is".
    """

    key: str
    name: str
    unit: str
    low: int | None
    high: int | None
    usual: str
    meaning: str
    detail: str
    words: tuple[str, ...]
    below: str = "shorter than usual"
    above: str = "longer than usual"
    high_female: int | None = None

    def limit(self, sex: Sex | None = None) -> int | None:
        """The upper limit; of an unknown person the stricter one."""
        return self.high_female if sex == "female" and self.high_female else self.high

    def rate(self, value: int, sex: Sex | None = None) -> Rating:
        """Where a rounded value lies; without ``sex`` by the stricter limit."""
        high = self.limit(sex)
        if self.low is not None and value < self.low:
            return "low"
        return "high" if high is not None and value > high else "normal"

    def shown(self, value: int) -> str:
        """A rounded value with its unit, as an answer states it."""
        return f"{value}{self.unit}" if self.unit == "°" else f"{value} {self.unit}"


QUANTITIES: dict[str, Quantity] = {
    item.key: item
    for item in (
        Quantity(
            "heart_rate", "heart rate", "bpm", 60, 100, "60 to 100 bpm",
            "how many times the heart beats in a minute", "heart_rate_bpm",
            ("heart rate", "heartbeat rate", "pulse rate", "pulse", "rate", "hr"),
            below="slower than usual", above="faster than usual",
        ),
        Quantity(
            "pr_interval", "PR interval", "ms", 120, 200, "120 to 200 ms",
            "the time the signal takes from the upper to the lower chambers", "pr_ms",
            ("pr interval", "pr time", "pr", "pq interval", "pq"),
        ),
        Quantity(
            "qrs_duration", "QRS duration", "ms", 60, 119, "below 120 ms",
            "how long the signal takes to spread through the lower chambers", "qrs_ms",
            ("qrs duration", "qrs width", "qrs interval", "qrs complex", "qrs"),
        ),
        Quantity(
            "qtc_interval", "QTc interval", "ms", 350, 450, "up to 450 ms, in women 460 ms",
            "the time the heart needs to discharge and recharge, corrected for heart rate",
            "qtc_bazett_ms",
            ("qtc interval", "corrected qt interval", "corrected qt", "qtc", "qt interval", "qt"),
            high_female=460,
        ),
    )
}  # fmt: skip
"""The four of ECG-MTD's measurement, by key."""

ALL_QUANTITIES: dict[str, Quantity] = QUANTITIES | {
    item.key: item
    for item in (
        Quantity(
            "qt_interval", "QT interval", "ms", None, None,
            "not judged by itself, since it depends on the heart rate; the QTc is",
            "the time the heart needs to discharge and recharge, as it was measured", "qt_ms",
            ("uncorrected qt interval", "raw qt interval", "uncorrected qt", "raw qt",
             "qt interval", "qt"),
        ),
        Quantity(
            "qtc_fridericia", "QTc by Fridericia", "ms", 350, 450,
            "up to 450 ms, in women 460 ms",
            "the QT interval corrected for heart rate by Fridericia's formula",
            "qtc_fridericia_ms",
            ("qtc by fridericia", "fridericia qtc", "fridericia", "qtcf", "qtc"),
            high_female=460,
        ),
        Quantity(
            "rr_interval", "RR interval", "ms", 600, 1000, "600 to 1000 ms",
            "the time from one beat to the next", "rr_ms", ("rr interval", "rr"),
        ),
        Quantity(
            "p_duration", "P wave duration", "ms", None, 120, "up to 120 ms",
            "how long the signal takes to spread through the upper chambers", "p_duration_ms",
            ("p wave duration", "p duration", "p wave", "p"),
        ),
        Quantity(
            "axis", "QRS axis", "°", -30, 90, "-30° to 90°",
            "the main direction in which the signal spreads through the lower chambers",
            "axis_deg.qrs", ("qrs axis", "heart axis", "electrical axis", "axis"),
            below="turned further to the left than usual",
            above="turned further to the right than usual",
        ),
    )
}  # fmt: skip
"""Those four and what the measurement tool gives beyond them."""


def rounded(value: Any) -> int:
    """A tool's value as the whole number that an answer states; halves go up.

    Raises :class:`DialogueError` for what is no number.
    """
    try:
        return int(Decimal(str(value)).quantize(Decimal(1), rounding=ROUND_HALF_UP))
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise DialogueError(f"{value!r} is not a measured value") from error


def measured(output: Mapping[str, Any]) -> dict[str, int | None]:
    """The four values of a measurement output as whole numbers; ``None`` where it has none."""
    return {key: None if output.get(key) is None else rounded(output[key]) for key in QUANTITIES}
