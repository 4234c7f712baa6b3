"""One worker's DeepSpeed engine, and the lower layers' states where those are kept."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecg_agent_ray.agent.chat_format import EncodedDialogue
from ecg_agent_ray.errors import ConfigError, TrainingError
from ecg_agent_ray.training.deepspeed_setup import build_ops
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_kernels import choose_kernels
from ecg_agent_ray.training.llm_lower import LowerStates, skip_lower_layers
from ecg_agent_ray.training.llm_model import (
    TargetLosses,
    build_model,
    first_trained_layer,
    restrict_vocabulary,
    target_losses,
)
from ecg_agent_ray.training.packing import Pack

__all__ = ["Place", "TrainedModel"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """A worker's place among all, and among those of its node."""

    rank: int
    world: int
    local_rank: int
    local_world: int


class TrainedModel:
    """The engine; :meth:`losses` scores a row from its tokens or from the kept lower states.

    Parameters
    ----------
    config
        Of the job.
    sequences
        All that rows are made of.
    place
        Of this worker.
    """

    def __init__(
        self, config: LLMFinetuneConfig, sequences: list[EncodedDialogue], place: Place
    ) -> None:
        import deepspeed
        import torch
        from transformers.integrations import HfDeepSpeedConfig

        self.config, self.place = config, place
        gpu = torch.cuda.is_available()
        torch.manual_seed(config.seed)
        build_ops()
        deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", verbose=False)
        kernels = choose_kernels(config, gpu=gpu)
        settings_of_engine = config.deepspeed(gpu=gpu, workers=place.world)
        # while it lives, transformers loads each weight into its partitions (ZeRO-3): a node never
        # holds one whole model for each of its workers
        partitioned = HfDeepSpeedConfig(settings_of_engine)
        model = build_model(config, kernels)
        del partitioned
        self.lower: LowerStates | None = None
        if config.cache_lower_layers:
            self.lower = self._kept_states(model, sequences, gpu=gpu)
        if config.loss_vocabulary is not None:
            restrict_vocabulary(model, config.loss_vocabulary, sequences)
        trained = [p for p in model.parameters() if p.requires_grad]
        settings = config.optimizer
        optimizer = torch.optim.AdamW(
            trained, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.engine: Any
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings_of_engine
        )
        self.device = self.engine.device
        self._dtype = getattr(torch, config.dtype)
        if place.rank == 0:
            for reason in kernels.reasons:
                logger.info("%s", reason)
            logger.info(
                "device %s, %s weights, ZeRO-%d, %d worker(s), %d row(s) of %d tokens a step, %s "
                "trainable parameters",
                self.device,
                config.dtype,
                config.distributed.zero_stage,
                place.world,
                config.batch.packs_per_step,
                config.batch.max_tokens,
                f"{sum(p.numel() for p in trained):,}",
            )

    def _kept_states(
        self, model: Any, sequences: list[EncodedDialogue], *, gpu: bool
    ) -> LowerStates:
        """Fill the file of lower states with this node's other workers; then drop those layers."""
        import torch

        first = first_trained_layer(model)
        if first == 0:
            raise ConfigError(
                "cache_lower_layers: the lowest layer is trained", hint="set lora.layers"
            )
        device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        model.to(device)
        lower = LowerStates(
            model,
            sequences,
            first,
            Path(self.config.output) / "lower-layers",
            dtype=self.config.cache_dtype,
            max_tokens=self.config.batch.max_tokens,
        )
        lower.fill(self.place.local_rank, self.place.local_world, device)
        if self.place.world > 1:
            torch.distributed.barrier()
        if lower.missing:
            raise TrainingError(f"{lower.missing} rows of lower states are missing")
        skip_lower_layers(model, first)
        return lower

    def losses(self, pack: Pack) -> TargetLosses:
        """Of a row's targets, with a gradient unless that is off."""
        states = None
        if self.lower is not None:
            states = self.lower.of(pack, self.device, self._dtype)
        return target_losses(
            self.engine, pack, self.device, self.config.action_weight, states=states
        )

    def scored(self, pack: Pack) -> TargetLosses:
        """The same in evaluation mode, without a gradient."""
        import torch

        self.engine.eval()
        try:
            with torch.no_grad():
                return self.losses(pack)
        finally:
            self.engine.train()

    def digest(self) -> str:
        """Of all weights here, and of the lower states that stand for the others."""
        import torch

        total = hashlib.sha256(self.lower.name.encode() if self.lower else b"")
        for name, parameter in self.engine.module.named_parameters():
            total.update(name.encode())
            total.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return total.hexdigest()
