"""Checkpoints of what is trained, apart from how it was spread: any stage, any number of workers.

DeepSpeed's own checkpoints hold pickled partitions that only the same number of workers can load.
Here a worker gathers one trained tensor at a time (fp32 weights and Adam's two moments), and every
``world``-th tensor goes into its own safetensors shard. A job that goes on reads all shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecg_agent_ray.errors import CheckpointError

__all__ = ["load_training_state", "restore_engine", "save_training_state"]

_MOMENTS = ("exp_avg", "exp_avg_sq")
_PROGRESS = "progress.json"


def save_training_state(
    engine: Any, folder: Path, progress: dict[str, Any], *, rank: int, world: int
) -> None:
    """Write this worker's shard and, on rank 0, ``progress``; every worker must call it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shard: dict[str, Any] = {}
    for index, (name, parameter) in enumerate(_trained(engine)):
        for key in (None, *_MOMENTS):
            # a collective under ZeRO: all take part, one keeps the result
            full = _get(engine, parameter, key)
            if index % world == rank:
                shard[f"{name}:{key or 'weight'}"] = full.detach().float().cpu().contiguous()
    save_file(shard, str(folder / f"shard-{rank:05d}.safetensors"))
    if rank == 0:
        steps = {"optimizer_steps": _optimizer_steps(engine), "shards": world}
        (folder / _PROGRESS).write_text(json.dumps({**progress, **steps}), encoding="utf-8")


def load_training_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All tensors by ``NAME:KIND``, and the progress; :class:`CheckpointError` if a part lacks."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        progress = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        files = [folder / f"shard-{n:05d}.safetensors" for n in range(progress["shards"])]
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the training state in {folder} is not whole: {error}") from error
    return tensors, progress


def restore_engine(engine: Any, tensors: dict[str, Any], progress: dict[str, Any]) -> None:
    """Put weights and moments into a new engine, each worker the part it holds.

    Raises :class:`CheckpointError` where the checkpoint is of another adapter.
    """
    trained = list(_trained(engine))
    wanted = {f"{name}:weight" for name, _ in trained}
    if wanted != {name for name in tensors if name.endswith(":weight")}:
        raise CheckpointError(
            "the checkpoint holds other tensors than this job trains",
            hint="go on with the same base model and lora settings",
        )
    _make_moments(engine, progress["optimizer_steps"])
    for name, parameter in trained:
        for key in (None, *_MOMENTS):
            value = tensors[f"{name}:{key or 'weight'}"].to(engine.device)
            _set(engine, parameter, key, value)
    _weights_from_masters(engine, dict(trained), tensors)


def _trained(engine: Any) -> Iterator[tuple[str, Any]]:
    return (
        (name, parameter)
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    )


def _get(engine: Any, parameter: Any, key: str | None) -> Any:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        return parameter.data if key is None else engine.basic_optimizer.state[parameter][key]
    if key is None:
        return safe_get_full_fp32_param(parameter)
    return safe_get_full_optimizer_state(parameter, key)


def _set(engine: Any, parameter: Any, key: str | None, value: Any) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        own = parameter.data if key is None else engine.basic_optimizer.state[parameter][key]
        own.copy_(value)
    elif key is None:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _optimizer_steps(engine: Any) -> int:
    states = engine.basic_optimizer.state.values()
    return max((int(state["step"]) for state in states if "step" in state), default=0)


def _make_moments(engine: Any, steps: int) -> None:
    """Adam makes its state at the first step; a new engine has taken none."""
    import torch

    optimizer = engine.basic_optimizer
    # stage 3 hands the optimiser one of its partitions at a time, at each step
    flats = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None) or [
        flat for group in optimizer.param_groups for flat in group["params"]
    ]
    for flat in flats:
        state = optimizer.state[flat]
        state["step"] = torch.tensor(float(steps))
        for key in _MOMENTS:
            state.setdefault(key, torch.zeros_like(flat))
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def _weights_from_masters(engine: Any, trained: dict[str, Any], tensors: dict[str, Any]) -> None:
    """The low-precision copies that the model computes with."""
    import deepspeed
    import torch

    gathered = deepspeed.zero.GatheredParameters(
        list(trained.values()),
        modifier_rank=0,
        enabled=engine.zero_optimization_partition_weights(),
    )
    with gathered, torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"{name}:weight"].to(parameter.device))
