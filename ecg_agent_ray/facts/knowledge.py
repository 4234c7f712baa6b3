"""General knowledge that may be said: reviewed entries with sources, in three registers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

__all__ = ["NOT_IN_KNOWLEDGE", "Entry", "Level", "knowledge", "sources"]

Level = Literal["A", "B", "C"]
"""CEFR register: A very simple, B everyday, C professional."""

NOT_IN_KNOWLEDGE = "not_in_knowledge"
"""The entry that says that no other fits."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of general knowledge.

    ``questions`` are wordings that it answers, for retrieval; ``texts`` the answer by register;
    ``sources`` keys of :func:`sources`. ``urgent`` entries say what to do in an emergency; one that
    fits a question best is said whatever the model answers.
    """

    id: str
    title: str
    questions: tuple[str, ...]
    texts: Mapping[str, str]
    sources: tuple[str, ...]
    urgent: bool = False

    def text(self, level: Level) -> str:
        """The answer without its last full stop, as a slot's text."""
        return self.texts[level].removesuffix(".")


def _file(name: str) -> str:
    path = resources.files("ecg_agent_ray") / "_data" / "facts" / name
    return path.read_text(encoding="utf-8")


@cache
def knowledge() -> Mapping[str, Entry]:
    """All entries by id."""
    entries = {}
    for line in _file("knowledge.jsonl").splitlines():
        row = json.loads(line)
        entries[row["id"]] = Entry(
            row["id"],
            row["title"],
            tuple(row["questions"]),
            {level: row[level] for level in ("A", "B", "C")},
            tuple(row["sources"]),
            bool(row.get("urgent", False)),
        )
    return entries


@cache
def sources() -> Mapping[str, Mapping[str, str]]:
    """Title, publisher and year of each source, by the key that entries use."""
    return dict(json.loads(_file("sources.json")))
