"""What each Ray Train worker runs: LoRA on a chat model under DeepSpeed, resumable to the step.

Covers: ZeRO 0 to 3, packed rows, loss over assistant text only and weighted by target tokens across
workers, validation loss, sharded checkpoints, resume at the last reported step with the same data
order, early stopping. QLoRA, flash attention and Liger's kernels are used where GPU and packages
allow them. Does not cover: tensor or sequence parallelism.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecg_agent_ray.agent.base_model import load_base_model, load_tokenizer
from ecg_agent_ray.agent.chat_format import IGNORE_INDEX, ChatFormat, EncodedDialogue
from ecg_agent_ray.dialogue import read_dialogues
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.deepspeed_setup import build_ops
from ecg_agent_ray.training.llm_checkpoint import (
    load_training_state,
    restore_engine,
    save_training_state,
)
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_data import encode_all
from ecg_agent_ray.training.llm_kernels import Kernels, choose_kernels
from ecg_agent_ray.training.llm_plan import flops_per_token
from ecg_agent_ray.training.llm_shapes import ModelShape, device_peak
from ecg_agent_ray.training.packing import Pack, StepPlan, make_packs

__all__ = ["build_model", "learning_rate", "sequence_loss", "train_worker"]

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


def build_model(config: LLMFinetuneConfig, kernels: Kernels | None = None) -> Any:
    """Base model with a new LoRA adapter, or the configured one made trainable."""
    from peft import LoraConfig, PeftModel, get_peft_model

    kernels = kernels or choose_kernels(config, gpu=False)
    base = load_base_model(config.base_model, dtype=config.dtype, **kernels.load_options())
    base.config.use_cache = False
    if kernels.liger:
        kernels.apply_liger(base)
    if config.gradient_checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    if config.adapter:
        return PeftModel.from_pretrained(base, config.adapter, is_trainable=True)
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=list(config.lora.target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora)


def sequence_loss(model: Any, pack: Pack, device: Any, action_weight: float = 1.0) -> Any:
    """Weighted cross-entropy summed over a pack's targets (a scalar tensor).

    Logits are computed at target positions only: with a vocabulary of 49 thousand they are a fifth
    of a small model's work. Without an attention mask transformers builds a block-diagonal one from
    the position ids, so dialogues in a row do not see each other.
    """
    import torch
    from torch.nn.functional import cross_entropy

    labels = torch.tensor(pack.labels, device=device)
    positions = torch.tensor(pack.position_ids, device=device)
    targets = ((labels != IGNORE_INDEX) & (positions > 0)).nonzero().squeeze(1)
    logits = model(
        input_ids=torch.tensor([pack.input_ids], device=device),
        position_ids=positions.unsqueeze(0),
        logits_to_keep=targets - 1,
        use_cache=False,
    ).logits
    losses = cross_entropy(logits[0].float(), labels[targets], reduction="none")
    actions = torch.tensor(pack.is_action, device=device)[targets]
    return (losses * (1 + (action_weight - 1) * actions)).sum()


class LLMWorker:
    """One worker's state: model engine, data plan, and where in the plan it is."""

    def __init__(self, config: LLMFinetuneConfig) -> None:
        import ray.train

        self.config = config
        self.context = ray.train.get_context()
        self.rank = self.context.get_world_rank()
        self.world = self.context.get_world_size()
        self.accumulation = -(-config.batch.packs_per_step // self.world)
        chat = ChatFormat(load_tokenizer(config.base_model))
        train = encode_all(chat, read_dialogues(config.train))
        self.validation: list[EncodedDialogue] = []
        if config.validation:
            self.validation = encode_all(chat, read_dialogues(config.validation))
        self.plan = StepPlan(
            train,
            max_tokens=config.batch.max_tokens,
            packs_per_step=config.batch.packs_per_step,
            seed=config.seed,
            packing=config.batch.packing,
        )
        self.total = config.steps or self.plan.total_steps(config.epochs)
        self.engine = self._start_engine()
        self.device = self.engine.device
        self.tokens_seen = 0
        self.started = time.perf_counter()
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

    def _start_engine(self) -> Any:
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

    def run(self) -> None:
        first = self._resume()
        if self._out_of_patience():
            first = self.total
        for step, packs in enumerate(self.plan.steps(first, self.total), start=first):
            metrics = self._step(step, packs)
            done = step + 1
            saving = self._due(done, self.config.checkpoint_every)
            # a checkpoint is always judged, and a better loss always kept
            if self.validation and (saving or self._due(done, self.validate_every)):
                metrics["validation_loss"] = self._validate()
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

    def _due(self, done: int, every: int) -> bool:
        return done == self.total or done % every == 0

    def _step(self, step: int, packs: list[Pack]) -> dict[str, Any]:
        start = time.perf_counter()
        mine = packs[self.rank :: self.world]
        # all workers must take part in every backward pass; the odd ones out count nothing
        spare = self.accumulation - len(mine)
        rows = [(pack, 1.0) for pack in mine] + [(packs[0], 0.0)] * spare
        weight = sum(pack.total_weight(self.config.action_weight) for pack in packs)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step, self.total)
        total_loss = 0.0
        for pack, counted in rows:
            loss = sequence_loss(self.engine, pack, self.device, self.config.action_weight)
            loss = loss * counted
            # DeepSpeed averages over workers and accumulation; this makes it a mean over targets
            self.engine.backward(loss * (self.world * self.accumulation / weight))
            self.engine.step()
            total_loss += loss.item()
        seconds = time.perf_counter() - start
        tokens = sum(len(pack.input_ids) for pack in packs)
        self.tokens_seen += tokens
        return {
            **self._utilisation(tokens / seconds),
            "global_step": step + 1,
            "loss": self._sum_over_workers(total_loss) / weight,
            "learning_rate": learning_rate(self.config, step, self.total),
            "tokens_per_second": tokens / seconds,
            "target_tokens": sum(pack.n_targets for pack in packs),
            "tokens_seen": self.tokens_seen,
            # of this process: what lies between two steps (reports, checkpoints, validation) counts
            "elapsed_seconds": time.perf_counter() - self.started,
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

    def _sum_over_workers(self, value: float) -> float:
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.all_reduce(tensor)
        return float(tensor)

    def _validate(self) -> float:
        """Mean loss over all validation targets, rows shared out over the workers."""
        import torch

        self.engine.eval()
        packs = make_packs(self.validation, self.config.batch.max_tokens, self.config.seed)
        loss = 0.0
        with torch.no_grad():
            # under ZeRO-3 every worker must make the same number of forward passes
            for index in range(0, len(packs), self.world):
                own = index + self.rank
                value = sequence_loss(self.engine, packs[min(own, len(packs) - 1)], self.device)
                loss += value.item() if own < len(packs) else 0.0
        self.engine.train()
        return self._sum_over_workers(loss) / sum(pack.n_targets for pack in packs)

    def _report(self, metrics: dict[str, Any], *, checkpoint: bool) -> None:
        import ray.train

        if not checkpoint:
            ray.train.report(metrics)
            return
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
