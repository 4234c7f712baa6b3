"""What each Ray Train worker runs: LoRA on a chat model under DeepSpeed, resumable to the step.

Covers: ZeRO 0 to 3, packed rows, loss over assistant text only and weighted by target tokens across
workers, LoRA in the upper layers alone with the states of the lower ones kept, validation loss,
sharded checkpoints by steps and by time, resume at the last checkpoint's step with the same data
order, early stopping. QLoRA, flash attention and Liger's kernels are used where GPU and packages
allow them. Does not cover: tensor or sequence parallelism.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecg_agent_ray.agent.base_model import load_tokenizer
from ecg_agent_ray.agent.chat_format import ChatFormat, EncodedDialogue
from ecg_agent_ray.dialogue import read_dialogues
from ecg_agent_ray.errors import ConfigError, TrainingError
from ecg_agent_ray.training.deepspeed_setup import build_ops
from ecg_agent_ray.training.llm_checkpoint import (
    load_training_state,
    restore_engine,
    save_training_state,
)
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_data import encode_all, step_plan, training_data
from ecg_agent_ray.training.llm_kernels import choose_kernels
from ecg_agent_ray.training.llm_lower import LowerStates, skip_lower_layers
from ecg_agent_ray.training.llm_model import (
    TargetLosses,
    build_model,
    first_trained_layer,
    target_losses,
)
from ecg_agent_ray.training.llm_plan import flops_per_token
from ecg_agent_ray.training.llm_shapes import ModelShape, device_peak
from ecg_agent_ray.training.packing import Pack, make_packs

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
        self.context = ray.train.get_context()
        self.rank = self.context.get_world_rank()
        self.world = self.context.get_world_size()
        self.accumulation = -(-config.batch.packs_per_step // self.world)
        chat = ChatFormat(load_tokenizer(config.base_model))
        train = training_data(chat, config)
        self.validation: list[EncodedDialogue] = []
        if config.validation:
            self.validation = encode_all(chat, read_dialogues(config.validation))
        self.plan = step_plan(train, config)
        self.validation_packs = self._validation_packs(first=len(train.dialogues))
        self.lower: LowerStates | None = None
        self.total = config.steps or self.plan.total_steps(config.epochs)
        self.engine = self._start_engine([*train.dialogues, *self.validation])
        self.device = self.engine.device
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

    def _validation_packs(self, first: int) -> list[Pack]:
        """Rows whose pieces name dialogues from ``first`` on, after those of training."""
        batch = self.config.batch
        packs = make_packs(
            self.validation, batch.max_tokens, self.config.seed, share_prefix=batch.share_prefix
        )
        return [
            replace(
                pack, pieces=tuple(replace(p, dialogue=first + p.dialogue) for p in pack.pieces)
            )
            for pack in packs
        ]

    def _start_engine(self, dialogues: list[EncodedDialogue]) -> Any:
        import deepspeed
        import torch
        from transformers.integrations import HfDeepSpeedConfig

        gpu = torch.cuda.is_available()
        torch.manual_seed(self.config.seed)
        build_ops()
        deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", verbose=False)
        kernels = choose_kernels(self.config, gpu=gpu)
        settings_of_engine = self.config.deepspeed(gpu=gpu, workers=self.world)
        # while it lives, transformers loads each weight into its partitions (ZeRO-3): a node never
        # holds one whole model for each of its workers
        partitioned = HfDeepSpeedConfig(settings_of_engine)
        model = build_model(self.config, kernels)
        del partitioned
        if self.config.cache_lower_layers:
            self._cache_lower_layers(model, dialogues, gpu=gpu)
        trained = [p for p in model.parameters() if p.requires_grad]
        settings = self.config.optimizer
        optimizer = torch.optim.AdamW(
            trained, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings_of_engine
        )
        if self.rank == 0:
            for reason in kernels.reasons:
                logger.info("%s", reason)
            logger.info(
                "device %s, %s weights, ZeRO-%d, %d worker(s), %d row(s) of %d "
                "tokens a step, %d steps, %s trainable parameters",
                engine.device,
                self.config.dtype,
                self.config.distributed.zero_stage,
                self.world,
                self.config.batch.packs_per_step,
                self.config.batch.max_tokens,
                self.total,
                f"{sum(p.numel() for p in trained):,}",
            )
        return engine

    def _cache_lower_layers(
        self, model: Any, dialogues: list[EncodedDialogue], *, gpu: bool
    ) -> None:
        """Fill the file of lower states with this node's other workers; then drop those layers."""
        import torch
        import torch.distributed as dist

        first = first_trained_layer(model)
        if first == 0:
            raise ConfigError(
                "cache_lower_layers: the lowest layer is trained", hint="set lora.layers"
            )
        device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        model.to(device)
        self.lower = LowerStates(
            model,
            dialogues,
            first,
            self.output / "lower-layers",
            dtype=self.config.cache_dtype,
            max_tokens=self.config.batch.max_tokens,
        )
        self.lower.fill(self.context.get_local_rank(), self.context.get_local_world_size(), device)
        if self.world > 1:
            dist.barrier()
        if self.lower.missing:
            raise TrainingError(f"{self.lower.missing} rows of lower states are missing")
        skip_lower_layers(model, first)

    def _losses(self, pack: Pack) -> TargetLosses:
        import torch

        states = None
        if self.lower is not None:
            states = self.lower.of(pack, self.device, getattr(torch, self.config.dtype))
        return target_losses(
            self.engine, pack, self.device, self.config.action_weight, states=states
        )

    def run(self) -> None:
        first = self._resume()
        if self._out_of_patience():
            first = self.total
        for step, packs in enumerate(self.plan.steps(first, self.total), start=first):
            metrics = self._step(step, packs)
            done = step + 1
            saving = metrics.pop("saving") or self._due(done, self.config.checkpoint_every)
            # a checkpoint is always judged, and a better loss always kept
            if self.validation and (saving or self._due(done, self.validate_every)):
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
        weight = sum(pack.total_weight(self.config.action_weight) for pack in packs)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step, self.total)
        # dropout must not depend on where a job was resumed
        torch.manual_seed((self.config.seed << 40) + step * self.world + self.rank)
        total_loss, hits, actions = 0.0, 0, 0
        for pack, counted in rows:
            found = self._losses(pack)
            loss = found.total * counted
            # DeepSpeed averages over workers and accumulation; this makes it a mean over targets
            self.engine.backward(loss * (self.world * self.accumulation / weight))
            self.engine.step()
            total_loss += loss.item()
            if counted:
                hits, actions = (
                    sum(pair) for pair in zip((hits, actions), found.action_hits, strict=True)
                )
        seconds = time.perf_counter() - start
        tokens = sum(len(pack.input_ids) for pack in packs)
        self.tokens_seen += tokens
        # the clocks of workers differ, their decisions may not: rank 0's counts
        old = self.rank == 0 and self._old_checkpoint()
        loss_sum, hits_sum, actions_sum, saving = self._sums(total_loss, hits, actions, old)
        metrics = {
            **self._utilisation(tokens / seconds),
            "global_step": step + 1,
            "loss": loss_sum / weight,
            "learning_rate": learning_rate(self.config, step, self.total),
            "tokens_per_second": tokens / seconds,
            "target_tokens": sum(pack.n_targets for pack in packs),
            "tokens_seen": self.tokens_seen,
            # of this process: what lies between two steps (reports, checkpoints, validation) counts
            "elapsed_seconds": time.perf_counter() - self.started,
            "saving": bool(saving),
        }
        if actions_sum:
            metrics["action_token_accuracy"] = hits_sum / actions_sum
        return metrics

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

    def _sums(self, *values: float) -> list[float]:
        """Each value summed over the workers."""
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def _validate(self) -> dict[str, float]:
        """Mean loss over all validation targets, rows shared out over the workers."""
        import torch

        self.engine.eval()
        packs = self.validation_packs
        loss, hits, actions = 0.0, 0, 0
        with torch.no_grad():
            # under ZeRO-3 every worker must make the same number of forward passes
            for index in range(0, len(packs), self.world):
                own = index + self.rank
                found = self._losses(packs[min(own, len(packs) - 1)])
                if own < len(packs):
                    loss += float(found.losses.sum())
                    hits, actions = (
                        sum(pair) for pair in zip((hits, actions), found.action_hits, strict=True)
                    )
        self.engine.train()
        loss, hits_sum, actions_sum = self._sums(loss, hits, actions)
        metrics = {"validation_loss": loss / sum(pack.n_targets for pack in packs)}
        if actions_sum:
            metrics["validation_action_token_accuracy"] = hits_sum / actions_sum
        return metrics

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
