"""Values and findings that are dangerous by themselves, and what to say of them first.

The lines are a table with sources; they say what to do and when, and no more. They stand before an
answer in the turn that first brings the fact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ecg_agent_ray.facts.sheet import FactSheet
from ecg_agent_ray.facts.statements import STATEMENTS

__all__ = ["URGENT_RULES", "UrgentRule", "urgent_lines"]

_NOW = (
    "with chest pain, breathlessness, fainting or confusion, call your local emergency number now"
)


@dataclass(frozen=True, slots=True)
class UrgentRule:
    """``holds`` on a sheet's facts gives ``line``; ``source`` says where the limit comes from."""

    name: str
    holds: Callable[[FactSheet], bool]
    line: str
    source: str


def _value(sheet: FactSheet, key: str) -> int | None:
    return sheet.values.get(key)


def _below(key: str, limit: int) -> Callable[[FactSheet], bool]:
    return lambda sheet: (value := _value(sheet, key)) is not None and value < limit


def _from(key: str, limit: int) -> Callable[[FactSheet], bool]:
    return lambda sheet: (value := _value(sheet, key)) is not None and value >= limit


def _lists(*codes: str) -> Callable[[FactSheet], bool]:
    return lambda sheet: any(sheet.finding(code) for code in codes)


def _broad_and_fast(sheet: FactSheet) -> bool:
    rate, qrs = _value(sheet, "heart_rate"), _value(sheet, "qrs_duration")
    return rate is not None and qrs is not None and rate > 120 and qrs >= 120


_INFARCTION = tuple(
    code for code, item in STATEMENTS.items() if item.kind == "infarction" or code == "STE_"
)

URGENT_RULES: tuple[UrgentRule, ...] = (
    UrgentRule(
        "broad and fast",
        _broad_and_fast,
        "A fast heart rate with a broad QRS can be a dangerous rhythm from the lower chambers: "
        "call your local emergency number now.",
        "ESC Guidelines on ventricular arrhythmias, 2022",
    ),
    UrgentRule(
        "third-degree block",
        _lists("3AVB"),
        f"A complete AV block needs a doctor today; {_NOW}.",
        "ACC/AHA/HRS Guideline on bradycardia, 2018",
    ),
    UrgentRule(
        "infarction pattern",
        _lists(*_INFARCTION),
        f"A pattern of infarction or injury, old or new, needs a doctor today; {_NOW}.",
        "Fourth universal definition of myocardial infarction, 2018; ESC Guidelines on acute "
        "coronary syndromes, 2023",
    ),
    UrgentRule(
        "slow rate",
        _below("heart_rate", 40),
        f"A heart rate below 40 bpm should be looked at by a doctor today; {_NOW}.",
        "ACC/AHA/HRS Guideline on bradycardia, 2018",
    ),
    UrgentRule(
        "fast rate",
        lambda sheet: _from("heart_rate", 131)(sheet) and not _broad_and_fast(sheet),
        f"A resting heart rate above 130 bpm should be looked at by a doctor today; {_NOW}.",
        "Royal College of Physicians, National Early Warning Score 2, 2017 (131 bpm and above)",
    ),
    UrgentRule(
        "long QTc",
        _from("qtc_interval", 500),
        f"A QTc of 500 ms or more can lead to a dangerous rhythm and needs a doctor today; {_NOW}.",
        "AHA/ACCF Scientific statement on prevention of torsade de pointes, 2010",
    ),
    UrgentRule(
        "short QTc",
        _below("qtc_interval", 330),
        f"A QTc below 330 ms is very short and needs a doctor today; {_NOW}.",
        "ESC Guidelines on ventricular arrhythmias, 2022",
    ),
    UrgentRule(
        "second-degree block",
        lambda sheet: _lists("2AVB")(sheet) and not _lists("3AVB")(sheet),
        f"A second-degree AV block should be looked at by a doctor today; {_NOW}.",
        "ACC/AHA/HRS Guideline on bradycardia, 2018",
    ),
)


def urgent_lines(sheet: FactSheet, known: FactSheet | None = None) -> list[str]:
    """Lines for the dangerous facts of ``sheet`` that ``known`` does not hold yet."""
    return [
        rule.line
        for rule in URGENT_RULES
        if rule.holds(sheet) and not (known is not None and rule.holds(known))
    ]
