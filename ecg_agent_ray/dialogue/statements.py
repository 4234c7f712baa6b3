"""The 71 SCP-ECG statements of PTB-XL in plain words.

Names follow the SCP-ECG statement descriptions that PTB-XL publishes; the meanings are general
knowledge for a lay reader and say nothing of any one recording.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

__all__ = ["STATEMENTS", "Kind", "Statement", "find_statements", "statement_name"]

Kind = Literal[
    "normal", "rhythm", "ectopy", "conduction", "infarction", "ischemia", "hypertrophy", "form"
]


@dataclass(frozen=True, slots=True)
class Statement:
    """``name`` reads well after "shows"; ``aliases`` are other words that people use for it."""

    code: str
    kind: Kind
    name: str
    meaning: str
    aliases: tuple[str, ...] = ()

    @property
    def is_benign(self) -> bool:
        """The statements that report the usual state instead of a finding."""
        return self.code in ("NORM", "SR")


def _read() -> Iterable[Statement]:
    table = resources.files("ecg_agent_ray") / "_data" / "dialogue" / "statements.csv"
    for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        aliases = tuple(word.strip() for word in row["aliases"].split(";") if word.strip())
        yield Statement(row["code"], _KINDS[row["kind"]], row["name"], row["meaning"], aliases)


_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}

STATEMENTS: dict[str, Statement] = {item.code: item for item in _read()}
"""All 71 by code."""


def statement_name(code: str) -> str:
    """The plain name of a code; an unknown code is its own name."""
    return STATEMENTS[code].name if code in STATEMENTS else code


# codes that are ordinary words or parts of them when written in small letters
_CASE_BOUND = frozenset({"EL", "SR", "DIG", "PACE", "NORM", "AMI", "LMI", "AF"})


@cache
def _finder() -> tuple[re.Pattern[str], dict[str, str]]:
    words: dict[str, str] = {}
    for item in STATEMENTS.values():
        for word in (item.code, item.name, *item.aliases):
            words.setdefault(word.lower(), item.code)
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join(re.escape(word) for word in longest_first)
    return re.compile(rf"(?<![\w])(?:{pattern})(?!\w)", re.IGNORECASE), words


def find_statements(text: str) -> list[str]:
    """The codes whose code, name or alias stands in ``text``, in order and without repeats.

    Longer names win: "complete left bundle branch block" is CLBBB only. Codes that are also
    everyday words (``PACE``, ``EL``, …) count in capitals only.
    """
    pattern, words = _finder()
    found: dict[str, None] = {}
    for match in pattern.finditer(text):
        word = match.group(0)
        if word.upper() in _CASE_BOUND and word != word.upper():
            continue
        found[words[word.lower()]] = None
    return list(found)
