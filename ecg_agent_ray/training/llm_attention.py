"""Attention over packed rows piece by piece, without a mask over the whole row.

A mask that keeps a row's dialogues apart has a row's length squared entries, and torch's CPU kernel
computes the masked ones too. Here each piece of a row is one call: itself causally, and before that
the system message it shares. Registered with transformers under :data:`PACKED`.

Does not cover: sliding windows, key/value caches, attention sinks, batches of more than one row.
"""

from __future__ import annotations

from typing import Any

from ecg_agent_ray.training.packing import Pack

__all__ = ["PACKED", "register_packed_attention", "spans_of", "takes_spans"]

PACKED = "ecg_agent_packed"
"""The ``attn_implementation`` of a model whose forward passes take ``spans``."""


def register_packed_attention() -> str:
    """Make :data:`PACKED` known to transformers; its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, _attention)
    return PACKED


def takes_spans(model: Any) -> bool:
    """Whether ``model`` was loaded with the attention of this module."""
    return getattr(model.config, "_attn_implementation", None) == PACKED


def spans_of(pack: Pack, device: Any) -> list[tuple[int, int, int, int, Any]]:
    """For each piece its first and last row index, those of what it sees, and a mask for both."""
    import torch

    spans = []
    for piece in pack.pieces:
        shared = piece.seen[1] - piece.seen[0]
        mask = None
        if shared:
            own = piece.stop - piece.start
            mask = torch.ones(own, shared + own, dtype=torch.bool, device=device).tril(shared)
        spans.append((piece.start, piece.stop, *piece.seen, mask))
    return spans


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    spans: Any = None,
    **_: Any,
) -> tuple[Any, None]:
    """As transformers calls it: (1, heads, tokens, width) in, (1, tokens, heads, width) out."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    parts = []
    for start, stop, first, last, mask in spans or [(0, query.shape[2], 0, 0, None)]:
        keys, values = key[:, :, start:stop], value[:, :, start:stop]
        if mask is not None:
            keys = torch.cat([key[:, :, first:last], keys], dim=2)
            values = torch.cat([value[:, :, first:last], values], dim=2)
        part = scaled_dot_product_attention(
            query[:, :, start:stop],
            keys,
            values,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
        )
        parts.append(part)
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None
