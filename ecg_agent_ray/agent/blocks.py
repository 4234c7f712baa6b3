"""Keys and values in blocks of a shared pool, as OpenVINO's paged attention reads them.

A sequence is a list of blocks and a length, so tokens are taken back without touching memory, and
several sequences go through one forward. The pool grows by copying, when no block is free.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

__all__ = ["BlockPool", "BlockSequence"]

_FIRST_BLOCKS = 32


class BlockPool:
    """The blocks of all layers.

    Growing and copying are for whoever holds the lock that forwards run under; giving back is for
    anyone, garbage collection included.

    Parameters
    ----------
    compiled
        A compiled model with inputs ``key_cache.N`` and ``value_cache.N`` of shape
        (blocks, heads, tokens of a block, width).
    """

    def __init__(self, compiled: Any) -> None:
        ports = [port for port in compiled.inputs if "_cache." in port.get_any_name()]
        self._forms = {
            port.get_any_name(): (
                port.get_element_type(),
                [size.get_length() for size in list(port.get_partial_shape())[1:]],
            )
            for port in ports
        }
        values = next(shape for name, (_, shape) in self._forms.items() if "value" in name)
        self.block_tokens = int(values[1])
        self.tensors: dict[str, Any] = {}
        self._free: deque[int] = deque()
        self._grow(_FIRST_BLOCKS)

    @property
    def n_blocks(self) -> int:
        """Blocks held, free or not."""
        return int(next(iter(self.tensors.values())).shape[0])

    @property
    def n_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """``count`` blocks of one's own."""
        if count > len(self._free):
            self._grow(max(2 * self.n_blocks, self.n_blocks + count))
        return [self._free.popleft() for _ in range(count)]

    def give(self, blocks: Iterable[int]) -> None:
        """Blocks that nobody reads any longer."""
        self._free.extend(blocks)

    def copy(self, source: list[int], target: list[int]) -> None:
        """Write what ``source`` holds into ``target``, in every layer."""
        for tensor in self.tensors.values():
            tensor.data[target] = tensor.data[source]

    def _grow(self, size: int) -> None:
        import openvino

        held = self.n_blocks if self.tensors else 0
        tensors = {}
        for name, (kind, shape) in self._forms.items():
            grown = openvino.Tensor(kind, openvino.Shape([size, *shape]))
            if held:
                grown.data[:held] = self.tensors[name].data
            tensors[name] = grown
        # all at once: where memory ends half way, the pool is as it was
        self.tensors.update(tensors)
        self._free.extend(range(held, size))


class BlockSequence:
    """Keys and values of one token sequence; its blocks go back to the pool with it."""

    can_crop = True

    def __init__(self, pool: BlockPool, lock: Any) -> None:
        self._pool, self._lock = pool, lock
        self.blocks: list[int] = []
        self.length = 0
        weakref.finalize(self, pool.give, self.blocks).atexit = False

    def reserve(self, new: int) -> None:
        """Take blocks for ``new`` more tokens; the lock is held by the caller."""
        missing = -(-(self.length + new) // self._pool.block_tokens) - len(self.blocks)
        self.blocks += self._pool.take(max(0, missing))

    def crop(self, max_length: int, /) -> None:
        """A negative ``max_length`` takes back so many of the last tokens."""
        self.length += max_length
        needed = -(-self.length // self._pool.block_tokens)
        surplus = self.blocks[needed:]
        del self.blocks[needed:]
        self._pool.give(surplus)

    def branch(self, length: int) -> BlockSequence:
        """A sequence of its own with the first ``length`` tokens."""
        other = BlockSequence(self._pool, self._lock)
        with self._lock:
            other.reserve(length)
            self._pool.copy(self.blocks[: len(other.blocks)], other.blocks)
        other.length = length
        return other
