"""Generation with transformers, on CPU or GPU: any causal model with a chat template, any adapter.

An adapter is merged into the weights in memory. What decoding covers is said in
:mod:`~ecg_agent_ray.agent.decoding`. Does not cover: quantised weights.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ecg_agent_ray.agent.base_model import load_base_model, load_tokenizer
from ecg_agent_ray.agent.decoding import GrammarEngine
from ecg_agent_ray.agent.packed import ForwardQueue, Request, is_packable, packed_logits
from ecg_agent_ray.agent.prefix_cache import KeyValues, new_cache
from ecg_agent_ray.errors import CheckpointError, InputError

__all__ = ["TransformersEngine", "choose_device", "choose_dtype", "declared_ends", "merged"]

_log = logging.getLogger(__name__)


def choose_device(device: str | None = None) -> str:
    """``device``, else the first GPU, else the CPU."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(device: str, dtype: str | None = None) -> tuple[str, str]:
    """A torch dtype's name and the reason for it.

    Decoding is bound by reading the weights, so bf16 halves its time wherever the hardware
    multiplies it; elsewhere a CPU emulates it, slower than fp32.
    """
    if dtype is not None:
        return dtype, "asked for"
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported():
            return "bfloat16", "the GPU has bf16"
        return "float16", "the GPU has no bf16"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
        return "bfloat16", "the CPU multiplies bf16"
    return "float32", "the CPU has no bf16 instructions"


class TransformersEngine(GrammarEngine):
    """An :class:`~ecg_agent_ray.agent.engine.Engine` over one transformers model. Thread-safe.

    Parameters
    ----------
    base_model
        Reference for :func:`~ecg_agent_ray.agent.base_model.resolve_base_model`, or a loaded model
        (then ``tokenizer`` is needed).
    adapter
        Folder of a PEFT adapter; it is merged into the weights in memory, which costs one pass
        over them at the start and nothing per token. A model of its own is changed by it.
    device, dtype
        torch names; None chooses (see :func:`choose_device`, :func:`choose_dtype`).
    cache_entries, cache_tokens
        Bounds of the store of keys and values; 0 entries turns it off.
    draft_tokens
        Tokens guessed per forward in greedy generation (see :mod:`~ecg_agent_ray.agent.drafts`);
        0 turns it off.

    Raises
    ------
    ModelNotFoundError
        The base model cannot be loaded.
    CheckpointError
        The adapter does not fit it or cannot be read.
    """

    def __init__(
        self,
        base_model: str | Path | Any,
        adapter: str | Path | None = None,
        *,
        tokenizer: Any = None,
        device: str | None = None,
        dtype: str | None = None,
        cache_entries: int = 8,
        cache_tokens: int = 32_768,
        draft_tokens: int = 7,
        drafts: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        self.device = choose_device(device)
        if isinstance(base_model, str | Path):
            reference = str(base_model)
            self.dtype, reason = choose_dtype(self.device, dtype)
            model = load_base_model(reference, dtype=self.dtype)
            tokenizer = tokenizer or load_tokenizer(reference)
            _log.info("%s on %s in %s: %s", reference, self.device, self.dtype, reason)
        else:
            reference = type(base_model).__name__
            model, self.dtype = base_model, str(base_model.dtype).removeprefix("torch.")
        if tokenizer is None:
            raise InputError("a loaded model needs its tokenizer")
        if adapter is not None:
            model = merged(model, Path(adapter))
        self.name = name or (f"{reference}+{Path(adapter).name}" if adapter else reference)
        self.model = model.to(self.device).eval()
        self._packs = is_packable(model)
        self.queue = self._forwards = ForwardQueue(self._run)
        super().__init__(
            tokenizer,
            model.config,
            vocabulary=int(model.get_output_embeddings().weight.shape[0]),
            end_ids=declared_ends(model),
            cache_entries=cache_entries,
            cache_tokens=cache_tokens,
            draft_tokens=draft_tokens,
            drafts=drafts,
        )

    def new_cache(self) -> KeyValues:
        """An empty cache of the model's kind."""
        empty: KeyValues = new_cache(self.model.config)
        return empty

    def forward(self, cache: Any, tokens: Sequence[int], keep: int = 1) -> torch.Tensor:
        """See :meth:`GrammarEngine.forward`; what several threads ask for at a time is one."""
        return self._forwards(Request(cache, tokens, keep)).clone()

    def _run(self, requests: Sequence[Request]) -> None:
        with torch.inference_mode():
            if self._packs:
                packed_logits(self.model, requests)
                return
            for request in requests:
                ids = torch.tensor([list(request.tokens)], device=self.device)
                output = self.model(
                    input_ids=ids,
                    past_key_values=request.cache,
                    use_cache=True,
                    logits_to_keep=request.keep,
                )
                request.logits = output.logits[0].float().cpu()


def declared_ends(model: Any) -> list[int | None]:
    """The tokens that the model's own configuration ends a text with."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return list(declared) if isinstance(declared, list | tuple) else [declared]


def merged(model: Any, adapter: Path) -> Any:
    """``model`` with a PEFT adapter in its weights; :class:`CheckpointError` if it cannot be."""
    from peft import PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise CheckpointError(f"{adapter} holds no adapter_config.json")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise CheckpointError(
            f"{adapter} holds no adapter_model.safetensors", hint="pickled weights are not read"
        )
    try:
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the adapter in {adapter} does not fit its base model: {first_line}"
        ) from error
