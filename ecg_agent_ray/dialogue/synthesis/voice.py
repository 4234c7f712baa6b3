"""How a user types: one manner per dialogue, from neat to careless."""

from __future__ import annotations

import random
import re

__all__ = ["MANNERS", "neat", "type_like"]

MANNERS = {"neat": 0.5, "plain": 0.2, "casual": 0.18, "hasty": 0.12}
"""Manner -> share. ``plain`` drops the last mark, ``casual`` is small letters and chat words,
``hasty`` has typing errors."""

_CHAT = {
    "you": "u", "are": "r", "please": "plz", "your": "ur", "because": "cuz", "thanks": "thx",
    "what's": "whats", "i'm": "im", "don't": "dont", "can't": "cant", "i'd": "id", "it's": "its",
    "okay": "ok", "and": "n", "tomorrow": "tmrw", "really": "rly",
    "people": "ppl", "want to": "wanna", "going to": "gonna", "do not": "dont", "about": "abt",
}  # fmt: skip
_CHAT_SHARE = 0.3
_WORD = re.compile(r"[A-Za-z]{5,}")
_SENTENCE = re.compile(r"(^|[.!?]\s+)([a-z])")


def neat(text: str) -> str:
    """Capital letters at sentence starts and for "I"."""
    text = _SENTENCE.sub(lambda found: found.group(1) + found.group(2).upper(), text)
    return re.sub(r"\bi\b(?=[ ']|$)", "I", text)


def type_like(text: str, manner: str, rng: random.Random) -> str:
    """``text`` as somebody of this manner would type it; numbers are never touched."""
    if manner == "casual":
        return _casual(text, rng)
    text = neat(text)
    if manner == "plain":
        return text.rstrip("?.!") or text
    if manner == "hasty":
        text = _typing_error(text, rng)
        if rng.random() < 0.4:
            text = _typing_error(text, rng)
        if rng.random() < 0.5:
            text = text.lower()
        if rng.random() < 0.5:
            text = text.rstrip("?.!") or text
    return text


def _casual(text: str, rng: random.Random) -> str:
    text = text.lower()
    for word, short in _CHAT.items():
        if rng.random() < _CHAT_SHARE:
            text = re.sub(rf"\b{word}\b", short, text)
    if rng.random() < 0.7:
        text = re.sub(r"[.!?]+$", "", text)
    if rng.random() < 0.3:
        text = text.replace(",", "").replace("'", "")
    if rng.random() < 0.08:
        text = re.sub(r"\?$", rng.choice(["??", "?!", " ??"]), text)
    return text


def _typing_error(text: str, rng: random.Random) -> str:
    words = list(_WORD.finditer(text))
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    kind = rng.choice(("swap", "drop", "double"))
    if kind == "swap":
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if kind == "drop":
        return text[:at] + text[at + 1 :]
    return text[:at] + text[at] + text[at:]
