r"""The grammar of one assistant message, for xgrammar.

``Action: `` one of the offered actions, ``\nThought: `` one line, then for an answer
``\nContent: `` text. A tool turn ends at the line break after its thought: what follows it
(``Tool_Output:``) is the tool's to write. Whatever the model, a message that keeps to this grammar
is read by :func:`ecg_agent_ray.dialogue.parse_turn`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache

from ecg_agent_ray.agent.engine import GenerationRequest
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.facts import parse_slot
from ecg_agent_ray.facts.allowlist import words_of

__all__ = ["CONTENT_MARKER", "message_grammar"]

CONTENT_MARKER = "\nContent: "

# Positive ranges: a negated class also lets through bytes that are no Unicode, such as surrogates.
# The first character of a field is visible, so that stripping the field never empties it.
_LETTERS = r"\u0100-\u167f\u1681-\u1fff\u2010-\u2027\u2030-\u205e\u2070-\u2fff"
_LATER = r"\u3001-\ud7ff\ue000-\ufdcf\ufdf0-\ufefe\uff00-\uffef\U00010000-\U0001fffd"
_WIDE = rf"\xa1-\xff{_LETTERS}{_LATER}"
_VISIBLE = rf"\x21-\x7e{_WIDE}"
_MOST_SENTENCES = 3
_MOST_WORDS = 24
"""A weak model that goes round would else fill its budget with what nobody reads."""
_ABBREVIATIONS = {
    "pr": "PR", "pq": "PQ", "qrs": "QRS", "qtc": "QTc", "qt": "QT", "hr": "HR", "rr": "RR",
    "p": "P", "ecg": "ECG", "ekg": "EKG", "i": "I",
}  # fmt: skip

# A thought may not start with the name of the next field; see render_turn.
_FIELDS = rf"""
first ::= [{_VISIBLE}]
char ::= [\x20{_VISIBLE}]
thought ::= thought_start char*
thought_start ::= [\x21-\x42\x44-\x53\x55-\x7e{_WIDE}] | "C" not_o | "Co" not_n | "T" not_o | "To" not_o
not_o ::= [\x20-\x6e\x70-\x7e]
not_n ::= [\x20-\x6d\x6f-\x7e]
"""  # noqa: E501

_FREE_CONTENT = rf"""
content ::= first content_char*
content_char ::= [\n\x20{_VISIBLE}]
"""


def _content_rules(slots: tuple[str, ...] | None) -> str:
    return _FREE_CONTENT if slots is None else _strict_content(slots)


@lru_cache(maxsize=256)
def _strict_content(slots: tuple[str, ...]) -> str:
    """The three kinds of sentences; see :mod:`ecg_agent_ray.facts.guard`."""
    named = [parsed for slot in slots if (parsed := parse_slot(slot))]
    names = {
        word for slot in named if slot.quantity is not None for word in slot.quantity.words[:3]
    }
    names |= {"rhythm"} if any(slot.head in ("check", "finding") for slot in named) else set()
    beside = _choice(_spelled([*words_of("grammar", "frame", "usual"), *names]))
    alone = _choice(_spelled(words_of("grammar", "courteous")))
    asking = _choice(_spelled(words_of("grammar", "frame", "courteous", "question")))
    # a choice of nothing is no rule: "{}" is not a slot either, and the guard leaves it out
    offered = _choice([f"{{{slot}}}" for slot in slots] or ["{}"])
    return f"""
content ::= sentence (" " sentence){{0,{_MOST_SENTENCES - 1}}}
sentence ::= told | said | asked
told ::= (beside sep)* slot (sep (beside | slot)){{0,{_MOST_WORDS}}} [.!]
said ::= alone (sep alone){{0,{_MOST_WORDS}}} [.!]
asked ::= asking (sep asking){{0,{_MOST_WORDS}}} "?"
sep ::= " " | ", " | ": " | "; "
beside ::= {beside}
alone ::= {alone}
asking ::= {asking}
slot ::= {offered}
"""


def _choice(texts: Iterable[str]) -> str:
    return " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _spelled(words: Iterable[str]) -> list[str]:
    """Each word in small letters, with a capital, and as its abbreviation is written."""
    spelled: dict[str, None] = {}
    for word in words:
        for known, written in _ABBREVIATIONS.items():
            word = re.sub(rf"\b{known}\b", written, word)
        spelled[word] = None
        spelled[word[:1].upper() + word[1:]] = None
    return list(spelled)


def message_grammar(request: GenerationRequest) -> str:
    """EBNF of the message; raises :class:`ConfigError` where no action is offered."""
    rules = _FIELDS + _content_rules(request.slots)
    calls = [action for action in request.actions if action.is_tool_call]
    answers = [action for action in request.actions if not action.is_tool_call]
    branches = []
    if calls:
        names = " | ".join(json.dumps(str(action)) for action in calls)
        branches.append(rf'"Action: " ({names}) "\nThought: " thought "\n"')
    if answers:
        names = " | ".join(json.dumps(str(action)) for action in answers)
        branches.append(rf'"Action: " ({names}) "\nThought: " thought "\nContent: " content')
    if not branches:
        raise ConfigError("no action is offered to the model")
    return rules + "root ::= " + " | ".join(branches) + "\n"
