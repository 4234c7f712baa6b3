"""Numbers as people's programs print them: decimal point or comma, with or without thousands."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ecg_agent_ray.errors import RecordingError

__all__ = ["Numerals", "is_number_text", "numerals_of"]

_NUMBER = re.compile(
    r"^[+\-−]?(?:[1-9]\d{0,2}(?:['’\u00a0\u202f ]\d{3})+(?:[.,]\d*)?|\d[\d.,]*|[.,]\d+)"
    r"(?:e[+-]?\d+)?$",
    re.I,
)
_GROUPS = re.compile(r"^[+\-−]?[1-9]\d{0,2}(?P<mark>[.,])\d{3}(?:(?P=mark)\d{3})*$")
_SPACES = re.compile(r"(?<=\d)['’\u00a0\u202f ](?=\d{3})")


@dataclass(frozen=True)
class Numerals:
    """How a table writes numbers: its decimal mark and the mark between thousands, if any."""

    decimal: str
    thousands: str

    def value(self, text: str) -> float:
        """NaN for what is no number. Raises RecordingError for groups that are none of three."""
        number = _SPACES.sub("", text).replace("−", "-")
        if self.thousands and self.thousands in number:
            whole = number.split(self.decimal)[0]
            if not _GROUPS.match(whole):
                raise _ambiguous(text)
            number = number.replace(self.thousands, "")
        if self.decimal == ",":
            number = number.replace(",", ".")
        try:
            value = float(number)
        except ValueError:
            return math.nan
        return value if math.isfinite(value) else math.nan


def is_number_text(text: str) -> bool:
    return _NUMBER.match(text) is not None


def numerals_of(columns: Sequence[Sequence[str]]) -> Numerals:
    """The marks of a table, from the cells of its columns of numbers.

    A table has one decimal mark. A mark is the decimal one where any cell cannot be whole numbers
    in groups of three; it groups thousands where a cell has it twice, or where smaller numbers of
    the same column have none. Raises RecordingError where both readings remain.
    """
    both = {cell for column in columns for cell in column if "," in cell and "." in cell}
    if both:
        decimals = {max(",.", key=cell.rfind) for cell in both}
        if len(decimals) > 1:
            raise _ambiguous(min(both))
        decimal = decimals.pop()
        return Numerals(decimal, "." if decimal == "," else ",")
    comma, point = _use(columns, ","), _use(columns, ".")
    if comma == "both" or "decimal" == comma == point or "thousands" == comma == point:
        raise _ambiguous(next(cell for column in columns for cell in column if "," in cell))
    if comma == "decimal":
        return Numerals(",", "." if point in ("thousands", "both") else "")
    if point == "thousands":
        return Numerals(",", ".")
    return Numerals(".", "," if comma == "thousands" else "")


def _use(columns: Sequence[Sequence[str]], mark: str) -> str:
    """What ``mark`` is for: ``decimal``, ``thousands``, ``both`` (either is possible), ``none``."""
    found = "none"
    for column in columns:
        marked = [cell for cell in column if mark in cell]
        if not marked:
            continue
        if any(not _GROUPS.match(cell) for cell in marked):
            return "decimal"
        plain = [cell.lstrip("+-−") for cell in column if mark not in cell]
        if not plain and len({cell[0] in "-−" for cell in marked}) > 1:
            # as thousands, no value of a signal of both signs would lie between -1000 and 1000
            return "decimal"
        twice = any(cell.count(mark) > 1 for cell in marked)
        if twice or any(len(cell) == 3 and cell.isdigit() for cell in plain):
            found = "thousands"
        elif found == "none":
            found = "both"
    # a point between three digits is a decimal point unless something speaks for thousands
    return "decimal" if mark == "." and found == "both" else found


def _ambiguous(cell: str) -> RecordingError:
    return RecordingError(
        f"{cell[:20]!r} can be read with a decimal comma or with thousands",
        hint="export it without thousands marks and with decimal points",
    )
