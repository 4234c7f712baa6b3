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

_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
# the first character of a field is visible, so that stripping it never empties it
_INVISIBLE = _CONTROL + r"\x20\xa0\u1680\u2000-\u200f\u202f\u205f-\u206f\u3000\ufeff"

# A thought may not start with the name of the next field; see render_turn.
_FIELDS = rf"""
first ::= [^{_INVISIBLE}]
char ::= [^{_CONTROL}]
thought ::= thought_start char*
thought_start ::= [^CT{_INVISIBLE}] | "C" [^o{_CONTROL}] | "Co" [^n{_CONTROL}] | "T" [^o{_CONTROL}] | "To" [^o{_CONTROL}]
"""  # noqa: E501

_FREE_CONTENT = r"""
content ::= first content_char*
content_rest ::= content_char*
content_char ::= [^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]
"""


def _content_rules(numbers: tuple[str, ...] | None) -> str:
    if numbers is None:
        return _FREE_CONTENT
    other = rf"[^0-9\x00-\x1f\x7f-\x9f\u2028\u2029]"  # noqa: F541
    opening = rf"[^0-9{_INVISIBLE}]"
    # a numeral is followed by something that is none, so that 72 and 5 do not join to 725
    numeral = " | ".join(json.dumps(number) for number in numbers)
    if not numeral:
        return f"content ::= {opening} {other}*\ncontent_rest ::= {other}*\n"
    return (
        f"content ::= {opening} content_rest\n"
        f"content_rest ::= ({other} | numeral {other})* numeral?\n"
        f"numeral ::= {numeral}\n"
    )


def message_grammar(request: GenerationRequest) -> str:
    """EBNF of the message, or of its rest when ``request.prefix`` says how it begins.

    Raises :class:`ConfigError` where no action is offered or the prefix ends before the content.
    """
    rules = _FIELDS + _content_rules(request.numbers)
    if request.prefix:
        if CONTENT_MARKER not in request.prefix:
            raise ConfigError("a prefix has to reach into the content of the message")
        begun = bool(request.prefix.split(CONTENT_MARKER, 1)[1].strip())
        rest = "content_rest" if begun else "content"
        return rules + f"root ::= {json.dumps(request.prefix)} {rest}\n"
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
