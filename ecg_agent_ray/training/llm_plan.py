"""What an LLM fine-tuning job will take, from its configuration and the model's shape alone.

Covers, per rank: weights, adapter, gradients, optimiser, kept activations, logits, what ZeRO-3
gathers, and a reserve for CUDA and NCCL. Assumes a LoRA on bf16 or 4-bit weights, one row a
micro-batch and a memory-saving attention kernel. Times rest on the assumed MFU (``assume.mfu``).
Does not cover host memory or the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ecg_agent_ray.errors import ConfigError, EcgAgentError, PlanDoesNotFitError
from ecg_agent_ray.training.llm_config import CHUNK, LLMFinetuneConfig
from ecg_agent_ray.training.llm_shapes import DEVICES, ModelShape, model_shape

__all__ = [
    "Data",
    "Plan",
    "activation_bytes",
    "check_fits",
    "flops_per_token",
    "memory_parts",
    "plan_llm",
]

# 4 bits and, with double quantisation, 0.127 bits of scales (QLoRA, arXiv 2305.14314, section 3)
_NF4_BYTES = 4.127 / 8
_RESERVE = 3 * 2**29
"""CUDA context, NCCL buffers and kernels' workspaces: 1.5 GiB."""
_USABLE = 0.95
"""Part of the memory that an allocator fills before fragments of it stop serving."""


@dataclass(frozen=True)
class Data:
    """One epoch; ``source`` says where the numbers are from."""

    dialogues: int
    tokens: int
    rows: int
    target_share: float
    source: str


@dataclass(frozen=True)
class Plan:
    """Bytes are per rank; ``data``, ``steps`` and ``hours`` are None where no data is known."""

    base_model: str
    device: str
    device_memory: int
    ranks: int
    parameters: int
    trainable_parameters: int
    memory: dict[str, int]
    tokens_per_second: float
    data: Data | None
    steps: int | None
    hours: float | None
    assumptions: list[str]

    @property
    def total_memory(self) -> int:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total_memory <= _USABLE * self.device_memory

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_memory": self.total_memory, "fits": self.fits}


def plan_llm(config: LLMFinetuneConfig) -> Plan:
    """Estimate a job; nothing is loaded but, where they are here, the dialogues and tokenizer.

    Raises :class:`ConfigError` for a model whose shape is not known and for an unknown device.
    """
    if config.assume.device not in DEVICES:
        raise ConfigError(
            f"assume.device: {config.assume.device!r} is unknown",
            hint=f"one of {', '.join(DEVICES)}",
        )
    device, shape = DEVICES[config.assume.device], model_shape(config.base_model)
    data = _data(config)
    speed = device.peak_flops * config.assume.mfu / flops_per_token(shape, config)
    cores = config.distributed.threads_per_worker if device.per_thread else 1
    speed *= config.distributed.num_workers * cores
    steps, hours = _length(config, data, speed)
    return Plan(
        base_model=config.base_model,
        device=config.assume.device,
        device_memory=device.memory * cores,
        ranks=config.distributed.num_workers,
        parameters=shape.parameters,
        trainable_parameters=_adapter_parameters(shape, config),
        memory=memory_parts(shape, config, data.target_share if data else None),
        tokens_per_second=round(speed, 1),
        data=data,
        steps=steps,
        hours=hours,
        assumptions=[
            f"{config.assume.mfu:.0%} of the device's peak bf16 speed (assume.mfu)",
            "attention that keeps no score matrix (flash attention or SDPA)",
            data.source if data else "no data: the file is not here and assume.dialogues is null",
        ],
    )


def check_fits(config: LLMFinetuneConfig) -> Plan:
    """The plan; raises :class:`PlanDoesNotFitError` naming the least change that would fit."""
    plan = plan_llm(config)
    if plan.fits:
        return plan
    largest = max(plan.memory, key=lambda part: plan.memory[part])
    raise PlanDoesNotFitError(
        f"{plan.total_memory / 2**30:.1f} GiB a rank do not fit {_USABLE:.0%} of {plan.device}'s "
        f"{plan.device_memory / 2**30:.1f} GiB; {largest} take "
        f"{plan.memory[largest] / 2**30:.1f} GiB",
        hint=_mend(config),
    )


def memory_parts(
    shape: ModelShape, config: LLMFinetuneConfig, target_share: float | None = None
) -> dict[str, int]:
    """Bytes of each part on one rank at the moment of most memory."""
    ranks, stage = config.distributed.num_workers, config.distributed.zero_stage
    width = 2 if config.dtype == "bfloat16" else 4
    trained = _adapter_parameters(shape, config)
    weights = shape.parameters * width
    if config.quantize == "nf4":
        weights -= round(shape.linear_parameters * (width - _NF4_BYTES))
    gathered = 0
    if stage == 3:
        # the layer in use and the one fetched ahead; of the embeddings one at a time
        gathered = width * max(2 * shape.layer_parameters, shape.embedding_parameters)
        weights = gathered if config.distributed.offload_parameters else weights // ranks
        if config.distributed.offload_parameters:
            gathered = 0
    # fp32 master copy and Adam's two moments; at stage 0 the adapter itself is fp32
    optimizer = 12 * trained // ranks if stage else 8 * trained
    if config.distributed.offload_optimizer:
        optimizer = 0
    tokens = config.batch.max_tokens
    targets = round(tokens * (target_share or config.assume.target_share))
    return {
        "weights": weights,
        "adapter": trained * (width if stage else 4) // (ranks if stage == 3 else 1),
        "gradients": _gradient_bytes(trained, width, ranks, stage),
        "optimizer": optimizer,
        "activations": activation_bytes(shape, config),
        "logits": _logit_bytes(shape, config, targets, width),
        "gathered": gathered,
        "reserve": _RESERVE,
    }


def _trained(shape: ModelShape, config: LLMFinetuneConfig) -> ModelShape:
    """The trained layers alone."""
    return replace(shape, layers=shape.layers - config.lora.first(shape.layers))


def _adapter_parameters(shape: ModelShape, config: LLMFinetuneConfig) -> int:
    return _trained(shape, config).lora_parameters(config.lora.r, config.lora.target_modules)


def _logit_bytes(shape: ModelShape, config: LLMFinetuneConfig, targets: int, width: int) -> int:
    if config.distributed.zero_stage == 3 or config.quantize != "none":
        # logits, their fp32 copy, log-probabilities and the gradient of those
        return targets * shape.vocabulary * (width + 12)
    # a few targets' logits and their fp32 copy at a time; of all the gradient of the states
    return min(targets, CHUNK) * shape.vocabulary * (width + 4) + targets * shape.hidden * width


def _gradient_bytes(trained: int, width: int, ranks: int, stage: int) -> int:
    """In the weights' type as they arise, and summed up in fp32; shared out from stage 2 on."""
    if stage == 0:
        return 4 * trained
    return trained * (width + 4) // (ranks if stage >= 2 else 1)


def activation_bytes(shape: ModelShape, config: LLMFinetuneConfig) -> int:
    """Bytes kept for the backward pass of one row of ``batch.max_tokens`` tokens.

    Nothing is kept of layers below the trained ones. Frozen linear maps keep no input, but their
    LoRA does; an RMSNorm keeps its input in fp32, the gated MLP its four inner products. The last
    term is the norm after the last layer.
    """
    width = 2 if config.dtype == "bfloat16" else 4
    tokens, hidden = config.batch.max_tokens, shape.hidden
    shape = _trained(shape, config)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * 4 * hidden + 2 * width * hidden
    if shape.qk_norm:
        norms += 4 * (q + kv)
    attention = width * (2 * q + 2 * kv) + 4 * shape.heads
    mlp = 4 * width * shape.intermediate
    adapter = width * config.lora.r * len(set(config.lora.target_modules))
    layer = tokens * (norms + attention + mlp + adapter)
    if config.gradient_checkpointing:
        return shape.layers * tokens * hidden * width + layer + 4 * tokens * hidden
    return shape.layers * layer + 4 * tokens * hidden


def flops_per_token(shape: ModelShape, config: LLMFinetuneConfig) -> float:
    """Forward, and back through frozen weights (no weight gradients); once more if recomputed.

    The adapter's own weights take a third pass.
    """
    if config.loss_vocabulary is not None:
        shape = replace(shape, vocabulary=min(shape.vocabulary, config.loss_vocabulary))
    trained = _trained(shape, config)
    forward = _forward_flops(trained if config.cache_lower_layers else shape, config)
    backward = _forward_flops(trained, config)
    adapter = 2 * trained.lora_parameters(config.lora.r, config.lora.target_modules)
    passes = 2 if config.gradient_checkpointing else 1
    return float(forward + passes * backward + (passes + 2) * adapter)


def _forward_flops(shape: ModelShape, config: LLMFinetuneConfig) -> int:
    dense = 2 * (shape.parameters - shape.embedding_parameters)
    if shape.tied_embeddings:
        dense += 2 * shape.embedding_parameters
    # a token attends to half of its own dialogue's others: scores and their sum over values
    length = min(config.batch.max_tokens, config.assume.tokens_per_dialogue)
    return dense + 2 * shape.layers * shape.heads * shape.head_dim * length


def _data(config: LLMFinetuneConfig) -> Data | None:
    if all(
        source.path.startswith("builtin:") or Path(source.path).expanduser().exists()
        for source in config.sources
    ):
        return _counted(config)
    if config.assume.dialogues is None:
        return None
    dialogues, length = config.assume.dialogues, config.assume.tokens_per_dialogue
    tokens = dialogues * length
    rows = -(-tokens // config.batch.max_tokens) if config.batch.packing else dialogues
    source = f"{dialogues:,} dialogues of {length} tokens (assume.dialogues)"
    return Data(dialogues, tokens, rows, config.assume.target_share, source)


def _counted(config: LLMFinetuneConfig) -> Data:
    """Tokens counted where the tokenizer is here, else from the number of characters."""
    from ecg_agent_ray.agent.base_model import load_tokenizer
    from ecg_agent_ray.agent.chat_format import ChatFormat
    from ecg_agent_ray.training.llm_objectives import load_objective

    where = ", ".join(source.path for source in config.sources)
    try:
        objective = load_objective(config, ChatFormat(load_tokenizer(config.base_model)))
    except EcgAgentError:
        uses, tokens = _guessed(config)
        rows = -(-tokens // config.batch.max_tokens) if config.batch.packing else uses
        origin = f"{where}, its tokens guessed from its characters: no tokenizer here"
        return Data(uses, tokens, rows, config.assume.target_share, origin)
    packs = objective.plan.epoch(0)
    total = sum(len(pack.input_ids) for pack in packs)
    share = round(sum(pack.n_targets for pack in packs) / total, 4)
    return Data(objective.items, total, len(packs), share, f"counted in {where}")


def _guessed(config: LLMFinetuneConfig) -> tuple[int, int]:
    """Uses of dialogues or pairs in an epoch, and their tokens.

    English with numbers and JSON: about 3.6 characters a token for vocabularies this large.
    """
    from ecg_agent_ray.dialogue import read_dialogues
    from ecg_agent_ray.dialogue.render import dialogue_messages
    from ecg_agent_ray.training.llm_pairs import read_pairs

    uses, tokens = 0, 0.0
    for source in config.sources:
        if config.objective == "dpo":
            pairs = read_pairs(source.path)
            texts = [
                text
                for pair in pairs
                for text in (pair.chosen, pair.rejected, *(m["content"] for m in pair.messages))
            ]
            items, frames = len(pairs), 0
        else:
            dialogues = read_dialogues(source.path)
            texts = [m["content"] for d in dialogues for m in dialogue_messages(d)]
            items, frames = len(dialogues), 250 * len(dialogues)
        uses += round(source.repeat * items)
        tokens += source.repeat * (sum(map(len, texts)) / 3.6 + frames)
    return uses, round(tokens)


def _length(
    config: LLMFinetuneConfig, data: Data | None, tokens_per_second: float
) -> tuple[int | None, float | None]:
    batch = config.batch
    if data is None:
        return config.steps, None
    steps = config.steps or max(1, round(config.epochs * data.rows / batch.packs_per_step))
    tokens = steps * batch.packs_per_step * data.tokens / data.rows
    return steps, round(tokens / tokens_per_second / 3600, 4)


def _changes(config: LLMFinetuneConfig) -> Iterator[dict[str, Any]]:
    """Single changes, least costly first."""
    spread, batch = config.distributed, config.batch
    if not config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    if spread.zero_stage < 3 and spread.num_workers > 1 and config.quantize == "none":
        yield {"distributed.zero_stage": 3}
    if config.quantize == "none" and spread.zero_stage < 3:
        yield {"quantize": "nf4"}
    if spread.zero_stage == 3:
        yield {"distributed.num_workers": 2 * spread.num_workers}
        yield {"distributed.offload_parameters": True}
    if batch.max_tokens >= 2048:
        yield {"batch.max_tokens": batch.max_tokens // 2}


def _mend(config: LLMFinetuneConfig) -> str:
    for count in (1, 2, 3):
        for chosen in itertools.combinations(list(_changes(config)), count):
            keys = {key: value for change in chosen for key, value in change.items()}
            try:
                changed = _with(config, keys)
            except ValueError:  # two changes that exclude each other
                continue
            if plan_llm(changed).fits:
                return "it fits with " + " ".join(
                    f"{key}={str(value).lower()}" for key, value in keys.items()
                )
    memory = DEVICES[config.assume.device].memory
    for name, device in sorted(DEVICES.items(), key=lambda item: item[1].memory):
        if device.memory > memory and plan_llm(_with(config, {"assume.device": name})).fits:
            return f"it fits {device.memory / 2**30:.0f} GiB a rank: assume.device={name}"
    return "take a smaller base model"


def _with(config: LLMFinetuneConfig, changes: dict[str, Any]) -> LLMFinetuneConfig:
    values = config.model_dump()
    for key, value in changes.items():
        section = values
        *parents, name = key.split(".")
        for parent in parents:
            section = section[parent]
        section[name] = value
    return LLMFinetuneConfig.model_validate(values)
