"""Shapes of decoder-only models and speeds of devices: what an estimate needs, no weights.

The named models' shapes are those of their published ``config.json``; any other model's is read
from a folder that holds one. Covers Llama-like decoders (gated MLP, grouped-query attention) only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecg_agent_ray.errors import ConfigError, EcgAgentError

__all__ = ["DEVICES", "SHAPES", "Device", "ModelShape", "device_peak", "model_shape"]

GIB = 2**30


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder; widths in elements."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied_embeddings: bool
    qk_norm: bool = False
    qkv_bias: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read transformers' ``config.json``; raises :class:`ConfigError` for a key that lacks."""
        try:
            heads = int(config["num_attention_heads"])
            return cls(
                hidden=int(config["hidden_size"]),
                intermediate=int(config["intermediate_size"]),
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
                vocabulary=int(config["vocab_size"]),
                tied_embeddings=bool(config.get("tie_word_embeddings", False)),
                qk_norm=config.get("model_type") == "qwen3",
                qkv_bias=config.get("model_type") == "qwen2",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"config.json has no usable {error}") from error

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, q),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (q, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_parameters(self) -> int:
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        return sum(i * o for i, o in self.projections.values()) + norms + biases

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers' linear maps: what QLoRA quantises."""
        return self.layers * sum(i * o for i, o in self.projections.values())

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights of the model."""
        embeddings = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden

    def lora_parameters(self, rank: int, targets: list[str]) -> int:
        """Weights of an adapter; raises :class:`ConfigError` for a map the shape does not have."""
        if unknown := sorted(set(targets) - set(self.projections)):
            raise ConfigError(f"lora.target_modules: unknown {', '.join(unknown)}")
        return self.layers * sum(rank * sum(self.projections[name]) for name in set(targets))


SHAPES: dict[str, ModelShape] = {
    "weights:qwen2.5-coder-0.5b-instruct": ModelShape(
        896, 4864, 24, 14, 2, 64, 151936, True, qkv_bias=True
    ),
    "weights:qwen2.5-coder-1.5b-instruct": ModelShape(
        1536, 8960, 28, 12, 2, 128, 151936, True, qkv_bias=True
    ),
    "meta-llama/Llama-3.2-1B-Instruct": ModelShape(2048, 8192, 16, 32, 8, 64, 128256, True),
    "meta-llama/Llama-3.2-3B-Instruct": ModelShape(3072, 8192, 28, 24, 8, 128, 128256, True),
    "meta-llama/Llama-3.1-8B-Instruct": ModelShape(4096, 14336, 32, 32, 8, 128, 128256, False),
    "Qwen/Qwen3-32B": ModelShape(5120, 25600, 64, 64, 8, 128, 151936, False, qk_norm=True),
}


@dataclass(frozen=True)
class Device:
    """What one rank has: memory in bytes, peak in FLOP/s.

    GPUs: dense bf16 without sparsity, from NVIDIA's data sheets. A CPU core: 32 fp32 operations a
    cycle (two AVX2 FMA units) at 3 GHz, and the memory of a small machine shared by its cores; each
    thread of a rank is one.
    """

    memory: int
    peak_flops: float
    per_thread: bool = False


DEVICES: dict[str, Device] = {
    "h200-141gb": Device(int(141e9), 989e12),
    "h100-80gb": Device(80 * GIB, 989e12),
    "a100-80gb": Device(80 * GIB, 312e12),
    "a100-40gb": Device(40 * GIB, 312e12),
    "l40s-48gb": Device(48 * GIB, 362e12),
    "a10g-24gb": Device(24 * GIB, 125e12),
    "l4-24gb": Device(24 * GIB, 121e12),
    "cpu-core": Device(4 * GIB, 96e9, per_thread=True),
}


def device_peak(name: str) -> float | None:
    """Peak FLOP/s by a GPU's own name (``NVIDIA H100 80GB HBM3``), None if it is not listed."""
    words = set(name.lower().replace("-", " ").split())
    return next((d.peak_flops for key, d in DEVICES.items() if key.split("-")[0] in words), None)


def model_shape(reference: str) -> ModelShape:
    """The shape of a base model, from the table or from its folder's ``config.json``.

    Raises :class:`ConfigError` where it is in neither.
    """
    if reference in SHAPES:
        return SHAPES[reference]
    from ecg_agent_ray.agent.base_model import resolve_base_model

    try:
        path = Path(resolve_base_model(reference)) / "config.json"
        return ModelShape.from_config(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, EcgAgentError) as error:
        raise ConfigError(
            f"the shape of {reference!r} is not known: {error}",
            hint=f"give a folder with a config.json, or one of {', '.join(SHAPES)}",
        ) from error
