"""Labels and measured values that do not agree, said once and with what may explain them.

Each rule holds where a label is listed and a value is measured. What is physiologically compatible
is no conflict: complete block with a fast atrial rate, flutter with a slow pulse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ecg_agent_ray.facts.quantities import ALL_QUANTITIES, QUANTITIES
from ecg_agent_ray.facts.sheet import FactSheet
from ecg_agent_ray.facts.statements import statement_name

__all__ = ["conflicts"]


@dataclass(frozen=True, slots=True)
class _Rule:
    codes: tuple[str, ...]
    key: str
    disagrees: Callable[[int], bool]


# Limits as in quantities: what the label's definition asks of the value (AHA/ACCF/HRS 2009).
_RULES = (
    _Rule(("SBRAD",), "heart_rate", lambda value: value >= 60),
    _Rule(("STACH", "SVTAC", "PSVT"), "heart_rate", lambda value: value <= 100),
    _Rule(("CLBBB", "CRBBB"), "qrs_duration", lambda value: value < 120),
    _Rule(("1AVB", "LPR"), "pr_interval", lambda value: value <= 200),
    _Rule(("LNGQT",), "qtc_interval", lambda value: value <= 450),
    _Rule(("AFIB",), "pr_interval", lambda value: value > 0),
)
_BROAD = ("CLBBB", "CRBBB", "IVCD", "PACE", "WPW", "ABQRS", "PVC")


def conflicts(sheet: FactSheet) -> list[str]:
    """Clauses in small letters, one for each disagreement; empty where all agrees."""
    return [*_wrong_labels(sheet), *_not_normal(sheet), *_unexplained_width(sheet)]


def _wrong_labels(sheet: FactSheet) -> Iterator[str]:
    for rule in _RULES:
        value, quantity = sheet.values.get(rule.key), ALL_QUANTITIES[rule.key]
        for code in rule.codes:
            if value is not None and sheet.finding(code) and rule.disagrees(value):
                yield (
                    f"the label {statement_name(code)} and the measured {quantity.name} of "
                    f"{quantity.shown(value)} do not agree, so one of the two may be wrong"
                )


def _not_normal(sheet: FactSheet) -> Iterator[str]:
    if not sheet.finding("NORM"):
        return
    for key in QUANTITIES:
        value, quantity = sheet.values.get(key), ALL_QUANTITIES[key]
        high = quantity.high_female or quantity.high
        too_high = value is not None and high is not None and value > high
        # a narrow QRS is a matter of measuring, not of the heart
        low = None if key == "qrs_duration" else quantity.low
        too_low = value is not None and low is not None and value < low
        if value is not None and (too_high or too_low):
            yield (
                f"the label {statement_name('NORM')} and the measured {quantity.name} of "
                f"{quantity.shown(value)}, which is outside the usual range, do not agree"
            )


def _unexplained_width(sheet: FactSheet) -> Iterator[str]:
    """A broad QRS of which the classifier says nothing, and whether it could have."""
    qrs = sheet.values.get("qrs_duration")
    if qrs is None or qrs < 120 or sheet.findings is None:
        return
    if any(sheet.finding(code) for code in _BROAD):
        return
    unknown = [statement_name(code) for code in _BROAD[:3] if code in (sheet.not_assessed or ())]
    reason = f", and this classifier cannot assess {_joined(unknown)}" if unknown else ""
    yield f"the QRS of {qrs} ms is longer than usual, but no label explains it{reason}"


def _joined(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
