"""Forwards of several sequences in one: their new tokens side by side, each with its own cache.

Nothing is padded and no cache is copied: linear layers see one long row of tokens, attention takes
each sequence apart. The queue makes such forwards of what several threads ask for at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

__all__ = ["ForwardQueue", "Request", "is_packable", "packed_logits"]

_NAME = "ecg_agent_packed"
_LONGEST_WAIT_S = 0.1


@dataclass(eq=False)
class Request:
    """New tokens of one sequence; ``logits`` (keep, vocabulary) are filled in."""

    cache: Any
    tokens: Sequence[int]
    keep: int
    logits: torch.Tensor | None = None
    error: BaseException | None = None
    since: float = field(default_factory=time.perf_counter)

    @property
    def is_done(self) -> bool:
        return self.logits is not None or self.error is not None


class _Packed(Cache):
    """The caches of several sequences, for one forward of their new tokens."""

    def __init__(self, requests: Sequence[Request]) -> None:
        super().__init__(layers=[])
        self.parts: list[tuple[int, int, Any]] = []
        self.masks: list[torch.Tensor | None] = []
        begin = 0
        for request in requests:
            end = begin + len(request.tokens)
            self.parts.append((begin, end, request.cache))
            self.masks.append(None)
            begin = end

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.held = [
            cache.layers[layer_idx].update(
                key_states[:, :, begin:end], value_states[:, :, begin:end]
            )
            for begin, end, cache in self.parts
        ]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def mask(self, part: int, new: int, length: int, groups: int) -> torch.Tensor | None:
        """(groups * new, length): each new token sees what is before it; None for a single one."""
        if new == 1:
            return None
        known = self.masks[part]
        if known is None:
            seen = torch.ones(new, length, dtype=torch.bool).tril(length - new)
            known = self.masks[part] = seen.repeat(groups, 1)
        return known


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    packed: _Packed | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Query heads that share keys lie side by side as more queries, so that no key is copied."""
    if packed is None:
        raise ValueError("packed attention needs the packed cache")
    outputs = []
    for part, ((begin, end, _cache), (keys, values)) in enumerate(
        zip(packed.parts, packed.held, strict=True)
    ):
        heads, shared, width = query.shape[1], keys.shape[1], query.shape[3]
        new, groups = end - begin, heads // shared
        asked = query[:, :, begin:end].reshape(1, shared, groups * new, width)
        mask = packed.mask(part, new, keys.shape[2], groups)
        found = scaled_dot_product_attention(
            asked,
            keys,
            values,
            attn_mask=None if mask is None else mask.to(keys.device),
            scale=scaling,
        )
        outputs.append(found.reshape(1, heads, new, values.shape[3]))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)


def is_packable(model: Any) -> bool:
    """Whether the model's attention can be replaced: plain keys and values, no capped scores."""
    from ecg_agent_ray.agent.prefix_cache import GrowingLayer, new_cache

    config = model.config.get_text_config(decoder=True)
    plain = all(isinstance(layer, GrowingLayer) for layer in new_cache(model.config).layers)
    return bool(
        plain
        and getattr(model, "_supports_attention_backend", False)
        and not getattr(config, "attn_logit_softcapping", None)
    )


def packed_logits(model: Any, requests: Sequence[Request]) -> None:
    """Run the model once over all requests and fill in their logits; caches grow."""
    packed = _Packed(requests)
    tokens = [token for request in requests for token in request.tokens]
    positions: list[int] = []
    wanted: list[int] = []
    for request, (begin, end, _) in zip(requests, packed.parts, strict=True):
        past = request.cache.get_seq_length()
        positions += range(past, past + end - begin)
        wanted += range(end - request.keep, end)
    device = model.device
    before, model.config._attn_implementation = model.config._attn_implementation, _NAME
    try:
        output = model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=torch.tensor([positions], device=device),
            # of four dimensions, it is passed on as it is; the packed attention makes its own
            attention_mask=torch.zeros(1, 1, 1, 1, device=device),
            past_key_values=packed,
            packed=packed,
            use_cache=True,
            logits_to_keep=torch.tensor(wanted, device=device),
        )
    finally:
        model.config._attn_implementation = before
    logits = output.logits[0].float().cpu()
    begin = 0
    for request in requests:
        request.logits = logits[begin : begin + request.keep]
        begin += request.keep


class ForwardQueue:
    """Joins the forwards that several threads ask for. One of them runs each for all.

    Parameters
    ----------
    run
        Fills in the logits of some requests.
    most
        Requests in one forward.
    """

    def __init__(self, run: Callable[[Sequence[Request]], None], most: int = 16) -> None:
        self._run = run
        self._most = most
        self._waiting: list[Request] = []
        self._condition = threading.Condition()
        self._is_running = False
        self._active = 0
        self._last_s = 0.0

    def enter(self) -> None:
        """A generation begins, which will ask for forwards."""
        with self._condition:
            self._active += 1

    def leave(self) -> None:
        """A generation has ended."""
        with self._condition:
            self._active -= 1
            self._condition.notify_all()

    def __call__(self, request: Request) -> torch.Tensor:
        """Wait for the request's logits; raises what the forward raised."""
        with self._condition:
            self._waiting.append(request)
            self._condition.notify_all()
            while not request.is_done and not self._is_due(request):
                self._condition.wait(timeout=0.01)
            batch: list[Request] = []
            if not request.is_done:
                others = [other for other in self._waiting if other is not request]
                batch = [request, *others[: self._most - 1]]
                self._waiting = others[self._most - 1 :]
                self._is_running = True
        if batch:
            self._lead(batch)
        if request.error is not None:
            raise request.error
        assert request.logits is not None
        return request.logits

    def _is_due(self, request: Request) -> bool:
        """Whether to run now: all who may ask have asked, or the wait is not worth it longer."""
        if self._is_running or not self._waiting:
            return False
        patience = min(_LONGEST_WAIT_S, self._last_s / 2)
        waited = time.perf_counter() - request.since
        return len(self._waiting) >= min(self._active, self._most) or waited >= patience

    def _lead(self, batch: list[Request]) -> None:
        begun = time.perf_counter()
        error: BaseException | None = None
        try:
            self._run(batch)
        except BaseException as raised:
            error = raised
        with self._condition:
            for request in batch:
                request.error = error
            self._last_s = time.perf_counter() - begun
            self._is_running = False
            self._condition.notify_all()
