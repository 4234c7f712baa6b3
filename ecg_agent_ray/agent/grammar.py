r"""The grammar of one assistant message, for xgrammar.

``Action: `` one of the offered actions, ``\nThought: `` one line, then for an answer
``\nContent: `` text. A tool turn ends at the line break after its thought: what follows it
(``Tool_Output:``) is the tool's to write. Whatever the model, a message that keeps to this grammar
is read by :func:`ecg_agent_ray.dialogue.parse_turn`.
"""

from __future__ import annotations

import json

from ecg_agent_ray.agent.engine import GenerationRequest
from ecg_agent_ray.errors import ConfigError

__all__ = ["CONTENT_MARKER", "message_grammar"]

CONTENT_MARKER = "\nContent: "

# Positive ranges: a negated class also lets through bytes that are no Unicode, such as surrogates.
# The first character of a field is visible, so that stripping the field never empties it.
_LETTERS = r"\u0100-\u167f\u1681-\u1fff\u2010-\u2027\u2030-\u205e\u2070-\u2fff"
_LATER = r"\u3001-\ud7ff\ue000-\ufdcf\ufdf0-\ufefe\uff00-\uffef\U00010000-\U0001fffd"
_WIDE = rf"\xa1-\xff{_LETTERS}{_LATER}"
_VISIBLE = rf"\x21-\x7e{_WIDE}"
_VISIBLE_NO_DIGIT = rf"\x21-\x2f\x3a-\x7e{_WIDE}"

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
content_rest ::= content_char*
content_char ::= [\n\x20{_VISIBLE}]
"""


def _content_rules(numbers: tuple[str, ...] | None) -> str:
    if numbers is None:
        return _FREE_CONTENT
    other = rf"[\x20{_VISIBLE_NO_DIGIT}]"
    opening = rf"[{_VISIBLE_NO_DIGIT}]"
    # a numeral is followed by something that is none, so that 72 and 5 do not join to 725
    numeral = " | ".join(json.dumps(number) for number in numbers)
    if not numeral:
        return f"content ::= {opening} {other}*\ncontent_rest ::= {other}*\n"
    return (
        f"content ::= {opening} content_rest\n"
        f"content_rest ::= ({other} | numeral {other})* numeral?\n"
        f"numeral ::= {numeral}\n"
    )


def message_grammar(request: GenerationRequest, *, with_prefix: bool = True) -> str:
    """EBNF of the message; one with ``request.prefix`` begins with it, or after it.

    Raises :class:`ConfigError` where no action is offered or the prefix ends before the content.
    """
    rules = _FIELDS + _content_rules(request.numbers)
    if request.prefix:
        if CONTENT_MARKER not in request.prefix:
            raise ConfigError("a prefix has to reach into the content of the message")
        begun = bool(request.prefix.split(CONTENT_MARKER, 1)[1].strip())
        rest = "content_rest" if begun else "content"
        literal = f"{json.dumps(request.prefix, ensure_ascii=False)} " if with_prefix else ""
        return rules + f"root ::= {literal}{rest}\n"
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
