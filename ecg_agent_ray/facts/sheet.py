"""What is known of one recording: the tools' outputs of a dialogue, read once.

Outputs come in ECG-MTD's form, as the model reads them. What the tools know beyond that form (their
full JSON) and what is known of the person travel beside; without it a sheet simply knows less.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ecg_agent_ray.errors import DialogueError
from ecg_agent_ray.facts.quantities import ALL_QUANTITIES, QUANTITIES, Rating, Sex, rounded
from ecg_agent_ray.facts.statements import STATEMENTS, statement_name

__all__ = ["FactSheet", "Finding"]

_ENTRY = re.compile(r"^\s*(?P<code>\S+)\s*\((?P<percent>\d+(?:\.\d+)?)\s*%\)")
_PLACE = re.compile(r"time\s*=\s*(?P<start>[\d.]+)\s*-\s*(?P<end>[\d.]+)\s*s")
_MISSING_WORDS = {"pr_interval": "PR", "qrs_duration": "QRS", "qtc_interval": "QT",
                  "heart_rate": "heart rate"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement above the classifier's threshold; ``percent`` is its probability, 0 to 100."""

    code: str
    percent: int

    @property
    def name(self) -> str:
        return statement_name(self.code)

    @property
    def is_benign(self) -> bool:
        return self.code in STATEMENTS and STATEMENTS[self.code].is_benign


@dataclass(slots=True)
class FactSheet:
    """The facts of a dialogue so far.

    Attributes
    ----------
    values
        Whole numbers by quantity; None where the measurement gave null. Later measurements win.
    findings
        What the classifier listed, most probable first; None before a classification.
    not_assessed
        Codes that the classifier cannot judge; None where that was not told.
    where
        The places an explanation gave, as pairs of seconds with the lead; empty without one.
    notes
        The measurement tool's remarks.
    texts
        Other facts by slot: ``lead``, ``quality``, ``regularity``.
    sex, age
        Of the person, where known.
    """

    values: dict[str, int | None] = field(default_factory=dict)
    findings: tuple[Finding, ...] | None = None
    not_assessed: frozenset[str] | None = None
    where: list[tuple[float, float, str]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    sex: Sex | None = None
    age: int | None = None

    @classmethod
    def read(cls, tool_outputs: Iterable[Any], beside: Any = None) -> FactSheet:
        """Facts of outputs in ECG-MTD's form, and of what travels beside them.

        Parameters
        ----------
        tool_outputs
            In order: a measurement object, a list of ``"SR (98.23%)"``, an explanation's line; also
            as text, as a step with ``tool_output``, as (action, output), or as an object with
            ``output`` and ``detail``. An output that is none of these tells nothing.
        beside
            The tools' full JSON and ``sex`` and ``age`` of the person, nested in any way.
        """
        sheet = cls()
        details = []
        for output in tool_outputs:
            details.append(getattr(output, "detail", None))
            sheet._add(_bare(output))
        sheet._add_beside(details)
        sheet._add_beside(beside)
        return sheet

    @property
    def measured(self) -> bool:
        """Whether a measurement was made, even one that gave nulls alone."""
        return bool(self.values)

    def finding(self, code: str) -> Finding | None:
        return next((item for item in self.findings or () if item.code == code), None)

    @property
    def abnormal(self) -> tuple[Finding, ...]:
        """The findings other than a normal ECG and sinus rhythm."""
        return tuple(item for item in self.findings or () if not item.is_benign)

    def rating(self, key: str) -> Rating | None:
        """Of a value that is there and whose quantity has limits."""
        value, quantity = self.values.get(key), ALL_QUANTITIES[key]
        if value is None or (quantity.low is None and quantity.high is None):
            return None
        return quantity.rate(value, self.sex)

    def why_missing(self, key: str) -> str:
        """The tool's reason for a null, else an empty text."""
        word = _MISSING_WORDS.get(key, "")
        reasons = [note for note in self.notes if word and note.startswith(f"no {word}:")]
        return reasons[0].partition(":")[2].strip() if reasons else ""

    def _add(self, output: Any) -> None:
        if isinstance(output, str):
            self._add_lines(output)
        elif isinstance(output, Mapping):
            if any(key in output for key in QUANTITIES):
                for key in QUANTITIES:
                    self._set(key, output.get(key), replace=key in output)
        elif isinstance(output, Sequence):
            entries = [_ENTRY.match(str(entry)) for entry in output]
            if all(entries):
                self.findings = tuple(_finding(entry) for entry in entries if entry)

    def _add_lines(self, text: str) -> None:
        places = [
            (float(place["start"]), float(place["end"]), "") for place in _PLACE.finditer(text)
        ]
        if places:
            self.where = places

    def _set(self, key: str, value: Any, *, replace: bool = True) -> None:
        if not replace:
            self.values.setdefault(key, None)
            return
        try:
            self.values[key] = None if value is None else rounded(value)
        except DialogueError:
            self.values[key] = None  # a word in a number's place is no value

    def _add_beside(self, beside: Any) -> None:
        for item in _mappings(beside):
            if "heart_rate_bpm" in item:
                self._add_measurement(item)
            elif "not_assessed" in item or "positive" in item:
                self.not_assessed = frozenset(map(str, item.get("not_assessed") or ()))
            elif "regions" in item and "cells" in item:
                self._add_explanation(item)
            if item.get("sex") in ("male", "female"):
                self.sex = item["sex"]
            if isinstance(item.get("age"), int | float) and not isinstance(item["age"], bool):
                self.age = int(item["age"])

    def _add_measurement(self, item: Mapping[str, Any]) -> None:
        for key, quantity in ALL_QUANTITIES.items():
            outer, _, inner = quantity.detail.partition(".")
            value = item.get(outer)
            if inner:
                value = value.get(inner) if isinstance(value, Mapping) else None
            if key not in QUANTITIES and value is not None:
                self._set(key, value)
        self.notes = tuple(map(str, item.get("notes") or ()))
        if lead := item.get("lead"):
            self.texts["lead"] = "all leads together" if lead == "global" else f"lead {lead}"
        quality = item.get("quality")
        if isinstance(quality, Mapping) and quality.get("status"):
            self.texts["quality"] = str(quality["status"])
        elif isinstance(quality, str) and quality:
            self.texts["quality"] = quality
        rhythm = item.get("rhythm")
        if isinstance(rhythm, Mapping) and isinstance(rhythm.get("regular"), bool):
            self.texts["regularity"] = "regular" if rhythm["regular"] else "irregular"

    def _add_explanation(self, item: Mapping[str, Any]) -> None:
        lead = str(item.get("lead") or "")
        if lead:
            self.where = [(start, end, lead) for start, end, _ in self.where]


def _bare(output: Any) -> Any:
    """The output itself, out of a step, a result or a pair of action and output."""
    output = getattr(output, "output", output)
    if isinstance(output, tuple) and len(output) == 2:
        output = output[1]
    if isinstance(output, Mapping) and "tool_output" in output:
        output = output["tool_output"]
    if isinstance(output, str) and output.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(output)
        except ValueError:
            return output
    return output


def _finding(entry: re.Match[str]) -> Finding:
    return Finding(entry["code"], rounded(entry["percent"]))


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """All objects within ``value``, outer ones first."""
    if isinstance(value, Mapping):
        yield value
        for item in value.values():
            yield from _mappings(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _mappings(item)
