"""Filled text back to slots: what a client sends as history is read by a strict model as it writes.

:func:`slotify` undoes :func:`~ecg_agent_ray.facts.slots.fill` as far as the facts at hand allow:
the longest known wording wins, and of two quantities with the same value the one named last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ecg_agent_ray.facts.knowledge import knowledge
from ecg_agent_ray.facts.quantities import ALL_QUANTITIES, QUANTITIES
from ecg_agent_ray.facts.sheet import FactSheet
from ecg_agent_ray.facts.slots import SLOT, fill, offered

__all__ = ["slotify", "uncurated"]

_PLAIN_WORDS = ("quality", "regularity")
"""Slots whose text is an everyday word: "good" is seldom said of the signal."""
_REPEATED = ("usual", "meaning", "name", "percent", "rating")


def slotify(text: str, sheet: FactSheet, *, numbers: Sequence[str] = ()) -> str:
    """``text`` with the wordings that slots of this sheet have replaced by those slots.

    ``numbers`` are those that the user named, for comparisons. Text that already holds slots was
    written by a strict model and stays as it is.
    """
    if SLOT.search(text):
        return text
    for pattern, slot in _curated(text):
        text = pattern.sub(lambda _, slot=slot: slot, text)  # type: ignore[misc]
    wordings = []
    for slot in offered(sheet, numbers=numbers):
        words = None if slot in _PLAIN_WORDS else fill(slot, sheet)
        if words and (len(words) > 3 or words[-1] in "%°"):
            wordings.append((words, slot))
    # a value's own slot before slots that merely share its words
    wordings.sort(key=lambda item: (-len(item[0]), _rank(item[1])))
    for words, slot in wordings:
        text = _replaced(text, words, slot, sheet)
    return text


def uncurated(text: str) -> str:
    """``text`` without the sentences that quote the knowledge base."""
    for pattern, _ in _curated(text):
        text = pattern.sub("", text)
    return text


def _rank(slot: str) -> int:
    head, _, part = slot.partition(".")
    if head in QUANTITIES:
        return 0 if not part else 1
    return 3 if part.rpartition(".")[2] in _REPEATED else 2


def _curated(text: str) -> list[tuple[re.Pattern[str], str]]:
    """Entries quoted in ``text``, longest wording first."""
    lower = text.lower()
    found = []
    for entry in knowledge().values():
        for words in entry.texts.values():
            bare = words.removesuffix(".")
            if bare.lower() in lower:
                found.append((bare, entry.id))
    found.sort(key=lambda item: -len(item[0]))
    return [
        (re.compile(re.escape(words), re.IGNORECASE), f"{{know.{id_}}}") for words, id_ in found
    ]


def _replaced(text: str, words: str, slot: str, sheet: FactSheet) -> str:
    pattern = re.compile(rf"(?<![\w{{.]){re.escape(words)}(?![\w}}])(?![^{{}}]*\}})", re.IGNORECASE)
    head = slot.partition(".")[0]
    if head not in ALL_QUANTITIES:
        return pattern.sub(f"{{{slot}}}", text)
    rivals = [
        key
        for key in ALL_QUANTITIES
        if key != head and fill(slot.replace(head, key, 1), sheet) == words
    ]

    def choose(found: re.Match[str]) -> str:
        before = text[: found.start()].lower()
        named = {key: _last_named(before, key) for key in (head, *rivals)}
        return f"{{{slot}}}" if named[head] >= max(named.values()) else found.group(0)

    return pattern.sub(choose, text)


def _last_named(text: str, key: str) -> int:
    """Where ``text`` last names the quantity, by word or slot; -1 if nowhere."""
    places = [m.end() for m in re.finditer(rf"\{{{key}[}}.]", text)]
    for name in ALL_QUANTITIES[key].words:
        places += [m.end() for m in re.finditer(rf"\b{re.escape(name)}\b", text)]
    return max(places, default=-1)
