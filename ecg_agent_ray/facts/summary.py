"""All that the tools gave, in a few sentences: findings, values outside their range, gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ecg_agent_ray.facts.conflicts import conflicts
from ecg_agent_ray.facts.groups import GROUPS
from ecg_agent_ray.facts.quantities import ALL_QUANTITIES, QUANTITIES
from ecg_agent_ray.facts.sheet import FactSheet, Finding
from ecg_agent_ray.facts.statements import STATEMENTS

__all__ = ["joined", "listed", "summary"]


def joined(parts: Sequence[str], word: str = "and") -> str:
    """``a, b and c``."""
    *first, last = parts
    return f"{', '.join(first)} {word} {last}" if first else last


def listed(findings: Iterable[Finding]) -> str:
    """``sinus rhythm (98%) and left bundle branch block (93%)``."""
    return joined(
        [f"{'a ' if item.code == 'NORM' else ''}{item.name} ({item.percent}%)" for item in findings]
    )


def summary(sheet: FactSheet) -> str | None:
    """Sentences on everything known; None where no tool has given anything."""
    if sheet.findings is None and not sheet.measured:
        return None
    sentences = [*_of_findings(sheet), *_of_values(sheet)]
    sentences += [f"Note that {clause}." for clause in conflicts(sheet)]
    return " ".join(sentences).removesuffix(".")


def _of_findings(sheet: FactSheet) -> list[str]:
    if sheet.findings is None:
        return ["The classifier has not been asked yet."]
    said = listed(sheet.findings) if sheet.findings else "no finding that reached the threshold"
    sentences = [f"The classifier lists {said}."]
    if sheet.not_assessed:
        groups = [
            group.plural
            for group in GROUPS.values()
            if all(code in sheet.not_assessed for code in group.codes)
        ]
        number = len(sheet.not_assessed & STATEMENTS.keys())
        among = f", among them {joined(groups)}" if groups else ""
        sentences.append(
            f"It cannot assess {number} of the {len(STATEMENTS)} findings it knows by name{among}."
        )
    return sentences


def _of_values(sheet: FactSheet) -> list[str]:
    if not sheet.measured:
        return ["Heart rate and intervals have not been measured yet."]
    from ecg_agent_ray.facts.slots import fill

    outside, within, missing = [], [], []
    for key in QUANTITIES:
        value, quantity = sheet.values.get(key), ALL_QUANTITIES[key]
        if value is None:
            missing.append(str(fill(f"{key}.missing", sheet)))
        elif sheet.rating(key) == "normal":
            within.append(f"{quantity.name} {quantity.shown(value)}")
        else:
            outside.append(
                f"the {quantity.name} is {quantity.shown(value)}, {fill(f'{key}.rating', sheet)}"
            )
    sentences = [f"Outside the usual range: {joined(outside)}."] if outside else []
    if within:
        sentences.append(f"Within the usual range: {joined(within)}.")
    return sentences + [f"{clause[0].upper()}{clause[1:]}." for clause in missing]
