"""Losses straight from the last hidden states: no logits are kept, and none outside targets made.

With a vocabulary of 152 thousand, a row's logits, their log-probabilities and the gradients of both
are gigabytes. The head here works through a few targets at a time and keeps the gradient with
respect to the hidden states alone, since the head's own weights are frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ecg_agent_ray.training.llm_config import CHUNK

__all__ = ["TargetHead", "install_target_head", "scoring"]


class TargetHead(nn.Linear):
    """A frozen output layer that gives the targets' losses in place of logits while scoring.

    ``hits`` then says of each target whether its token was the likeliest. After :meth:`restrict`
    losses are those of a softmax over a part of the vocabulary; logits stay whole.
    """

    labels: Tensor | None = None
    hits: Tensor | None = None
    _place: Tensor | None = None
    _part: Tensor | None = None

    def restrict(self, tokens: Iterable[int]) -> int:
        """Score over these tokens alone from now on, which have to hold every label; their number.

        Losses are then lower than those over all tokens by what the model gives the others.
        """
        kept = torch.tensor(sorted(set(tokens)), device=self.weight.device)
        self._place = torch.full((self.out_features,), -1, device=self.weight.device)
        self._place[kept] = torch.arange(len(kept), device=self.weight.device)
        self._part = self.weight.detach()[kept].contiguous()
        return len(kept)

    def forward(self, input: Tensor) -> Tensor:
        """Logits (…, vocabulary), or (1, targets) losses of the (1, targets, hidden) states."""
        if self.labels is None:
            return super().forward(input)
        weight, labels = self.weight, self.labels
        if self._part is not None and self._place is not None:
            weight, labels = self._part, self._place[labels]
        losses, self.hits = _TargetLosses.apply(input[0], weight, labels)
        return losses.unsqueeze(0)


class _TargetLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        hits = torch.empty(len(labels), dtype=torch.bool, device=hidden.device)
        keep = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if keep else None
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            own = labels[part].unsqueeze(1)
            logits = (hidden[part] @ weight.t()).float()
            at_label = logits.gather(1, own)
            top = logits.amax(1, keepdim=True)
            hits[part] = (at_label >= top).squeeze(1)
            total = logits.sub_(top).exp_().sum(1, keepdim=True)
            losses[part] = (total.log() + top - at_label).squeeze(1)
            if gradient is not None:
                # the gradient of logsumexp minus the label's logit, through the head
                shares = (logits.to(weight.dtype) @ weight).div_(total.to(weight.dtype))
                gradient[part] = shares.sub_(weight[labels[part]])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(hits)
        return losses, hits

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].unsqueeze(1).to(gradient.dtype), None, None


def install_target_head(model: Any) -> bool:
    """Put a :class:`TargetHead` in place of ``model``'s output layer, where that is exact.

    Exact is a model whose logits are its output layer's, unchanged; a few tokens are tried. Returns
    whether it was done.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    ids = torch.arange(4, device=head.weight.device).unsqueeze(0)
    with torch.no_grad():
        plain = model(input_ids=ids, use_cache=False).logits
        ours = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if plain.shape != ours.shape or not torch.allclose(plain, ours, rtol=1e-3, atol=1e-3):
        return False
    replacement = TargetHead(head.in_features, head.out_features, bias=False, device="meta")
    replacement.weight = head.weight
    replacement.weight.requires_grad_(False)
    model.set_output_embeddings(replacement)
    return True


@contextlib.contextmanager
def scoring(head: TargetHead, labels: Tensor) -> Iterator[None]:
    """Within it, ``head`` scores ``labels`` instead of giving logits."""
    head.labels = labels
    try:
        yield
    finally:
        head.labels = None
