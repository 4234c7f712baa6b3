"""The four measured values: names, units and the usual adult range, for wording and checking.

Ranges are the customary ones for resting adults: heart rate 60-100 bpm; PR 120-200 ms; QRS below
120 ms; QTc up to 450 ms in men and 460 ms in women (AHA/ACCF/HRS recommendations, Circulation
2009;119:e235 and e241). They word an answer; they are no diagnosis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any, Literal

from ecg_agent_ray.errors import DialogueError

__all__ = ["QUANTITIES", "Quantity", "Rating", "measured", "rounded"]

Rating = Literal["low", "normal", "high"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """One measured value; ``low`` and ``high`` bound what counts as usual, both included."""

    key: str
    name: str
    unit: str
    low: int
    high: int
    usual: str
    meaning: str

    def rate(self, value: int) -> Rating:
        """Where a rounded value lies; for QTc by the stricter limit, the one for men."""
        if value < self.low:
            return "low"
        return "high" if value > self.high else "normal"


QUANTITIES: dict[str, Quantity] = {
    item.key: item
    for item in (
        Quantity(
            "heart_rate", "heart rate", "bpm", 60, 100, "60 to 100 bpm",
            "how many times the heart beats in a minute",
        ),
        Quantity(
            "pr_interval", "PR interval", "ms", 120, 200, "120 to 200 ms",
            "the time the signal takes from the upper to the lower chambers",
        ),
        Quantity(
            "qrs_duration", "QRS duration", "ms", 60, 119, "below 120 ms",
            "how long the signal takes to spread through the lower chambers",
        ),
        Quantity(
            "qtc_interval", "QTc interval", "ms", 350, 450,
            "up to 450 ms, in women 460 ms",
            "the time the heart needs to discharge and recharge, corrected for heart rate",
        ),
    )
}  # fmt: skip


def rounded(value: Any) -> int:
    """A tool's value as the whole number that an answer states; halves go up.

    Raises :class:`DialogueError` for what is no number.
    """
    try:
        return int(Decimal(str(value)).quantize(Decimal(1), rounding=ROUND_HALF_UP))
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise DialogueError(f"{value!r} is no measured value") from error


def measured(output: Mapping[str, Any]) -> dict[str, int | None]:
    """The four values of a measurement output as whole numbers; ``None`` where it has none."""
    return {key: None if output.get(key) is None else rounded(output[key]) for key in QUANTITIES}
