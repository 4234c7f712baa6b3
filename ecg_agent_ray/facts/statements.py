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
    table = resources.files("ecg_agent_ray") / "_data" / "facts" / "statements.csv"
    for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        aliases = tuple(word.strip() for word in row["aliases"].split(";") if word.strip())
        yield Statement(row["code"], _KINDS[row["kind"]], row["name"], row["meaning"], aliases)


_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}

STATEMENTS: dict[str, Statement] = {item.code: item for item in _read()}
"""All 71 by code."""


def statement_name(code: str) -> str:
    """The plain name of a code; an unknown code is its own name."""
    return STATEMENTS[code].name if code in STATEMENTS else code


_WORD = re.compile(r"\w+")
# codes that are ordinary words or parts of them when written in small letters
_CASE_BOUND = frozenset({"EL", "SR", "DIG", "PACE", "NORM", "AMI", "LMI", "AF"})


@cache
def _names_by_first_word() -> dict[str, list[tuple[str, str]]]:
    """First word -> (name in small letters, code), longest name first."""
    names: dict[str, str] = {}
    for item in STATEMENTS.values():
        for name in (item.code, item.name, *item.aliases):
            names.setdefault(name.lower(), item.code)
    index: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(names, key=len, reverse=True):
        index.setdefault(_WORD.findall(name)[0], []).append((name, names[name]))
    return index


def find_statements(text: str) -> list[str]:
    """The codes whose code, name or alias stands in ``text``, in order and without repeats.

    Longer names win: "complete left bundle branch block" is CLBBB only. Codes that are also
    everyday words (``PACE``, ``EL``, …) count in capitals only.
    """
    # letter by letter, since some capitals have a longer small form and would shift what follows
    small = "".join(char.lower() if len(char.lower()) == 1 else char for char in text)
    found: dict[str, None] = {}
    end = 0
    for word in _WORD.finditer(small):
        start = word.start()
        if start < end:
            continue
        for name, code in _names_by_first_word().get(word.group(0), ()):
            stop = start + len(name)
            if not small.startswith(name, start) or _WORD.match(small, stop):
                continue
            if name.upper() in _CASE_BOUND and not text[start:stop].isupper():
                continue
            found[code] = None
            end = stop
            break
    return list(found)
