"""Units of a channel's values, as devices, archives and people spell them."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

__all__ = ["COUNTS", "is_unit_text", "millivolts_per", "tells_unit"]

COUNTS = "adc"
"""The unit of values that are an analogue-digital converter's counts."""

_PREFIXES = {"": 1e3, "n": 1e-6, "u": 1e-3, "m": 1.0, "c": 10.0, "d": 100.0}
_PREFIXES |= {"nano": 1e-6, "micro": 1e-3, "milli": 1.0}
_VOLTS = re.compile(
    r"^(?P<number>\d*\.?\d+(?:e-?\d+)?)?(?P<prefix>nano|micro|milli|[numcd]?)v(?:olts?)?$"
)
# the micro sign in Unicode's two forms, in IBM code page 437, and in UTF-8 that was read as Latin-1
_MICRO = str.maketrans({"µ": "u", "μ": "u", "æ": "u", "Â": None})
_MOJIBAKE = re.compile("Î¼|Âµ|âµ")
# what stands for "no unit": counts of a converter, or a placeholder
_NOT_TOLD = re.compile(
    r"^(?:|[-–—?.]+|n/?a|nan|none|unknown|nu|1|a\.?u\.?|adu|adc|lsbs?|counts?|digits?|raw|int|bits?|"
    r"units?|normali[sz]ed|dimensionless|no ?units?|arbitrary(?: units?)?)$"
)


def _cleaned(unit: str) -> str:
    text = _MOJIBAKE.sub("µ", str(unit)).translate(_MICRO)
    text = unicodedata.normalize("NFKC", text).translate(_MICRO).lower()
    return re.sub(r"[\s\[\](){}\"'\0_-]+", " ", text).strip()


@lru_cache(maxsize=1024)
def millivolts_per(unit: str) -> float | None:
    """How many mV one ``unit`` is; None for what is no voltage (``mmHg``, ``NU``, nothing).

    >>> [millivolts_per(u) for u in ("uV", "[microvolts]", "µV", "V", "2.5uV", "mmHg")]
    [0.001, 0.001, 0.001, 1000.0, 0.0025, None]
    """
    match = _VOLTS.match(_cleaned(unit).replace(" ", ""))
    if not match:
        return None
    return float(match["number"] or 1) * _PREFIXES[match["prefix"]]


@lru_cache(maxsize=1024)
def tells_unit(unit: str | None) -> bool:
    """Whether this names a physical unit, rather than nothing, counts or a placeholder."""
    return unit is not None and _NOT_TOLD.match(_cleaned(unit)) is None


_OTHER_UNITS = re.compile(
    r"^(?:\d*\.?\d+ ?)?"
    r"(?:%|mmhg|cmh2o|k?pa|bpm|/min|1/min|rpm|hz|[kmun]?s|sec(?:onds?)?|min(?:utes?)?|"
    r"(?:m?g|m/s\^?2)|(?:deg|°) ?[cfs]?(?:/s)?|[kmu]?ohms?|[kmun]?siemens|[umk]s/cm|l(?:/min)?|ml|"
    r"samples?|[hmsd:.\[\] /yf]*hh?:mm:ss[.\w\s/:\]\[]*)$"
)


def is_unit_text(text: str) -> bool:
    """Whether a table's cell is a unit, as in a line of units below the names."""
    cleaned = _cleaned(text)
    if not cleaned:
        return False
    if millivolts_per(text) is not None or _OTHER_UNITS.match(cleaned):
        return True
    return _NOT_TOLD.match(cleaned) is not None and not cleaned.isdigit()
