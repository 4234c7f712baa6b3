"""The pre-training loop: what every Ray Train worker runs.

An update's gradient is the sum over all workers and micro-batches divided by the masked frames of
all of them, so accumulation changes nothing but which patients are contrasted. All randomness is
keyed by seed, epoch, update and rank: a resumed run goes on exactly where the lost one was.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ecg_agent_ray.classifier.pretraining import (
    ECGPretrainingModel,
    PretrainingLosses,
    pretraining_losses,
)
from ecg_agent_ray.classifier.pretraining_checkpoint import (
    export_pretraining_checkpoint,
    load_pretraining_checkpoint,
)
from ecg_agent_ray.classifier.pretraining_masking import (
    mask_leads_at_random,
    sample_negatives,
    time_mask,
)
from ecg_agent_ray.training.pretrain_config import PretrainConfig
from ecg_agent_ray.training.pretrain_data import SegmentPairs

__all__ = ["CHECKPOINT_FILE", "PROGRESS_FILE", "fresh_model", "train_loop"]

logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "checkpoint_last.pt"
PROGRESS_FILE = "progress.json"
_TRAINER_FILE = "trainer.pt"
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_PARTS = ("contrastive", "diversity", "features", "patient", "total")


def train_loop(settings: dict[str, Any]) -> None:
    """Ray Train's entry.

    ``settings``: ``config`` (dict of :class:`PretrainConfig`), ``start`` (checkpoint to begin
    with), ``pairs``, ``train`` and ``validation`` (indices of pairs).
    """
    import ray.train

    config = PretrainConfig.model_validate(settings["config"])
    torch.set_num_threads(config.distributed.threads_per_worker)
    history: list[dict[str, Any]] = []
    resumed = ray.train.get_checkpoint()
    with contextlib.ExitStack() as stack:
        folder = None
        if resumed is not None:
            folder = Path(stack.enter_context(resumed.as_directory()))
            history = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        trainer = _Trainer(config, settings, folder)
    trainer.announce()
    for epoch in range(trainer.epoch, config.epochs):
        metrics = {**trainer.train_epoch(epoch), **trainer.validate()}
        history.append(metrics)
        if (epoch + 1) % config.report_every and epoch + 1 < config.epochs:
            continue
        states = trainer.states()  # all ranks take part in gathering shards
        if trainer.rank:
            ray.train.report(metrics)
            continue
        logger.info("%s", json.dumps(metrics))
        with tempfile.TemporaryDirectory() as name:
            trainer.save(Path(name), states, epoch + 1)
            Path(name, PROGRESS_FILE).write_text(json.dumps(history), encoding="utf-8")
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(name))


class _Trainer:
    """Network, optimiser and data of one worker."""

    def __init__(
        self, config: PretrainConfig, settings: dict[str, Any], resumed: Path | None
    ) -> None:
        import ray.train
        import ray.train.torch as ray_torch

        context = ray.train.get_context()
        self.config = config
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray_torch.get_device()
        self.train, self.validation = settings["train"], settings["validation"]
        self.pairs = SegmentPairs(settings["pairs"], config.segment_samples)
        self.local = config.batch_size // self.world
        self.micro = config.micro_batch_size or self.local
        self.updates_per_epoch = max(1, len(self.train) // config.batch_size)
        self.epoch = self.updates = 0
        start = settings["start"] if resumed is None else resumed / CHECKPOINT_FILE
        objective = config.objective_config()
        self.model = load_pretraining_checkpoint(
            start, num_heads=config.num_heads, objective=objective
        ).to(self.device)
        if self.model.feature_grad_mult == 0:
            # DDP would wait for gradients that never come
            self.model.feature_extractor.requires_grad_(False)
        self.network = self._spread()
        options = config.optimizer
        self.optimizer = torch.optim.AdamW(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=options.lr,
            betas=options.betas,
            eps=options.eps,
            weight_decay=options.weight_decay,
        )
        if resumed is not None:
            state = torch.load(resumed / _TRAINER_FILE, map_location="cpu", weights_only=True)
            self.epoch, self.updates = state["epoch"], state["updates"]
            set_optimizer_state_dict(
                self.network, self.optimizer, state["optimizer"], options=_FULL
            )

    def _spread(self) -> torch.nn.Module:
        import ray.train.torch as ray_torch

        if self.world == 1:
            return self.model
        if self.config.strategy == "ddp":
            wrapped: torch.nn.Module = ray_torch.prepare_model(self.model)
            return wrapped
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in self.model.encoder.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        return self.model

    def announce(self) -> None:
        """Say what was decided and why."""
        if self.rank:
            return
        config = self.config
        logger.info(
            "pre-training %.1f M parameters on %d pairs (%d held out); device %s (%s), %s, %d "
            "workers by %s, %d pairs an update = %d workers x %d micro-batches x %d",
            sum(p.numel() for p in self.model.parameters()) / 1e6,
            len(self.train),
            len(self.validation),
            self.device,
            "as asked" if config.distributed.use_gpu else "use_gpu is off",
            config.precision,
            self.world,
            config.strategy if self.world > 1 else "nothing, there is one",
            config.batch_size,
            self.world,
            self.local // self.micro,
            self.micro,
        )

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.config.seed * 7919 + epoch)
        order = [self.train[i] for i in torch.randperm(len(self.train), generator=generator)]
        size = self.config.batch_size
        for update in range(self.updates_per_epoch):
            yield order[update * size : (update + 1) * size]

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """One pass; losses are per masked frame in bits, as fairseq-signals logs them."""
        started = time.perf_counter()
        self.network.train()
        sums = torch.zeros(len(_PARTS) + 2, dtype=torch.float64)
        for step, batch in enumerate(self._batches(epoch)):
            seed = ((self.config.seed * 31 + epoch) * 100_003 + step) * 512 + self.rank
            sums += self._update(batch[self.rank :: self.world], seed)
        sums = self._sum_over_workers(sums)
        seconds = time.perf_counter() - started
        return {
            "epoch": epoch + 1,
            "global_step": self.updates,
            **_named("train", sums),
            "lr": self.optimizer.param_groups[0]["lr"],
            "temperature": self.model.objective.temperature(self.updates),
            "pairs_per_s": self.updates_per_epoch * self.config.batch_size / seconds,
        }

    def _update(self, mine: list[int], seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        parts = [mine[i : i + self.micro] for i in range(0, len(mine), self.micro)]
        masks = [self._mask(2 * len(part), generator) for part in parts]
        # the divisor is known before any loss, so that accumulated gradients add up exactly
        frames = float(self._sum_over_workers(torch.tensor(float(sum(m.sum() for m in masks)))))
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(len(_PARTS) + 2, dtype=torch.float64)
        for index, (part, mask) in enumerate(zip(parts, masks, strict=True)):
            with self._synchronised(index + 1 == len(parts)):
                losses = self._losses(part, mask, generator)
                # both strategies average gradients over workers; the loss is a sum over them
                (losses.total * (self.world / frames)).backward()
            sums += _numbers(losses)
        options = self.config.optimizer
        if options.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), options.max_grad_norm)
        share = min(1.0, (self.updates + 1) / (options.warmup_updates + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * share
        self.optimizer.step()
        self.updates += 1
        return sums

    @contextlib.contextmanager
    def _synchronised(self, wanted: bool) -> Iterator[None]:
        """Exchange gradients between workers only at an update's last micro-batch."""
        network: Any = self.network
        if self.world == 1:
            yield
        elif self.config.strategy == "fsdp":
            network.set_requires_gradient_sync(wanted)
            yield
        else:
            with contextlib.nullcontext() if wanted else network.no_sync():
                yield

    def _mask(self, rows: int, generator: torch.Generator) -> Tensor:
        objective = self.model.objective
        return time_mask(
            rows,
            self.model.frames(self.config.segment_samples),
            probability=objective.mask_prob,
            length=objective.mask_length,
            generator=generator,
        )

    def _losses(
        self, indices: list[int], mask: Tensor, generator: torch.Generator
    ) -> PretrainingLosses:
        objective = self.model.objective
        source, patients, segments = self.pairs.batch(indices)
        if self.network.training:
            source = mask_leads_at_random(source, objective.lead_mask_prob, generator)
        negatives = sample_negatives(
            len(mask), int(mask[0].sum()), objective.num_negatives, generator
        )
        with self._autocast():
            output = self.network(
                source.to(self.device),
                mask.to(self.device),
                negatives.to(self.device),
                temperature=objective.temperature(self.updates),
                generator=generator,
            )
        return pretraining_losses(
            output, objective, patients.to(self.device), segments.to(self.device)
        )

    def _autocast(self) -> Any:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _sum_over_workers(self, values: Tensor) -> Tensor:
        if self.world == 1:
            return values
        moved = values.to(self.device)
        torch.distributed.all_reduce(moved)
        return moved.cpu()

    def validate(self) -> dict[str, Any]:
        """Losses of the held-out pairs under masks that are the same each time."""
        if not self.validation:
            return {}
        self.network.eval()
        size = min(self.micro, len(self.validation))
        parts = [self.validation[i : i + size] for i in range(0, len(self.validation), size)]
        sums = torch.zeros(len(_PARTS) + 2, dtype=torch.float64)
        with torch.no_grad():
            for first in range(0, len(parts), self.world):
                index = first + self.rank
                # a worker without a batch still takes part in gathering sharded weights
                part = parts[min(index, len(parts) - 1)]
                generator = torch.Generator().manual_seed(self.config.seed * 17 + index)
                losses = self._losses(part, self._mask(2 * len(part), generator), generator)
                if index < len(parts):
                    sums += _numbers(losses)
        return _named("validation", self._sum_over_workers(sums))

    def states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Whole weights and optimiser state, on rank 0 only where they were sharded."""
        return (
            get_model_state_dict(self.network, options=_FULL),
            get_optimizer_state_dict(self.network, self.optimizer, options=_FULL),
        )

    def save(self, folder: Path, states: tuple[dict[str, Any], dict[str, Any]], epoch: int) -> None:
        """A fairseq-signals checkpoint, and what resuming needs (tensors and numbers)."""
        weights, optimizer = states
        export_pretraining_checkpoint(
            self.model, folder / CHECKPOINT_FILE, weights=weights, num_updates=self.updates
        )
        state = {"epoch": epoch, "updates": self.updates, "optimizer": optimizer}
        torch.save(state, folder / _TRAINER_FILE)


def _numbers(losses: PretrainingLosses) -> Tensor:
    values = [float(getattr(losses, name).detach()) for name in _PARTS]
    return torch.tensor([*values, float(losses.correct), losses.sample_size], dtype=torch.float64)


def _named(prefix: str, sums: Tensor) -> dict[str, float]:
    *losses, correct, frames = sums.tolist()
    named = {
        f"{prefix}_{'loss' if name == 'total' else name}": value / frames / math.log(2)
        for name, value in zip(_PARTS, losses, strict=True)
    }
    return {**named, f"{prefix}_accuracy": correct / frames}


def fresh_model(config: PretrainConfig) -> ECGPretrainingModel:
    """The network a job starts with: ``init``'s, or a new one."""
    torch.manual_seed(config.seed)
    if config.init is not None:
        return load_pretraining_checkpoint(
            config.init, num_heads=config.num_heads, objective=config.objective_config()
        )
    return ECGPretrainingModel(config.network_config(), config.objective_config())
