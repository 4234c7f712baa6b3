"""Keys and values kept between generations, found again by their longest common token prefix.

A dialogue's next prompt begins with its last one, so only what is new is encoded. The store is
bounded, least recently used goes first. In low precision a reused prefix can differ in the last
bit from one encoded in a single pass, because matrix shapes differ; so may greedy output.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

__all__ = ["GrowingLayer", "KeyValues", "PrefixCache", "new_cache"]

_GROWTH = 256
"""Positions by which a layer's buffers grow: a copy every 256 tokens instead of at each."""

_OWN_TAIL = 384
"""A stored sequence whose tail past the shared prefix is longer belongs to another dialogue, and is
copied from rather than cut short. An answer and a question fit below it."""


class KeyValues(Protocol):
    """Keys and values of one token sequence, of whatever engine."""

    @property
    def can_crop(self) -> bool:
        """Whether the last tokens can be taken back."""
        ...

    def crop(self, max_length: int, /) -> None:
        """A negative ``max_length`` takes back so many of the last tokens."""
        ...

    def branch(self, length: int) -> KeyValues | None:
        """A copy of the first ``length`` tokens, which shares no memory; None if there is none."""
        ...


class GrowingLayer(DynamicLayer):
    """A dynamic layer in buffers with room to spare, so that one token does not copy all others."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        batch, heads, _, key_width = key_states.shape
        self._key_buffer = key_states.new_empty((batch, heads, 0, key_width))
        self._value_buffer = value_states.new_empty((batch, heads, 0, value_states.shape[-1]))
        self.keys, self.values = self._key_buffer, self._value_buffer

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if end > self._key_buffer.shape[-2]:
            self._key_buffer = _grown(self._key_buffer, begin, end)
            self._value_buffer = _grown(self._value_buffer, begin, end)
        self._key_buffer[:, :, begin:end] = key_states
        self._value_buffer[:, :, begin:end] = value_states
        self.keys = self._key_buffer[:, :, :end]
        self.values = self._value_buffer[:, :, :end]
        return self.keys, self.values

    def copy_of_first(self, length: int) -> GrowingLayer:
        """A new layer that holds the first ``length`` positions and shares no memory."""
        layer = GrowingLayer()
        layer.update(self._key_buffer[:, :, :length], self._value_buffer[:, :, :length])
        return layer


def _grown(buffer: torch.Tensor, used: int, needed: int) -> torch.Tensor:
    batch, heads, _, width = buffer.shape
    grown = buffer.new_empty((batch, heads, -(-needed // _GROWTH) * _GROWTH + _GROWTH, width))
    grown[:, :, :used] = buffer[:, :, :used]
    return grown


class _GrowingCache(Cache):
    """Growing layers, all of one length."""

    can_crop = True

    def branch(self, length: int) -> KeyValues | None:
        layers: list[Any] = [
            layer.copy_of_first(length) for layer in self.layers if isinstance(layer, GrowingLayer)
        ]
        return _GrowingCache(layers=layers)


class _OwnCache(DynamicCache):
    """Layers of the model's own kinds, such as sliding windows."""

    @property
    def can_crop(self) -> bool:
        return all(layer.is_croppable for layer in self.layers)

    def branch(self, length: int) -> KeyValues | None:
        return None


def new_cache(config: Any) -> Any:
    """An empty cache: growing layers, or the model's own kinds where it needs others."""
    cache = _OwnCache(config=config)
    if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers):
        return _GrowingCache(layers=[GrowingLayer() for _ in cache.layers])
    return cache


class PrefixCache:
    """Bounded store of token sequences with their keys and values. Thread-safe.

    Parameters
    ----------
    make
        Gives an empty cache.
    entries
        How many sequences are kept.
    max_tokens
        Bound on the tokens of all kept sequences together.
    """

    def __init__(
        self, make: Callable[[], KeyValues], *, entries: int = 8, max_tokens: int = 32_768
    ) -> None:
        self._make = make
        self._entries = entries
        self._max_tokens = max_tokens
        self._store: OrderedDict[int, tuple[list[int], KeyValues]] = OrderedDict()
        self._names = count()
        self._lock = threading.Lock()

    def take(self, tokens: Sequence[int]) -> tuple[KeyValues, int]:
        """A cache for the caller alone and how many of ``tokens`` it already holds.

        At least the last token is left to encode, since its output is what generation starts from.
        """
        with self._lock:
            best, shared = None, 0
            for name, (stored, _) in self._store.items():
                length = min(_common_prefix(stored, tokens), len(tokens) - 1)
                if length > shared:
                    best, shared = name, length
            if best is None:
                return self._make(), 0
            stored, cache = self._store[best]
            surplus = len(stored) - shared
            if surplus > _OWN_TAIL and (branch := cache.branch(shared)) is not None:
                self._store.move_to_end(best)
                return branch, shared
            if surplus and not cache.can_crop:
                return self._make(), 0
            del self._store[best]
            if surplus:
                cache.crop(-surplus)
            return cache, shared

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether a stored sequence begins with ``tokens``."""
        with self._lock:
            return any(
                _common_prefix(stored, tokens) == len(tokens) for stored, _ in self._store.values()
            )

    def put(self, tokens: Sequence[int], cache: KeyValues) -> None:
        """Keep ``cache``, which holds exactly ``tokens``."""
        if not tokens or self._entries < 1:
            return
        with self._lock:
            self._store[next(self._names)] = (list(tokens), cache)
            while len(self._store) > 1 and (
                len(self._store) > self._entries
                or sum(len(stored) for stored, _ in self._store.values()) > self._max_tokens
            ):
                self._store.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._store.clear()

    def __len__(self) -> int:
        return len(self._store)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    length = min(len(one), len(other))
    for position in range(length):
        if one[position] != other[position]:
            return position
    return length
