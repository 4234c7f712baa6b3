"""Slots: what a model writes in the place of a fact, and what the user reads instead.

``{heart_rate}`` becomes ``62 bpm``. A slot whose fact is not there has no text: :func:`fill` gives
None, :func:`offered` does not list it, and the grammar built from that list cannot write it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ecg_agent_ray.facts.conflicts import conflicts
from ecg_agent_ray.facts.groups import GROUPS, IMPLIED_BY, members
from ecg_agent_ray.facts.knowledge import Level, knowledge
from ecg_agent_ray.facts.quantities import ALL_QUANTITIES, Quantity
from ecg_agent_ray.facts.sheet import FactSheet, Finding
from ecg_agent_ray.facts.statements import STATEMENTS, statement_name
from ecg_agent_ray.facts.summary import joined, listed, summary

__all__ = ["SLOT", "Slot", "fill", "named_numbers", "offered", "parse_slot"]

SLOT = re.compile(r"\{([^{}\n]*)\}")
_NUMBER = re.compile(r"(?<![\w.])\d{1,4}(?:\.\d{1,3})?(?![\w]*\d)")
_TEXTS = ("lead", "quality", "regularity")
_FINDING_PARTS = ("name", "percent", "meaning")


@dataclass(frozen=True, slots=True)
class Slot:
    """``{head.subject.part}``: a quantity with ``part`` and ``number``, a code, an entry."""

    head: str
    subject: str = ""
    part: str = ""
    number: str = ""

    @property
    def quantity(self) -> Quantity | None:
        return ALL_QUANTITIES.get(self.head)


def parse_slot(text: str) -> Slot | None:
    """The slot of what stands between the braces; None for what is not a slot."""
    head, dot, rest = text.strip().partition(".")
    if head in ALL_QUANTITIES:
        part, colon, number = rest.partition(":")
        if part == "vs" and colon and _NUMBER.fullmatch(number):
            return Slot(head, part="vs", number=number)
        if not colon and part in ("", "rating", "usual", "meaning", "margin", "missing"):
            return Slot(head, part=part) if bool(part) == bool(dot) else None
        return None
    if head in _TEXTS or head in ("summary", "conflict"):
        return None if dot else Slot(head)
    if head == "findings" and rest in ("", "abnormal", "names"):
        return Slot(head, part=rest)
    if head == "finding":
        code, _, part = rest.rpartition(".")
        if part in _FINDING_PARTS and code:
            return Slot(head, code, part) if code in STATEMENTS else None
        return Slot(head, rest) if rest in STATEMENTS else None
    if head == "check" and (rest in STATEMENTS or rest in GROUPS):
        return Slot(head, rest)
    if head == "explanation" and rest == "where":
        return Slot(head, part="where")
    if head == "know" and rest:
        return Slot(head, rest)
    return None


def fill(text: str, sheet: FactSheet, *, level: Level = "B") -> str | None:
    """The words for a slot, given without braces; None where it has none on this sheet."""
    slot = parse_slot(text)
    if slot is None:
        return None
    if slot.quantity is not None:
        return _quantity(slot, slot.quantity, sheet)
    return _FILLERS[slot.head](slot, sheet, level)


def named_numbers(texts: Iterable[str]) -> tuple[str, ...]:
    """The numbers that a user named, in order and without repeats: what a value can be set against.

    Numbers of one digit are left out, but for those with a decimal point.
    """
    found = (number for text in texts for number in _NUMBER.findall(text))
    return tuple(dict.fromkeys(n for n in found if len(n) > 1 and float(n) > 0))


def offered(
    sheet: FactSheet, *, numbers: Sequence[str] = (), entries: Sequence[str] = ()
) -> tuple[str, ...]:
    """The slots that have a text on this sheet, without braces.

    ``numbers`` are those a user named, ``entries`` the knowledge put before the model.
    """
    slots: list[str] = []
    for key in ALL_QUANTITIES:
        parts = ("", ".rating", ".margin", ".missing", ".usual", ".meaning")
        slots += [f"{key}{part}" for part in parts]
        slots += [f"{key}.vs:{number}" for number in numbers]
    slots += ["findings", "findings.names", "findings.abnormal", "summary", "conflict"]
    slots += [*_TEXTS, "explanation.where"]
    for code in STATEMENTS:
        slots += [f"finding.{code}", *(f"finding.{code}.{part}" for part in _FINDING_PARTS)]
        slots.append(f"check.{code}")
    slots += [f"check.{group}" for group in GROUPS]
    slots += [f"know.{entry}" for entry in entries]
    return tuple(slot for slot in slots if fill(slot, sheet) is not None)


def _quantity(slot: Slot, quantity: Quantity, sheet: FactSheet) -> str | None:
    if slot.part == "usual":
        return quantity.usual
    if slot.part == "meaning":
        return quantity.meaning
    if slot.head not in sheet.values:
        return None
    value = sheet.values[slot.head]
    if slot.part == "missing":
        return _missing(quantity, sheet) if value is None else None
    if value is None:
        return None
    if slot.part == "":
        return quantity.shown(value)
    if slot.part == "vs":
        return _versus(quantity, value, slot.number)
    rating = sheet.rating(slot.head)
    if rating is None:
        return None
    if slot.part == "margin":
        return _margin(quantity, value, sheet)
    if rating == "normal":
        return "within the usual range"
    if rating == "low":
        return quantity.below
    between = quantity.high_female is not None and value <= quantity.high_female
    if sheet.sex is None and between:
        return (
            f"above the limit for men ({quantity.high} {quantity.unit}) and within the one for "
            f"women ({quantity.high_female} {quantity.unit})"
        )
    return quantity.above


def _missing(quantity: Quantity, sheet: FactSheet) -> str:
    reason = sheet.why_missing(quantity.key)
    said = f"the {quantity.name} could not be measured in this recording"
    return f"{said}: {reason}" if reason else said


def _versus(quantity: Quantity, value: int, number: str) -> str:
    """Against a number the user named, in the quantity's unit or, for times, in seconds."""
    limit, shown = float(number), f"{number} {quantity.unit}"
    if quantity.unit == "ms" and limit < 3:
        limit, shown = 1000 * limit, f"{number} s"
    if value == limit:
        return f"exactly {shown}"
    return f"{'below' if value < limit else 'above'} {shown}"


def _margin(quantity: Quantity, value: int, sheet: FactSheet) -> str | None:
    """How far from the nearer limit."""
    high = quantity.limit(sheet.sex)
    if high is not None and quantity.key == "qrs_duration":
        high += 1  # said as "below 120 ms"
    low = quantity.low if quantity.key != "qrs_duration" else None
    limits = [(high, "upper limit"), (low, "lower limit")]
    distance, limit, name = min(
        (abs(value - limit), limit, name) for limit, name in limits if limit is not None
    )
    told = f"the {name} of {quantity.shown(limit)}"
    if quantity.high_female and name == "upper limit" and sheet.sex is None:
        told += " for men"
    if distance == 0:
        return f"at {told}"
    return f"{quantity.shown(distance)} {'below' if value < limit else 'above'} {told}"


def _findings(slot: Slot, sheet: FactSheet, level: Level) -> str | None:
    if sheet.findings is None:
        return None
    if slot.part == "abnormal":
        return listed(sheet.abnormal) if sheet.abnormal else None
    if not sheet.findings:
        return "no finding that reached the threshold"
    if slot.part == "names":
        return joined([_name(item) for item in sheet.findings])
    return listed(sheet.findings)


def _name(item: Finding) -> str:
    return f"a {item.name}" if item.code == "NORM" else item.name


def _finding(slot: Slot, sheet: FactSheet, level: Level) -> str | None:
    if slot.part == "meaning":
        return STATEMENTS[slot.subject].meaning
    found = sheet.finding(slot.subject)
    if found is None:
        return None
    if slot.part == "name":
        return _name(found)
    return f"{found.percent}%" if slot.part == "percent" else listed([found])


def _check(slot: Slot, sheet: FactSheet, level: Level) -> str | None:
    """A clause about one statement or group that is true whatever the classifier said."""
    if sheet.findings is None:
        return None
    codes = members(slot.subject)
    codes += tuple(code for asked in codes for code in IMPLIED_BY.get(asked, ()))
    present = [item for item in sheet.findings if item.code in codes]
    if present:
        return f"{listed(present)} {'is' if len(present) == 1 else 'are'} reported"
    group = GROUPS.get(slot.subject)
    name = group.name if group else _name(Finding(slot.subject, 0))
    absent = f"no {name}" if group else name
    if sheet.not_assessed is None:
        return f"{absent} was {'' if group else 'not '}reported"
    unknown = [code for code in members(slot.subject) if code in sheet.not_assessed]
    if len(unknown) == len(members(slot.subject)):
        return f"this classifier cannot assess {group.plural if group else name}"
    said = f"{absent} is {'' if group else 'not '}among the findings"
    if unknown:
        names = joined([statement_name(code) for code in unknown], "or")
        said += f", though this classifier cannot assess {names}"
    return said


def _text(slot: Slot, sheet: FactSheet, level: Level) -> str | None:
    return sheet.texts.get(slot.head)


def _where(slot: Slot, sheet: FactSheet, level: Level) -> str | None:
    if not sheet.where:
        return None
    places = [f"{start:g} to {end:g} s" for start, end, _ in sheet.where]
    lead = sheet.where[0][2]
    return f"around {joined(places)}" + (f", mainly in lead {lead}" if lead else "")


def _conflict(slot: Slot, sheet: FactSheet, level: Level) -> str | None:
    return "; ".join(conflicts(sheet)) or None


def _know(slot: Slot, sheet: FactSheet, level: Level) -> str | None:
    entry = knowledge().get(slot.subject)
    return entry.text(level) if entry else None


_FILLERS: dict[str, Callable[[Slot, FactSheet, Level], str | None]] = {
    "findings": _findings,
    "finding": _finding,
    "check": _check,
    "summary": lambda slot, sheet, level: summary(sheet),
    "conflict": _conflict,
    "explanation": _where,
    "know": _know,
    **dict.fromkeys(_TEXTS, _text),
}
