"""What each Ray Train worker runs: LoRA on a chat model under DeepSpeed, resumable to the step.

Covers: ZeRO 0 to 3, packed rows, loss over assistant text only and weighted by target tokens across
workers, preference pairs, LoRA in the upper layers alone with the states of the lower ones kept,
validation loss, sharded checkpoints by steps and by time, resume at the last checkpoint's step with
the same data order, early stopping. QLoRA, flash attention and Liger's kernels are used where GPU
and packages allow them. Does not cover: tensor or sequence parallelism.
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

from ecg_agent_ray.agent.base_model import load_tokenizer
from ecg_agent_ray.agent.chat_format import ChatFormat
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.llm_checkpoint import (
    load_training_state,
    restore_engine,
    save_training_state,
)
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_engine import Place, TrainedModel
from ecg_agent_ray.training.llm_objectives import Share, load_objective
from ecg_agent_ray.training.llm_plan import flops_per_token
from ecg_agent_ray.training.llm_shapes import ModelShape, device_peak
from ecg_agent_ray.training.packing import Pack

__all__ = ["STEPS_FILE", "learning_rate", "train_worker"]

STEPS_FILE = "steps.jsonl"
"""In the job's output folder: what each step reported, one JSON object a line."""

logger = logging.getLogger(__name__)


def train_worker(values: dict[str, Any]) -> None:
    """Entry of a worker; ``values`` is a dumped :class:`LLMFinetuneConfig`."""
    LLMWorker(LLMFinetuneConfig.model_validate(values)).run()


def learning_rate(config: LLMFinetuneConfig, step: int, total: int) -> float:
    """Linear warm-up, then cosine to ``min_lr_share`` of the peak at step ``total``."""
    schedule = config.optimizer
    if step < schedule.warmup_steps:
        return schedule.lr * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, total - schedule.warmup_steps)
    floor = schedule.min_lr_share
    return schedule.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1, progress))))


class LLMWorker:
    """One worker's state: model engine, data plan, and where in the plan it is."""

    def __init__(self, config: LLMFinetuneConfig) -> None:
        import ray.train

        self.config = config
        self.output = Path(config.output)
        self.output.mkdir(parents=True, exist_ok=True)
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.accumulation = -(-config.batch.packs_per_step // self.world)
        self.objective = load_objective(config, ChatFormat(load_tokenizer(config.base_model)))
        self.total = config.steps or self.objective.plan.total_steps(config.epochs)
        self.model = TrainedModel(
            config,
            self.objective.sequences,
            Place(self.rank, self.world, context.get_local_rank(), context.get_local_world_size()),
        )
        self.engine, self.device = self.model.engine, self.model.device
        whole = config.distributed.zero_stage < 3
        self.objective.prepare(
            self.model.scored,
            Share(
                self.rank, self.world, self._sums, self.output, self.model.digest if whole else None
            ),
        )
        self.tokens_seen = 0
        self.started = self.saved_at = time.perf_counter()
        self.best = math.inf
        self.without_gain = 0
        self.validate_every = self._validation_cadence()
        self.flops_per_token = self._flops_per_token()

    def _validation_cadence(self) -> int:
        """Often enough that early stopping can happen before the job's end."""
        every, patience = self.config.validate_every, self.config.early_stopping_patience
        if patience and self.total // every < patience + 1:
            every = max(1, self.total // (patience + 2))
            if self.rank == 0:
                logger.info(
                    "validation every %d steps instead of %d: a patience of %d could not run out "
                    "in %d steps",
                    every,
                    self.config.validate_every,
                    patience,
                    self.total,
                )
        return every

    def run(self) -> None:
        first = self._resume()
        if self._out_of_patience():
            first = self.total
        for step, packs in enumerate(self.objective.plan.steps(first, self.total), start=first):
            metrics = self._step(step, packs)
            done = step + 1
            saving = metrics.pop("saving") or self._due(done, self.config.checkpoint_every)
            # a checkpoint is always judged, and a better loss always kept
            if self.objective.validation and (saving or self._due(done, self.validate_every)):
                metrics |= self._validate()
                saving = self._judge(metrics["validation_loss"]) or saving
            stopping = self._out_of_patience()
            self._report(metrics, checkpoint=saving or stopping)
            if stopping:
                if self.rank == 0:
                    logger.info(
                        "stopped early after step %d: no lower validation loss in %d validations",
                        done,
                        self.without_gain,
                    )
                break

    def _judge(self, loss: float) -> bool:
        """Whether this is the lowest validation loss so far; the same on every worker."""
        better = loss < self.best
        self.without_gain = 0 if better else self.without_gain + 1
        self.best = min(self.best, loss)
        return better

    def _out_of_patience(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.without_gain >= patience

    def _due(self, done: int, every: int | None) -> bool:
        return done == self.total or (every is not None and done % every == 0)

    def _old_checkpoint(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return minutes is not None and time.perf_counter() - self.saved_at >= 60 * minutes

    def _step(self, step: int, packs: list[Pack]) -> dict[str, Any]:
        import torch

        start = time.perf_counter()
        mine = packs[self.rank :: self.world]
        # all workers must take part in every backward pass; the odd ones out count nothing
        spare = self.accumulation - len(mine)
        rows = [(pack, 1.0) for pack in mine] + [(packs[0], 0.0)] * spare
        weight = sum(self.objective.weight(pack) for pack in packs)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step, self.total)
        # dropout must not depend on where a job was resumed
        torch.manual_seed((self.config.seed << 40) + step * self.world + self.rank)
        sums = {"total": 0.0}
        for pack, counted in rows:
            found = self.objective.row(self.model.losses(pack), pack)
            # DeepSpeed averages over workers and accumulation; this makes it a mean over all rows
            self.engine.backward(found.loss * (counted * self.world * self.accumulation / weight))
            self.engine.step()
            _add(sums, {"total": found.loss.item(), **found.sums}, counted)
        seconds = time.perf_counter() - start
        tokens = sum(len(pack.input_ids) for pack in packs)
        self.tokens_seen += tokens
        # the clocks of workers differ, their decisions may not: rank 0's counts
        sums["saving"] = float(self.rank == 0 and self._old_checkpoint())
        sums = self._over_workers(sums)
        saving, loss = bool(sums.pop("saving")), sums.pop("total") / weight
        report = self.objective.report(sums)
        del report["plain_loss"]
        return {
            **self._utilisation(tokens / seconds),
            "global_step": step + 1,
            "loss": loss,
            **report,
            "learning_rate": learning_rate(self.config, step, self.total),
            "tokens_per_second": tokens / seconds,
            "target_tokens": sum(pack.n_targets for pack in packs),
            "tokens_seen": self.tokens_seen,
            # of this process: what lies between two steps (reports, checkpoints, validation) counts
            "elapsed_seconds": time.perf_counter() - self.started,
            "saving": saving,
        }

    def _flops_per_token(self) -> float | None:
        """None for a model that is no Llama-like decoder."""
        try:
            shape = ModelShape.from_config(self.engine.module.config.to_dict())
            return flops_per_token(shape, self.config)
        except ConfigError:
            return None

    def _utilisation(self, tokens_per_second: float) -> dict[str, float]:
        """Model FLOP/s of all workers; on GPUs also their share of the peak and peak memory."""
        import torch

        metrics: dict[str, float] = {}
        if self.flops_per_token is not None:
            metrics["model_flops_per_second"] = tokens_per_second * self.flops_per_token
        if torch.cuda.is_available():
            metrics["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            peak = device_peak(torch.cuda.get_device_name())
            if peak and self.flops_per_token is not None:
                metrics["mfu"] = metrics["model_flops_per_second"] / (peak * self.world)
        return metrics

    def _sums(self, values: list[float]) -> list[float]:
        """Each value summed over the workers."""
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def _over_workers(self, sums: dict[str, float]) -> dict[str, float]:
        return dict(zip(sums, self._sums([*sums.values()]), strict=True))

    def _validate(self) -> dict[str, float]:
        """Means over all validation data, rows shared out over the workers."""
        packs, sums = self.objective.validation, dict[str, float]()
        # under ZeRO-3 every worker must make the same number of forward passes
        for index in range(0, len(packs), self.world):
            own = index + self.rank
            pack = packs[min(own, len(packs) - 1)]
            found = self.objective.row(self.model.scored(pack), pack)
            _add(sums, found.sums, float(own < len(packs)))
        report = self.objective.report(self._over_workers(sums))
        loss = report.pop("plain_loss")
        return {"validation_loss": loss, **{f"validation_{k}": v for k, v in report.items()}}

    def _report(self, metrics: dict[str, Any], *, checkpoint: bool) -> None:
        import ray.train

        if self.rank == 0:
            with (self.output / STEPS_FILE).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(metrics) + "\n")
        if not checkpoint:
            ray.train.report(metrics)
            return
        self.saved_at = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="llm-checkpoint-") as folder:
            self._save(Path(folder), metrics["global_step"])
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _save(self, folder: Path, step: int) -> None:
        """Each worker writes its own shard; rank 0 also writes the adapter in peft's own form."""
        progress = {
            "step": step,
            "tokens_seen": self.tokens_seen,
            # JSON has no infinity
            "best": self.best if math.isfinite(self.best) else None,
            "without_gain": self.without_gain,
        }
        save_training_state(
            self.engine, folder / "state", progress, rank=self.rank, world=self.world
        )
        with self._gathered():
            if self.rank == 0:
                self.engine.module.save_pretrained(str(folder / "adapter"))

    @contextlib.contextmanager
    def _gathered(self) -> Iterator[None]:
        """Under ZeRO-3 a parameter is empty on each worker until it is gathered."""
        if self.config.distributed.zero_stage < 3:
            yield
            return
        import deepspeed

        trained = [p for p in self.engine.module.parameters() if p.requires_grad]
        with deepspeed.zero.GatheredParameters(trained, modifier_rank=None):
            yield

    def _resume(self) -> int:
        """Load the checkpoint Ray Train hands over after a restart; 0 when there is none."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            tensors, progress = load_training_state(Path(folder) / "state")
        restore_engine(self.engine, tensors, progress)
        self.tokens_seen = int(progress["tokens_seen"])
        self.best = math.inf if progress["best"] is None else float(progress["best"])
        self.without_gain = int(progress["without_gain"])
        logger.info(
            "resumed after step %d, %d workers then, %d now",
            progress["step"],
            progress["shards"],
            self.world,
        )
        return int(progress["step"])


def _add(sums: dict[str, float], more: dict[str, float], times: float) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + times * value
