"""The model that a fine-tuning job trains, and its loss over a packed row."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ecg_agent_ray.agent.base_model import load_base_model
from ecg_agent_ray.agent.chat_format import IGNORE_INDEX, EncodedDialogue
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.llm_attention import spans_of, takes_spans
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_head import TargetHead, install_target_head, scoring
from ecg_agent_ray.training.llm_kernels import Kernels, choose_kernels
from ecg_agent_ray.training.packing import Pack

__all__ = [
    "TargetLosses",
    "build_model",
    "causal_lm",
    "decoder_of",
    "first_trained_layer",
    "restrict_vocabulary",
    "sequence_loss",
    "target_losses",
]

_LAYER = re.compile(r"\.layers\.(\d+)\.")


def build_model(config: LLMFinetuneConfig, kernels: Kernels | None = None) -> Any:
    """Base model with a new LoRA adapter, or the configured one made trainable."""
    from peft import LoraConfig, PeftModel, get_peft_model

    kernels = kernels or choose_kernels(config, gpu=False)
    base = load_base_model(config.base_model, dtype=config.dtype, **kernels.load_options())
    base.config.use_cache = False
    if kernels.liger:
        kernels.apply_liger(base)
    # partitioned (ZeRO-3) or quantised weights are only whole inside their own modules
    if config.distributed.zero_stage < 3 and config.quantize == "none":
        install_target_head(base)
    if config.gradient_checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    if config.adapter:
        return PeftModel.from_pretrained(base, config.adapter, is_trainable=True)
    layers = base.config.num_hidden_layers
    first = config.lora.first(layers)
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=list(config.lora.target_modules),
        layers_to_transform=list(range(first, layers)) if first else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora)


def causal_lm(model: Any) -> Any:
    """The transformers model inside a DeepSpeed engine and a peft wrapper."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(model: Any) -> Any:
    """The part below the output layer; it has ``layers`` and ``norm``."""
    return causal_lm(model).base_model


def first_trained_layer(model: Any) -> int:
    """Index of the lowest layer with trained weights.

    Raises :class:`ConfigError` where other weights than the layers' are trained.
    """
    found = set()
    for name, parameter in causal_lm(model).named_parameters():
        if parameter.requires_grad:
            match = _LAYER.search(f".{name}")
            if match is None:
                raise ConfigError(
                    f"cache_lower_layers: {name} is trained, which is in no layer",
                    hint="train the layers alone, or set cache_lower_layers=false",
                )
            found.add(int(match[1]))
    return min(found, default=0)


def restrict_vocabulary(model: Any, first: int, sequences: Iterable[EncodedDialogue]) -> int:
    """Score over the ``first`` tokens and all targets alone; their number.

    Raises :class:`ConfigError` where the model's logits are not its output layer's alone.
    """
    head = causal_lm(model).get_output_embeddings()
    if not isinstance(head, TargetHead):
        raise ConfigError("loss_vocabulary: this model's output layer cannot be scored in parts")
    kept = {*range(min(first, head.out_features))}
    for sequence in sequences:
        kept.update(label for label in sequence.labels if label != IGNORE_INDEX)
    return head.restrict(kept)


@dataclass(frozen=True)
class TargetLosses:
    """One entry for each of a row's targets; ``hits`` is None where no target head is."""

    losses: Any
    weights: Any
    hits: Any
    is_action: Any

    @property
    def total(self) -> Any:
        """Their weighted sum, a scalar tensor."""
        return (self.losses * self.weights).sum()

    @property
    def action_hits(self) -> tuple[int, int]:
        """Of the tokens that name actions, how many were the likeliest ones, and their number."""
        if self.hits is None:
            return 0, 0
        return int((self.hits & self.is_action).sum()), int(self.is_action.sum())


def target_losses(
    model: Any, pack: Pack, device: Any, action_weight: float = 1.0, *, states: Any = None
) -> TargetLosses:
    """Cross-entropy of each target of a row.

    Parameters
    ----------
    model
        A causal language model, within peft and DeepSpeed or without.
    pack
        The row. One with shared system messages needs the packed attention.
    action_weight
        Weight of the tokens that name an action.
    states
        The (1, tokens, hidden) output of the frozen lower layers, where those are not run; see
        :mod:`ecg_agent_ray.training.llm_lower`.

    Logits are computed at target positions only. With plain SDPA transformers builds a mask from
    the position ids, so that dialogues in a row do not see each other.
    """
    import torch
    from torch.nn.functional import cross_entropy

    inner = causal_lm(model)
    head = inner.get_output_embeddings()
    targets = pack.targets
    labels = torch.tensor([pack.labels[index] for index in targets], device=device)
    arguments: dict[str, Any] = {
        "position_ids": torch.tensor([pack.position_ids], device=device),
        "logits_to_keep": torch.tensor(pack.before(targets), device=device),
        "use_cache": False,
    }
    if states is None:
        arguments["input_ids"] = torch.tensor([pack.input_ids], device=device)
    else:
        arguments["inputs_embeds"] = states
    if takes_spans(inner):
        arguments["spans"] = spans_of(pack, device)
    hits = None
    if isinstance(head, TargetHead):
        with scoring(head, labels):
            losses = model(**arguments).logits[0]
        hits = head.hits
    else:
        losses = cross_entropy(model(**arguments).logits[0].float(), labels, reduction="none")
    is_action = torch.tensor([pack.is_action[index] for index in targets], device=device)
    weights = torch.tensor(pack.weights(action_weight), device=device)
    return TargetLosses(losses, weights, hits, is_action)


def sequence_loss(
    model: Any, pack: Pack, device: Any, action_weight: float = 1.0, *, states: Any = None
) -> Any:
    """Weighted cross-entropy summed over a pack's targets; see :func:`target_losses`."""
    return target_losses(model, pack, device, action_weight, states=states).total
