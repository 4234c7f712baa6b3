"""Which attention, kernels and weight format a worker uses, decided once, each with its reason."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from ecg_agent_ray.errors import MissingDependencyError
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig

__all__ = ["Kernels", "check_packages", "choose_kernels"]


@dataclass(frozen=True)
class Kernels:
    """The decisions; ``reasons`` has one line for each."""

    attention: str
    liger: bool
    nf4: bool
    dtype: str
    reasons: tuple[str, ...]

    def load_options(self) -> dict[str, Any]:
        """Arguments of ``from_pretrained``."""
        attention = self.attention
        if attention == "packed":
            from ecg_agent_ray.training.llm_attention import register_packed_attention

            attention = register_packed_attention()
        options: dict[str, Any] = {"attn_implementation": attention}
        if self.nf4:
            import torch
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, self.dtype),
            )
            if torch.cuda.is_available():
                options["device_map"] = {"": torch.cuda.current_device()}
        return options

    @staticmethod
    def apply_liger(model: Any) -> None:
        """Fused norm, rotary embedding and MLP; the loss stays ours, since it is masked."""
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})


def check_packages(config: LLMFinetuneConfig) -> None:
    """Raise :class:`MissingDependencyError` for a package the configuration asks for by name."""
    wanted = {
        "bitsandbytes": config.quantize == "nf4",
        "flash_attn": config.attention == "flash_attention_2",
        "liger_kernel": config.liger is True,
    }
    missing = [name for name, needed in wanted.items() if needed and not _installed(name)]
    if missing:
        names = " ".join(name.replace("_", "-") for name in missing)
        raise MissingDependencyError(
            f"the configuration needs {names}, not installed here", hint=f"pip install {names}"
        )


def choose_kernels(config: LLMFinetuneConfig, *, gpu: bool) -> Kernels:
    """Decide for this machine; raises :class:`MissingDependencyError` as check_packages does."""
    check_packages(config)
    attention, attention_reason = _attention(config, gpu=gpu)
    liger, liger_reason = _liger(config, gpu=gpu)
    nf4 = config.quantize == "nf4"
    weights = "nf4, frozen (quantize)" if nf4 else f"{config.dtype} (dtype)"
    reasons = (attention_reason, liger_reason, f"weights: {weights}")
    return Kernels(attention, liger, nf4, config.dtype, reasons)


def _attention(config: LLMFinetuneConfig, *, gpu: bool) -> tuple[str, str]:
    if config.attention != "auto":
        return config.attention, f"attention: {config.attention}, as configured"
    if not gpu:
        return "packed", "attention: packed (SDPA piece by piece), since there is no GPU"
    if config.batch.share_prefix:
        return "packed", "attention: packed, since rows share their system messages"
    if config.dtype == "float32":
        return "sdpa", "attention: sdpa, since flash attention takes no float32"
    if not _installed("flash_attn"):
        return "sdpa", "attention: sdpa, since flash-attn is not installed"
    return "flash_attention_2", "attention: flash_attention_2, GPU and flash-attn are here"


def _liger(config: LLMFinetuneConfig, *, gpu: bool) -> tuple[bool, str]:
    if config.liger is False:
        return False, "Liger kernels: off, as configured"
    if not gpu:
        return False, "Liger kernels: off, since there is no GPU"
    if not _installed("liger_kernel"):
        return False, "Liger kernels: off, since liger-kernel is not installed"
    return True, "Liger kernels: on, GPU and liger-kernel are here"


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
