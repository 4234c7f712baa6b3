"""Guesses of the next tokens, from what was written before; the model checks them all at once.

A forward of eight tokens takes little longer than one of one token, since both read all weights
once. Answers repeat the dialogue (a tool's numbers, the question's words) and one another, so the
last tokens often tell the next ones: the longest known run of them decides. A wrong guess costs
nothing but its place in the batch, and greedy output stays what the model alone would write.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

__all__ = [
    "DRAFTS_NAME",
    "DraftMemory",
    "PromptDrafts",
    "choose_drafts",
    "read_drafts",
    "write_drafts",
]

DRAFTS_NAME = "drafts.txt"
"""File beside an agent's weights: messages as it writes them, to guess from at the start."""

_Key = tuple[int, ...]
_Words = tuple[str, ...]
_ORDERS = (8, 6, 4, 3, 2)
"""Lengths of the runs that a guess is looked up by, the longest first."""
_PROMPT_ORDERS = (4, 3, 2)
_MOST_SEEN = 20
_WORDS = 4
_NEW_SHARE = 0.12
"""Of a message's runs of four words: with fewer new ones it would add little."""


class DraftMemory:
    """What followed each run of tokens in earlier answers. Bounded and thread-safe.

    Parameters
    ----------
    length
        Tokens of a guess.
    entries
        Runs remembered; the oldest go first.
    """

    def __init__(self, length: int = 7, entries: int = 200_000) -> None:
        self.length = length
        self._entries = entries
        self._next: OrderedDict[_Key, tuple[int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def learn(self, tokens: Sequence[int], start: int) -> None:
        """Remember ``tokens`` from position ``start`` on; what is before it is context."""
        with self._lock:
            for position in range(start, len(tokens)):
                for order in _ORDERS:
                    if order <= position:
                        self._count(tuple(tokens[position - order : position]), tokens[position])
            while len(self._next) > self._entries:
                self._next.popitem(last=False)

    def _count(self, key: _Key, token: int) -> None:
        """A run keeps the token that most often followed it of late."""
        known, seen = self._next.pop(key, (token, 0))
        if known == token:
            self._next[key] = (token, min(seen + 1, _MOST_SEEN))
        else:
            self._next[key] = (known, seen - 1) if seen > 1 else (token, 1)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._next.clear()

    def after(self, run: _Key) -> int | None:
        """The token that followed ``run``."""
        found = self._next.get(run)
        return None if found is None else found[0]

    def guess(self, tokens: Sequence[int], prompt: PromptDrafts | None = None) -> list[int]:
        """Likely next tokens, each from the longest run known; empty if there is none."""
        guess: list[int] = []
        context = list(tokens[-_ORDERS[0] :])
        while len(guess) < self.length:
            token = self._next_token(context, prompt)
            if token is None:
                break
            guess.append(token)
            context.append(token)
        return guess

    def _next_token(self, context: list[int], prompt: PromptDrafts | None) -> int | None:
        for order in _ORDERS:
            run = tuple(context[-order:])
            if len(run) < order:
                continue
            if (token := self.after(run)) is not None:
                return token
            if prompt is not None and (token := prompt.after(run)) is not None:
                return token
        return None


class PromptDrafts:
    """The same for one prompt: the words of the dialogue at hand."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._next = {
            tuple(prompt[position - order : position]): prompt[position]
            for order in _PROMPT_ORDERS
            for position in range(order, len(prompt))
        }

    def after(self, run: _Key) -> int | None:
        """What followed ``run`` at its last place in the prompt."""
        return self._next.get(run)


def read_drafts(folder: Path | None) -> list[str]:
    """The messages of an agent's :data:`DRAFTS_NAME`; empty where it has none.

    A message takes a line; ``\\\\n`` in it stands for a line break.
    """
    path = None if folder is None else folder / DRAFTS_NAME
    if path is None or not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        # they save time and nothing else
        logger.warning("the first guesses in %s cannot be read: %s", path, error)
        return []
    return [line.replace("\\n", "\n") for line in lines if line]


def write_drafts(path: Path, messages: Iterable[str]) -> None:
    """Write what :func:`read_drafts` reads."""
    lines = [message.replace("\n", "\\n") for message in messages]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def choose_drafts(messages: Iterable[str], most: int) -> list[str]:
    """The most frequent messages, without those that say little new; numbers count as alike."""
    chosen: list[str] = []
    seen: set[_Words] = set()
    for message, _ in Counter(messages).most_common():
        words = re.sub(r"\d+", "0", message).replace("\n", " \n ").split(" ")
        runs = {tuple(words[i : i + _WORDS]) for i in range(max(1, len(words) - _WORDS + 1))}
        if len(runs - seen) >= max(1, _NEW_SHARE * len(runs)):
            chosen.append(message)
            seen |= runs
        if len(chosen) == most:
            break
    return chosen
