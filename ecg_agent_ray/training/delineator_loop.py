"""The delineation network's training loop: what every Ray Train worker runs.

Annotated examples give cross-entropy. Examples without annotations are judged by a running mean of
the network's own weights (mean teacher, Tarvainen & Valpola 2017, arXiv 1703.01780) on the clean
signal, which the network has to match on the same signal with noise and at another pace; where
the rhythm has no P waves, the teacher's P goes to "none". The mean is also what is kept in the end.

Every step draws from a generator of its own (seed, step, worker), so that a resumed run goes on as
the lost one would have.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ecg_agent_ray.training.delineator_augment import (
    EXAMPLE_SAMPLES,
    annotated_example,
    free_example,
)
from ecg_agent_ray.training.delineator_config import DelineatorTrainConfig
from ecg_agent_ray.training.delineator_data import (
    AnnotatedLead,
    FreeLead,
    held_out,
    read_annotated,
    read_unannotated,
)
from ecg_agent_ray.training.delineator_network import WaveUNet

__all__ = ["MEAN_FILE", "train_loop"]

logger = logging.getLogger(__name__)

MEAN_FILE = "network.pt"
_STATE_FILE = "trainer.pt"
# the teacher is heard once it has learnt something
_FREE_FROM, _FREE_RAMP = 200, 400
_PACE_SPREAD = 0.15
_PACE_MULTIPLE, _EDGE = 32, 40


class _Batches(Dataset[tuple[Tensor, ...]]):
    """One batch for each step, made from that step's own generator."""

    def __init__(self, config: DelineatorTrainConfig, rank: int) -> None:
        self.config, self.rank = config, rank
        self.sources = [read_annotated(source, config.hold_out) for source in config.annotated]
        shares = np.array([source.share for source in config.annotated])
        self.shares = shares / shares.sum()
        skip = frozenset(
            record.record_id
            for source in config.annotated
            for record in held_out(source, config.hold_out)
        )
        self.free = [lead for s in config.unannotated for lead in read_unannotated(s, skip)]

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng([self.config.seed, step, self.rank])
        marked = [annotated_example(self._lead(rng), rng) for _ in range(self.config.batch_size)]
        batch = [torch.from_numpy(np.stack(column)) for column in zip(*marked, strict=True)]
        if not self.free or not self.config.unannotated_batch_size:
            return tuple(batch)
        drawn = rng.integers(len(self.free), size=self.config.unannotated_batch_size)
        leads: list[FreeLead] = [self.free[i] for i in drawn]
        pairs = [free_example(lead, rng) for lead in leads]
        batch += [torch.from_numpy(np.stack(column)) for column in zip(*pairs, strict=True)]
        pace = math.exp(rng.normal(0, _PACE_SPREAD))
        no_p = torch.tensor([float(lead.no_p) for lead in leads])
        return (*batch, no_p, torch.tensor(pace))

    def _lead(self, rng: np.random.Generator) -> AnnotatedLead:
        source = self.sources[rng.choice(len(self.sources), p=self.shares)]
        return source[rng.integers(len(source))]


def train_loop(settings: dict[str, Any]) -> None:
    """Ray Train's entry; ``settings["config"]`` is a dict of :class:`DelineatorTrainConfig`."""
    import ray.train
    import ray.train.torch as ray_torch

    config = DelineatorTrainConfig.model_validate(settings["config"])
    torch.set_num_threads(config.distributed.threads_per_worker)
    context = ray.train.get_context()
    run = _Run(config, ray_torch.get_device())
    resumed = ray.train.get_checkpoint()
    if resumed is not None:
        with resumed.as_directory() as directory:
            run.restore(Path(directory))
    network: nn.Module = run.network
    if context.get_world_size() > 1:
        network = ray_torch.prepare_model(network)
    data = _Batches(config, context.get_world_rank())
    batches = DataLoader(
        data, batch_size=None, sampler=range(run.step, config.steps), num_workers=1
    )
    losses, started = [], time.perf_counter()
    for batch in batches:
        losses.append(run.train_step(network, batch))
        if run.step % config.checkpoint_every and run.step != config.steps:
            continue
        sums = torch.tensor(losses, device=run.device).mean(dim=0)
        if context.get_world_size() > 1:
            torch.distributed.all_reduce(sums)
            sums /= context.get_world_size()
        metrics = {
            "global_step": run.step,
            "train_loss": float(sums[0]),
            "consistency_loss": float(sums[1]),
            "lr": run.schedule.get_last_lr()[0],
            "seconds_per_step": (time.perf_counter() - started) / len(losses),
        }
        losses, started = [], time.perf_counter()
        if context.get_world_rank() == 0:
            logger.info("%s", metrics)
            with tempfile.TemporaryDirectory() as folder:
                run.save(Path(folder))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(metrics, checkpoint=checkpoint)
        else:
            ray.train.report(metrics)


class _Run:
    """Network, its mean and the optimiser; the same on all ranks."""

    def __init__(self, config: DelineatorTrainConfig, device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        torch.manual_seed(config.seed)
        self.network = WaveUNet(config.widths, config.dropout).to(device)
        self.mean = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_share)

    def _lr_share(self, step: int) -> float:
        warm = min(1.0, (step + 1) / (self.config.warmup_steps + 1))
        return warm * 0.5 * (1 + math.cos(math.pi * min(step / self.config.steps, 1.0)))

    def train_step(self, network: nn.Module, batch: tuple[Tensor, ...]) -> tuple[float, float]:
        """One optimiser step; the two losses of this worker's examples."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        leads, target, known, *free = (part.to(self.device) for part in batch)
        inputs, free_target, free_known = leads[:, None], None, None
        if free:
            clean, noisy, no_p, pace = free
            free_target = self._teacher(clean, no_p)
            noisy, free_target, free_known = _at_pace(noisy[:, None], free_target, float(pace))
            inputs = torch.cat([inputs, noisy])
        network.train()
        with self._autocast():
            logits = network(inputs)
        entropy = -torch.log_softmax(logits.float(), dim=1)
        n = len(leads)
        loss = ((target * entropy[:n]).sum(1) * known).sum() / known.sum().clamp(min=1)
        consistency = torch.zeros((), device=self.device)
        if free_target is not None and free_known is not None:
            consistency = ((free_target * entropy[n:]).sum(1) * free_known).sum()
            consistency = consistency / free_known.sum().clamp(min=1)
        ramp = min(1.0, max(0.0, (self.step - _FREE_FROM) / _FREE_RAMP))
        (loss + self.config.unannotated_weight * ramp * consistency).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self._average()
        self.step += 1
        return float(loss.detach()), float(consistency.detach())

    @torch.no_grad()
    def _teacher(self, clean: Tensor, no_p: Tensor) -> Tensor:
        with self._autocast():
            logits = self.mean(clean[:, None])
        target = torch.softmax(logits.float(), dim=1)
        target[:, 0] += target[:, 1] * no_p[:, None]
        target[:, 1] *= 1 - no_p[:, None]
        return target

    @torch.no_grad()
    def _average(self) -> None:
        # a short memory at first, when yesterday's weights are worth little
        decay = min(self.config.averaging, (self.step + 1) / (self.step + 10))
        mean, now = self.mean.state_dict(), self.network.state_dict()
        for name, value in mean.items():
            if value.dtype.is_floating_point:
                value.lerp_(now[name], 1 - decay)
            else:
                value.copy_(now[name])

    def _autocast(self) -> Any:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def save(self, folder: Path) -> None:
        torch.save(self.mean.state_dict(), folder / MEAN_FILE)
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
        }
        torch.save(state, folder / _STATE_FILE)

    def restore(self, folder: Path) -> None:
        def load(name: str) -> Any:
            return torch.load(folder / name, map_location=self.device, weights_only=True)

        state = load(_STATE_FILE)
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.mean.load_state_dict(load(MEAN_FILE))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self._lr_share(self.step)


def _at_pace(noisy: Tensor, target: Tensor, pace: float) -> tuple[Tensor, Tensor, Tensor]:
    """Input and target stretched alike, cut or padded to the example's length, and where known."""
    samples = int(EXAMPLE_SAMPLES * pace) // _PACE_MULTIPLE * _PACE_MULTIPLE
    stretched = [
        F.interpolate(part, size=samples, mode="linear")[..., :EXAMPLE_SAMPLES]
        for part in (noisy, target)
    ]
    there = stretched[0].shape[-1]
    padded = [F.pad(part, (0, EXAMPLE_SAMPLES - there)) for part in stretched]
    known = torch.zeros(len(noisy), EXAMPLE_SAMPLES, device=noisy.device)
    known[:, _EDGE : there - _EDGE] = 1
    return padded[0], padded[1], known
