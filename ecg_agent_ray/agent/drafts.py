"""Guesses of the next tokens, from what was written before; the model checks them all at once.

On a CPU a forward of eight tokens takes as long as one of one token, since both read all weights
once. Answers repeat the dialogue (a tool's numbers, the question's words) and one another, so the
last three tokens often tell the next ones. A wrong guess costs nothing but its place in the batch,
and greedy output stays what the model alone would write.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

__all__ = ["DraftMemory", "PromptDrafts"]

_Key = tuple[int, ...]
_ORDER = 3
"""Tokens that a guess is looked up by."""


class DraftMemory:
    """What followed each run of three tokens in earlier answers. Bounded and thread-safe.

    Parameters
    ----------
    length
        Tokens of a guess.
    entries
        Runs remembered; the oldest go first.
    """

    def __init__(self, length: int = 7, entries: int = 50_000) -> None:
        self.length = length
        self._entries = entries
        self._next: OrderedDict[_Key, _Key] = OrderedDict()
        self._lock = threading.Lock()

    def learn(self, tokens: Sequence[int], start: int) -> None:
        """Remember ``tokens`` from position ``start`` on; what is before it is context."""
        with self._lock:
            for position in range(max(start, _ORDER), len(tokens)):
                key = tuple(tokens[position - _ORDER : position])
                self._next[key] = tuple(tokens[position : position + self.length])
                self._next.move_to_end(key)
            while len(self._next) > self._entries:
                self._next.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._next.clear()

    def guess(self, tokens: Sequence[int]) -> list[int]:
        """Likely next tokens, chained over several runs; empty if the last run is new."""
        guess: list[int] = []
        context = list(tokens[-_ORDER:])
        while len(guess) < self.length:
            found = self._next.get(tuple(context[-_ORDER:]))
            if not found:
                break
            guess += found
            context += found
        return guess[: self.length]


class PromptDrafts:
    """The same for one prompt: the words of the dialogue at hand."""

    def __init__(self, prompt: Sequence[int], length: int) -> None:
        self._tokens = prompt
        self._length = length
        self._places = {
            tuple(prompt[position - _ORDER : position]): position
            for position in range(_ORDER, len(prompt))
        }

    def guess(self, tokens: Sequence[int]) -> list[int]:
        """What followed the last run of ``tokens`` at its last place in the prompt."""
        place = self._places.get(tuple(tokens[-_ORDER:]))
        return [] if place is None else list(self._tokens[place : place + self._length])
