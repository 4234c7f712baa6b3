"""The on-device engine: OpenVINO on the CPU with 8-bit weights.

Chosen over ``openvino-genai``, whose pipelines keep the key/value cache to themselves, so that
neither text that the grammar forces nor guessed tokens can be checked in one pass; over
``llama-cpp-python``, which has no wheel; and over engines that need a conversion by another
package. Grammar, prefix cache and guesses are those of every local engine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecg_agent_ray.agent.base_model import load_tokenizer, resolve_base_model
from ecg_agent_ray.agent.decoding import GrammarEngine
from ecg_agent_ray.agent.openvino_model import exported, require_openvino
from ecg_agent_ray.agent.prefix_cache import KeyValues
from ecg_agent_ray.agent.transformers_engine import choose_dtype
from ecg_agent_ray.errors import ConfigError

__all__ = ["OpenVINOEngine"]

_MOST_HOLES = 512
"""Positions taken back that a request carries along before its states are written anew."""

_PRECISION = {"float32": "f32", "bfloat16": "bf16"}
_MASKED = float(np.finfo(np.float32).min)


class OpenVINOEngine(GrammarEngine):
    """An :class:`~ecg_agent_ray.agent.engine.Engine` on OpenVINO. Thread-safe.

    Parameters
    ----------
    base_model
        Reference for :func:`~ecg_agent_ray.agent.base_model.resolve_base_model`.
    adapter
        Folder of a PEFT adapter, merged before quantisation.
    dtype
        ``"float32"`` or ``"bfloat16"``, in which is calculated; None takes what the CPU multiplies.
    threads
        None takes all cores.
    cache_entries, cache_tokens, draft_tokens
        As :class:`~ecg_agent_ray.agent.TransformersEngine`. Guesses are shorter here, since a
        forward of eight tokens takes twice as long as one of one.

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
        draft_tokens: int = 4,
        name: str | None = None,
    ) -> None:
        from transformers import AutoConfig, GenerationConfig

        openvino = require_openvino()
        self.dtype, _ = choose_dtype("cpu", dtype)
        if self.dtype not in _PRECISION:
            raise ConfigError(
                f"the engine openvino calculates in {', '.join(_PRECISION)}, not {dtype}"
            )
        reference = str(base_model)
        path = exported(reference, None if adapter is None else Path(adapter))
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISION[self.dtype],
            "KV_CACHE_PRECISION": _PRECISION[self.dtype],
            "INFERENCE_NUM_THREADS": threads or os.cpu_count() or 1,
        }
        self._compiled = openvino.Core().compile_model(path, "CPU", options)
        self._forward_lock = threading.Lock()
        self.name = name or (f"{reference}+{Path(adapter).name}" if adapter else reference)
        folder = resolve_base_model(reference)
        config = AutoConfig.from_pretrained(folder)
        try:
            declared = GenerationConfig.from_pretrained(folder).eos_token_id
        except OSError:
            declared = config.eos_token_id
        super().__init__(
            load_tokenizer(reference),
            config,
            vocabulary=int(self._compiled.output("logits").get_partial_shape()[2].get_length()),
            end_ids=declared if isinstance(declared, list) else [declared],
            cache_entries=cache_entries,
            cache_tokens=cache_tokens,
            draft_tokens=draft_tokens,
        )

    def new_cache(self) -> KeyValues:
        """The states of a new inference request."""
        return _States(self._compiled)

    def forward(self, cache: Any, tokens: Sequence[int], keep: int = 1) -> torch.Tensor:
        """See :meth:`GrammarEngine.forward`."""
        new, past = len(tokens), len(cache.valid)
        mask = np.zeros((1, 1, new, past + new), np.float32)
        mask[..., :past][..., ~cache.valid] = _MASKED
        mask[0, 0, :, past:] = np.triu(np.full((new, new), _MASKED, np.float32), k=1)
        begin = int(cache.valid.sum())
        inputs = {
            "input_ids": np.asarray([tokens], np.int64),
            "attention_mask": mask,
            "position_ids": np.arange(begin, begin + new, dtype=np.int64)[None],
            "keep": np.arange(new - keep, new, dtype=np.int64),
            "beam_idx": np.zeros(1, np.int32),
        }
        with self._forward_lock:
            logits = cache.request.infer(inputs)["logits"]
        cache.valid = np.concatenate([cache.valid, np.ones(new, bool)])
        return torch.from_numpy(np.array(logits[0], np.float32))


class _States:
    """Keys and values in an inference request.

    Tokens taken back stay in it, hidden by the attention mask, since cutting a state means to copy
    it; ``valid`` says which positions count.
    """

    can_crop = True

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self.request = compiled.create_infer_request()
        self.valid = np.zeros(0, bool)

    def crop(self, max_length: int, /) -> None:
        """A negative ``max_length`` takes back so many of the last tokens."""
        places = np.flatnonzero(self.valid)
        self.valid[places[len(places) + max_length :]] = False
        if len(self.valid) - len(places) > _MOST_HOLES:
            self._write(self, np.flatnonzero(self.valid))

    def branch(self, length: int) -> KeyValues | None:
        """A request of its own with the first ``length`` tokens."""
        other = _States(self._compiled)
        other._write(self, np.flatnonzero(self.valid)[:length])
        return other

    def _write(self, source: _States, places: np.ndarray[Any, Any]) -> None:
        import openvino

        held = {state.name: np.array(state.state.data) for state in source.request.query_state()}
        for state in self.request.query_state():
            kept = np.ascontiguousarray(held[state.name][:, :, places])
            state.state = openvino.Tensor(kept)
        self.valid = np.ones(len(places), bool)
