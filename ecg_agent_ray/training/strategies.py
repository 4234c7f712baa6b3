"""How a network's gradients, optimiser and weights are shared by the workers of a job.

    shared = share(network, make_optimizer, options, world=2, device=device, micro_steps=4, …)
    for index, batch in enumerate(micro_batches):       # of one update
        with shared.accumulating(last=index == 3):
            shared.backward(loss(shared.network(batch)))
    shared.step(lr=1e-4)

Three strategies behind one interface: ``ddp`` replicates everything; ``fsdp`` shards weights,
gradients and optimiser (torch's ``fully_shard``); ``deepspeed`` shards the optimiser (ZeRO-1) and
the gradients too (ZeRO-2). All average gradients over workers, so that a loss that is a sum over
them is to be multiplied by their number.

Does not cover: ZeRO-3 (``fsdp`` shards weights), offloading, tensor or pipeline parallelism.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ecg_agent_ray.classifier.model import EncoderLayer
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.classifier_config import StrategyConfig
from ecg_agent_ray.training.deepspeed_setup import (
    build_ops,
    check_compiler,
    safe_deepspeed_globals,
)

__all__ = ["SharedNetwork", "check_strategy", "report", "share"]

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_OPTIMIZER_FILE = "optimizer.pt"
_SHARDS = "deepspeed"
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def check_strategy(network: nn.Module, options: StrategyConfig) -> None:
    """Refuse what cannot work before a worker starts.

    Raises
    ------
    ConfigError
        ``fsdp`` for a network with parameters that are single numbers.
    MissingDependencyError
        ``deepspeed`` without a compiler for its ops.
    """
    if options.strategy == "deepspeed":
        check_compiler()
    scalars = [name for name, value in network.named_parameters() if value.dim() == 0]
    if options.strategy == "fsdp" and scalars:
        raise ConfigError(
            f"strategy fsdp cannot shard {', '.join(scalars)}, which is a single number",
            hint="so small a network gains nothing by it; take strategy=ddp",
        )


def share(
    network: nn.Module,
    make_optimizer: MakeOptimizer,
    options: StrategyConfig,
    *,
    world: int,
    device: torch.device,
    micro_steps: int,
    max_grad_norm: float | None,
) -> SharedNetwork:
    """Spread ``network``, which holds the same weights on every worker.

    Parameters
    ----------
    make_optimizer
        Called with the parameters to train, once they are where they will be.
    micro_steps
        Backward passes of an update, the same on all workers.
    max_grad_norm
        Gradients of a greater norm are scaled down to it; None leaves them.
    """
    network = network.to(device)
    if options.strategy == "deepspeed":
        return _DeepSpeed(network, make_optimizer, options, world, micro_steps, max_grad_norm)
    kind = _Sharded if options.strategy == "fsdp" and world > 1 else SharedNetwork
    return kind(network, make_optimizer, options, world, device, max_grad_norm)


class SharedNetwork:
    """Replicas whose gradients torch's DDP averages, or the one network of a single worker.

    ``network`` is what to call in training and in validation.
    """

    def __init__(
        self,
        network: nn.Module,
        make_optimizer: MakeOptimizer,
        options: StrategyConfig,
        world: int,
        device: torch.device,
        max_grad_norm: float | None,
    ) -> None:
        self.plain, self.world, self.max_grad_norm = network, world, max_grad_norm
        self.device, self.bf16 = device, options.precision == "bf16"
        self.network: Any = network
        if world > 1:
            self.network = self._spread()
        self.optimizer: Any = make_optimizer(_trained(self.network))

    def _spread(self) -> nn.Module:
        import ray.train.torch as ray_torch

        wrapped: nn.Module = ray_torch.prepare_model(self.plain)
        return wrapped

    def autocast(self) -> Any:
        """Around a forward pass."""
        if self.bf16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        """Around a micro-batch: gradients are exchanged at an update's last one only."""
        with contextlib.nullcontext() if last or self.world == 1 else self.network.no_sync():
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``."""
        loss.backward()

    def step(self, lr: float) -> None:
        """Update the weights, the learning rate being ``lr``, and forget the gradients."""
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def share_buffers(self) -> None:
        """Give every worker the running statistics of the first, as validation takes them."""
        if self.world > 1:
            for buffer in self.plain.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def weights(self) -> dict[str, Any]:
        """The whole state dict, on rank 0 only where it was sharded; all workers call this."""
        return get_model_state_dict(self.network, options=_FULL)

    def save(self, folder: Path, rank: int) -> None:
        """Optimiser state for :meth:`restore`; all workers call this, each with its own folder,
        and the files of all make one checkpoint."""
        state = get_optimizer_state_dict(self.network, self.optimizer, options=_FULL)
        if rank == 0:
            torch.save(state, folder / _OPTIMIZER_FILE)

    def restore(self, folder: Path) -> None:
        """Optimiser state of a checkpoint; the weights were loaded before spreading."""
        state = torch.load(folder / _OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        set_optimizer_state_dict(self.network, self.optimizer, state, options=_FULL)


class _Sharded(SharedNetwork):
    def _spread(self) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        for module in self.plain.modules():
            if isinstance(module, EncoderLayer):
                fully_shard(module, mesh=mesh)
        fully_shard(self.plain, mesh=mesh)
        return self.plain

    @contextlib.contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        self.network.set_requires_gradient_sync(last)
        yield


class _DeepSpeed(SharedNetwork):
    """The engine counts micro-batches itself, clips and updates at the last one of an update."""

    def __init__(
        self,
        network: nn.Module,
        make_optimizer: MakeOptimizer,
        options: StrategyConfig,
        world: int,
        micro_steps: int,
        max_grad_norm: float | None,
    ) -> None:
        import deepspeed

        self.plain, self.world, self.micro_steps = network, world, micro_steps
        gpu = next(network.parameters()).device.type == "cuda"
        build_ops()
        deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", verbose=False)
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # data are dealt out by the loop
            "gradient_accumulation_steps": micro_steps,
            "gradient_clipping": max_grad_norm or 0.0,
            "torch_autocast": {"enabled": options.precision == "bf16", "dtype": "bfloat16"},
            # torch's AdamW is a plain PyTorch optimiser; DeepSpeed's own needs compiled ops
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": options.zero_stage,
                "contiguous_gradients": True,
                "overlap_comm": gpu,
                "reduce_bucket_size": 5_000_000,
                "allgather_bucket_size": 5_000_000,
            },
            "steps_per_print": 1_000_000_000,
            "wall_clock_breakdown": False,
        }
        engine, *_ = deepspeed.initialize(
            model=network, optimizer=make_optimizer(_trained(network)), config=settings
        )
        self.network = engine
        self.optimizer = engine.optimizer

    def autocast(self) -> Any:
        return contextlib.nullcontext()  # the engine's own

    @contextlib.contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        yield
        if not last:
            self.network.step()

    def backward(self, loss: Tensor) -> None:
        # the engine divides by the number of micro-batches, the loss here is a sum over them
        self.network.backward(loss * self.micro_steps)

    def step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.network.step()

    def weights(self) -> dict[str, Any]:
        return {key: value.detach().cpu() for key, value in self.plain.state_dict().items()}

    def save(self, folder: Path, rank: int) -> None:
        self.network.save_checkpoint(str(folder / _SHARDS), tag="last")

    def restore(self, folder: Path) -> None:
        with safe_deepspeed_globals():
            path, _ = self.network.load_checkpoint(str(folder / _SHARDS), tag="last")
        if path is None:
            raise ConfigError(f"{folder} holds no state of DeepSpeed")


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def report(metrics: dict[str, Any], folder: Path) -> None:
    """Ray Train's report, a barrier; the files of all workers' folders make one checkpoint."""
    import ray.train

    checkpoint = None
    if any(folder.iterdir()):
        checkpoint = ray.train.Checkpoint.from_directory(str(folder))
    ray.train.report(metrics, checkpoint=checkpoint)
