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
from ecg_agent_ray.training.strategies import report, share

__all__ = ["CHECKPOINT_FILE", "PROGRESS_FILE", "fresh_model", "train_loop"]

logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "checkpoint_last.pt"
PROGRESS_FILE = "progress.json"
_TRAINER_FILE = "trainer.pt"
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
        with tempfile.TemporaryDirectory() as name:
            trainer.save(Path(name), epoch + 1)
            if trainer.rank == 0:
                logger.info("%s", json.dumps(metrics))
                Path(name, PROGRESS_FILE).write_text(json.dumps(history), encoding="utf-8")
            report(metrics, Path(name))


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
        )
        if self.model.feature_grad_mult == 0:
            # DDP would wait for gradients that never come
            self.model.feature_extractor.requires_grad_(False)
        options = config.optimizer
        self.shared = share(
            self.model,
            lambda parameters: torch.optim.AdamW(
                parameters,
                lr=options.lr,
                betas=options.betas,
                eps=options.eps,
                weight_decay=options.weight_decay,
            ),
            config,
            world=self.world,
            device=self.device,
            micro_steps=self.local // self.micro,
            max_grad_norm=options.max_grad_norm,
        )
        self.network = self.shared.network
        if resumed is not None:
            state = torch.load(resumed / _TRAINER_FILE, map_location="cpu", weights_only=True)
            self.epoch, self.updates = state["epoch"], state["updates"]
            self.shared.restore(resumed)

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
            "lr": self._lr(self.updates - 1),
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
        sums = torch.zeros(len(_PARTS) + 2, dtype=torch.float64)
        for index, (part, mask) in enumerate(zip(parts, masks, strict=True)):
            with self.shared.accumulating(last=index + 1 == len(parts)):
                losses = self._losses(part, mask, generator)
                # gradients are averaged over workers; the loss is a sum over them
                self.shared.backward(losses.total * (self.world / frames))
            sums += _numbers(losses)
        self.shared.step(self._lr(self.updates))
        self.updates += 1
        return sums

    def _lr(self, update: int) -> float:
        options = self.config.optimizer
        return options.lr * min(1.0, (update + 1) / (options.warmup_updates + 1))

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
        with self.shared.autocast():
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

    def save(self, folder: Path, epoch: int) -> None:
        """A fairseq-signals checkpoint, and what resuming needs (tensors and numbers); every worker
        calls this, since all take part in gathering shards."""
        weights = self.shared.weights()
        self.shared.save(folder, self.rank)
        if self.rank == 0:
            export_pretraining_checkpoint(
                self.model, folder / CHECKPOINT_FILE, weights=weights, num_updates=self.updates
            )
            torch.save({"epoch": epoch, "updates": self.updates}, folder / _TRAINER_FILE)


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
