"""Advice to seek care at once when a user's words sound like an emergency and the answer has none.

A list of wordings, not a diagnosis: it errs towards giving the advice. Symptoms named are those for
which the AHA's public guidance says to call for an ambulance (chest discomfort, breathlessness,
fainting, spreading pain).
"""

from __future__ import annotations

import re

__all__ = ["EMERGENCY_ADVICE", "advises_urgent_care", "sounds_like_emergency"]

EMERGENCY_ADVICE = (
    "If you have these symptoms now, please seek emergency care at once: call your local emergency "
    "number. An ECG tool cannot rule out an emergency."
)

_CHEST = r"(?:chest|heart)\s+(?:pain|pains|pressure|tightness|discomfort|hurts?)|pain in my chest"
_ALARM = (
    r"faint\w*|pass(?:ed|ing)? out|syncope|black(?:ed|ing)? out|collaps\w+|short(?:ness)? of breath"
    r"|breathless|can(?:'t|not) breathe|sweat\w*|left arm|my arm|jaw|vomit\w*|nausea|dizzy"
    r"|dizziness|crushing|severe|right now|spreading|radiat\w+"
)
_RED_FLAGS = (
    re.compile(rf"(?:{_CHEST}).*\b(?:{_ALARM})|\b(?:{_ALARM})\b.*(?:{_CHEST})", re.I | re.S),
    re.compile(
        r"\b(?:am i|i am|i'm|i think i(?:'m| am)?|is this|could this be|might be|maybe)\b"
        r"[^.?!]{0,30}\bheart attack",
        re.I,
    ),
    re.compile(r"\b(?:having|have)\s+a\s+(?:heart attack|stroke)\b", re.I),
    re.compile(r"\bcan(?:'t|not) breathe\b|\bi(?:'m| am) (?:dying|collapsing)\b", re.I),
    re.compile(r"\bi (?:just |have )?(?:fainted|passed out|collapsed|blacked out)\b", re.I),
    re.compile(r"\bcrushing\b[^.?!]{0,20}\b(?:chest|pain)\b", re.I),
)
_DENIED = re.compile(
    rf"\b(?:no|not|without|never|don't have|do not have)\b[^.?!,;]{{0,20}}(?:{_CHEST})", re.I
)
_ADVICE = re.compile(
    r"\bemergency (?:care|services?|department|room|number|help)\b|\bambulance\b"
    r"|\b(?:911|112|999)\b|\b(?:urgent|immediate) (?:care|medical|help|attention)\b"
    r"|\bcare (?:at once|right away|immediately|now)\b",
    re.I,
)


def sounds_like_emergency(user_text: str) -> bool:
    """Whether the user describes what should not wait for an answer about an ECG."""
    said = _DENIED.sub(" ", user_text)
    return any(flag.search(said) for flag in _RED_FLAGS)


def advises_urgent_care(answer: str) -> bool:
    """Whether the answer already sends the user to urgent care."""
    return _ADVICE.search(answer) is not None
