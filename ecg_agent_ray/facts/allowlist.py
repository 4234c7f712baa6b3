"""The words that a strict agent may write outside slots.

One list, in parts by where a word may stand:

``grammar``    anywhere: grammar words, thanks, asking and saying
``frame``      beside slots: verbs of reporting, the recording, the tools, whose ECG it is
``usual``      in a clause that quotes a usual range
``courteous``  in sentences without slots: greetings, empathy, turns of talk, farewells
``question``   in questions without slots, which assert nothing

No part has a word that is medical, judges, compares, reasons, reassures, negates or counts, no
modal verb outside ``I can`` and its like, and no order to do something: with any of these a
sentence could say what the tools did not. Words joined by hyphens stand for the phrase and count
only as such. The list was made from the words of the written dialogues and reviewed one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources

__all__ = ["PARTS", "allowed", "phrases", "words_of"]

PARTS = ("grammar", "frame", "usual", "courteous", "question")


@cache
def _lists() -> Mapping[str, frozenset[str]]:
    path = resources.files("ecg_agent_ray") / "_data" / "facts" / "allowlist.txt"
    parts: dict[str, set[str]] = {}
    part = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            part = line.strip("[]")
            parts[part] = set()
        else:
            parts[part] |= set(line.split())
    return {name: frozenset(words) for name, words in parts.items()}


@cache
def allowed(*parts: str) -> frozenset[str]:
    """Single words in small letters of these parts."""
    return frozenset(w for part in parts for w in _lists()[part] if "-" not in w)


@cache
def phrases(*parts: str) -> tuple[tuple[str, ...], ...]:
    """Phrases of these parts as tuples of words, longest first."""
    found = {tuple(w.split("-")) for part in parts for w in _lists()[part] if "-" in w}
    return tuple(sorted(found, key=len, reverse=True))


@cache
def words_of(*parts: str) -> tuple[str, ...]:
    """Words and phrases (with blanks) of these parts, for the grammar."""
    return tuple(sorted(allowed(*parts) | {" ".join(phrase) for phrase in phrases(*parts)}))
