"""What is known of one recording: the tools' outputs, read once, as answers state them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

from ecg_agent_ray.dialogue.turns import LeadConfiguration
from ecg_agent_ray.errors import DialogueError
from ecg_agent_ray.facts.quantities import QUANTITIES, Rating, measured, rounded
from ecg_agent_ray.facts.statements import STATEMENTS, statement_name

__all__ = ["Finding", "RecordFacts", "Region", "parse_region"]

_CLASS = re.compile(r"^(?P<code>\S+) \((?P<percent>\d+(?:\.\d+)?)%\)$")
_REGION = re.compile(
    r"^(?P<code>\S+) \((?P<percent>\d+(?:\.\d+)?)%\) \| "
    r"time=(?P<start>\d+(?:\.\d+)?)-(?P<end>\d+(?:\.\d+)?)s, "
    r"freq=(?P<low>\d+(?:\.\d+)?)-(?P<high>\d+(?:\.\d+)?)Hz"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement of the classification, its probability in whole percent."""

    code: str
    percent: int

    @property
    def name(self) -> str:
        return statement_name(self.code)

    @property
    def is_benign(self) -> bool:
        return self.code in STATEMENTS and STATEMENTS[self.code].is_benign

    @property
    def is_rhythm(self) -> bool:
        return self.code in STATEMENTS and STATEMENTS[self.code].kind == "rhythm"

    @property
    def shown(self) -> str:
        """As an answer lists it: ``sinus rhythm (98%)``."""
        article = "a " if self.code == "NORM" else ""
        return f"{article}{self.name} ({self.percent}%)"


@dataclass(frozen=True, slots=True)
class Region:
    """Where an explanation points: ``when`` in seconds, ``freq`` in hertz, both as worded."""

    code: str
    percent: int
    when: str
    freq: str


@dataclass(frozen=True)
class RecordFacts:
    """The outputs of the three tools for one recording, in the dialogue's form.

    ``explanation`` maps a statement code to the explanation tool's line for it; ``None`` where no
    explanation was computed. ``ecg_file`` is what dialogues name as their ECG file. ``made_up``
    marks outputs that no tool gave (see :func:`ecg_agent_ray.dialogue.synthesis.vary`).
    """

    record_id: str
    ecg_file: str
    lead_configuration: LeadConfiguration
    measurement: Mapping[str, Any]
    classification: list[str]
    explanation: Mapping[str, str] | None = field(default=None)
    made_up: bool = False

    @cached_property
    def values(self) -> dict[str, int | None]:
        """The four values as whole numbers (bpm, ms, ms, ms)."""
        return measured(self.measurement)

    @cached_property
    def findings(self) -> list[Finding]:
        """The classification in its order. Raises :class:`DialogueError` for a malformed entry."""
        found = []
        for item in self.classification:
            match = _CLASS.match(item)
            if match is None:
                raise DialogueError(
                    f"{self.record_id}: {item!r} is no statement like 'SR (98.23%)'"
                )
            found.append(Finding(match["code"], rounded(match["percent"])))
        return found

    @property
    def known_keys(self) -> list[str]:
        return [key for key in QUANTITIES if self.values[key] is not None]

    @property
    def missing_keys(self) -> list[str]:
        return [key for key in QUANTITIES if self.values[key] is None]

    @property
    def explained_codes(self) -> list[str]:
        """Findings that have an explanation, the leading finding first."""
        lines = self.explanation or {}
        return [finding.code for finding in self.findings if finding.code in lines]

    @property
    def can_explain(self) -> bool:
        """True where the leading finding has one: it is what an unnamed "why?" is about."""
        codes = self.explained_codes
        return bool(codes) and codes[0] == self.findings[0].code

    def shown(self, key: str) -> str:
        """A measured value with its unit, ``72 bpm``."""
        return f"{self.values[key]} {QUANTITIES[key].unit}"

    def rating(self, key: str) -> Rating:
        value = self.values[key]
        if value is None:
            raise DialogueError(f"{self.record_id}: {key} was not measured")
        return QUANTITIES[key].rate(value)


def parse_region(line: str) -> Region | None:
    """Read the explanation tool's line; ``None`` where it says that none is available."""
    match = _REGION.match(line)
    if match is None:
        return None
    when = _span(match["start"], match["end"], Decimal("0.1"))
    freq = _span(match["low"], match["high"], Decimal("1"))
    return Region(match["code"], rounded(match["percent"]), f"{when} s", f"{freq} Hz")


def _span(low: str, high: str, step: Decimal) -> str:
    first, last = (Decimal(text).quantize(step) for text in (low, high))
    return f"{first}" if first == last else f"{first} to {last}"
