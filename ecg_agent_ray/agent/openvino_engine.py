"""The on-device engine: OpenVINO on the CPU with 8-bit weights and paged attention.

Chosen over ``openvino-genai``, whose pipelines keep the key/value cache to themselves, so that
neither text that the grammar forces nor guessed tokens can be checked in one pass; over
``llama-cpp-python``, which has no wheel; and over engines that need a conversion by another
package. Grammar, prefix cache and guesses are those of every local engine.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecg_agent_ray.agent.base_model import load_tokenizer, resolve_base_model
from ecg_agent_ray.agent.blocks import BlockPool, BlockSequence
from ecg_agent_ray.agent.decoding import GrammarEngine
from ecg_agent_ray.agent.openvino_model import exported, paged, require_openvino
from ecg_agent_ray.agent.packed import ForwardQueue, Request
from ecg_agent_ray.agent.prefix_cache import KeyValues
from ecg_agent_ray.errors import ConfigError

__all__ = ["OpenVINOEngine"]

_PRECISION = {"float32": "f32", "bfloat16": "bf16"}


def _scale_group(config: Any) -> int:
    """Values of an activation that share a scale when it is made 8-bit.

    Wider groups take less time (of 128 a tenth less than of 64, next tokens as often those of fp32)
    but have to divide every matrix's width.
    """
    text = config.get_text_config(decoder=True)
    widths = math.gcd(text.hidden_size, text.intermediate_size)
    return next((size for size in (128, 64) if widths % size == 0), 32)


class OpenVINOEngine(GrammarEngine):
    """An :class:`~ecg_agent_ray.agent.engine.Engine` on OpenVINO. Thread-safe.

    Parameters
    ----------
    base_model
        Reference for :func:`~ecg_agent_ray.agent.base_model.resolve_base_model`.
    adapter
        Folder of a PEFT adapter, merged before quantisation.
    dtype
        ``"float32"`` or ``"bfloat16"``, in which is calculated; None takes float32. Weights and
        what they are multiplied with have eight bits then; in bf16 weights are widened first,
        which took longer for up to eight tokens on a CPU with AMX.
    threads
        None takes as many as torch does.
    cache_entries, cache_tokens, draft_tokens
        As :class:`~ecg_agent_ray.agent.TransformersEngine`. A forward of twelve tokens takes 1.3
        times as long as one of one.

    Raises
    ------
    MissingDependencyError
        The extra ``on-device`` is not installed.
    ModelNotFoundError, CheckpointError
        As loading the base model and its adapter does.
    ConfigError
        The model or the dtype is none that this engine runs.
    """

    def __init__(
        self,
        base_model: str | Path,
        adapter: str | Path | None = None,
        *,
        dtype: str | None = None,
        threads: int | None = None,
        cache_entries: int = 8,
        cache_tokens: int = 32_768,
        draft_tokens: int = 10,
        drafts: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        from transformers import AutoConfig, GenerationConfig

        openvino = require_openvino()
        self.dtype = dtype or "float32"
        if self.dtype not in _PRECISION:
            raise ConfigError(
                f"the engine openvino calculates in {', '.join(_PRECISION)}, not {dtype}"
            )
        reference = str(base_model)
        path = exported(reference, None if adapter is None else Path(adapter))
        folder = resolve_base_model(reference)
        config = AutoConfig.from_pretrained(folder)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISION[self.dtype],
            "KV_CACHE_PRECISION": _PRECISION[self.dtype],
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(_scale_group(config)),
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        }
        compiled = openvino.Core().compile_model(paged(path), "CPU", options)
        self._request = compiled.create_infer_request()
        self._pool = BlockPool(compiled)
        self._bound: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.queue = self._forwards = ForwardQueue(self._run)
        self.name = name or (f"{reference}+{Path(adapter).name}" if adapter else reference)
        try:
            declared = GenerationConfig.from_pretrained(folder).eos_token_id
        except OSError:
            declared = config.eos_token_id
        super().__init__(
            load_tokenizer(reference),
            config,
            vocabulary=int(compiled.output("logits").get_partial_shape()[2].get_length()),
            end_ids=declared if isinstance(declared, list) else [declared],
            cache_entries=cache_entries,
            cache_tokens=cache_tokens,
            draft_tokens=draft_tokens,
            drafts=drafts,
        )

    def new_cache(self) -> KeyValues:
        """A sequence without tokens in the pool of blocks."""
        return BlockSequence(self._pool, self._lock)

    def forward(self, cache: Any, tokens: Sequence[int], keep: int = 1) -> torch.Tensor:
        """See :meth:`GrammarEngine.forward`; what several threads ask for at a time is one."""
        return self._forwards(Request(cache, tokens, keep))

    def _run(self, requests: Sequence[Request]) -> None:
        with self._lock:
            logits = self._infer(requests)
        begin = 0
        for request in requests:
            request.cache.length += len(request.tokens)
            request.logits = logits[begin : begin + request.keep]
            begin += request.keep

    def _infer(self, requests: Sequence[Request]) -> torch.Tensor:
        """Logits of all requests, one after the other; reserves their blocks."""
        new = [len(request.tokens) for request in requests]
        past = [request.cache.length for request in requests]
        ends = np.cumsum(new)
        for request, count in zip(requests, new, strict=True):
            request.cache.reserve(count)
        for name, tensor in self._pool.tensors.items():
            if self._bound.get(name) is not tensor:  # the pool has grown
                self._request.set_tensor(name, tensor)
                self._bound[name] = tensor
        blocks = [request.cache.blocks for request in requests]
        inputs = {
            "input_ids": np.concatenate([request.tokens for request in requests]).astype(np.int64),
            "position_ids": np.concatenate(
                [np.arange(p, p + n, dtype=np.int64) for p, n in zip(past, new, strict=True)]
            ),
            "keep": np.concatenate(
                [
                    np.arange(end - request.keep, end, dtype=np.int64)
                    for end, request in zip(ends, requests, strict=True)
                ]
            ),
            "past_lens": np.asarray(past, np.int32),
            "subsequence_begins": np.asarray([0, *ends], np.int32),
            "block_indices": np.concatenate(blocks).astype(np.int32),
            "block_indices_begins": np.cumsum([0, *map(len, blocks)]).astype(np.int32),
            "max_context_len": np.asarray(max(map(sum, zip(past, new, strict=True))), np.int32),
        }
        return torch.from_numpy(np.array(self._request.infer(inputs)["logits"][0], np.float32))
