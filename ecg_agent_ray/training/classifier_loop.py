"""The classifier's training loop: what every Ray Train worker runs.

The loss of a step is the mean over the assessed cells of the *global* batch, and records are dealt
to workers by their place in it, so that the loss curve does not depend on the number of workers.
All randomness is keyed by seed, epoch and record: a resumed run goes on exactly where the lost one
was.

Rank 0 writes the checkpoint (under DDP all ranks hold the same weights); every rank reports, since
a report is a barrier.
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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ecg_agent_ray import ecg
from ecg_agent_ray.classifier.augmentation import Augmentation, augment, mask_leads
from ecg_agent_ray.classifier.bundle import Classifier, load_classifier
from ecg_agent_ray.classifier.dataset import LabelledRecord, label_matrix
from ecg_agent_ray.classifier.labels import LEAD_CONFIGURATIONS, configuration_labels
from ecg_agent_ray.classifier.metrics import classifier_metrics
from ecg_agent_ray.classifier.preprocessing import prepare
from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig

__all__ = ["VALIDATION_FILE", "train_loop"]

logger = logging.getLogger(__name__)

VALIDATION_FILE = "validation.npz"
_TRAINER_FILE = "trainer.pt"
_CACHED_RECORDS = 4000
"""Below this many records (1 GB) the signals stay in memory; above they are read when used."""


class _Signals:
    """First window of each record, (12, 5000); the rest of a longer record is not trained on."""

    def __init__(self, records: list[LabelledRecord]) -> None:
        self.records = records
        self._cache: dict[int, Tensor] = {}

    def __getitem__(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index]
        windows = prepare(ecg.read(self.records[index].path)).windows
        signal = torch.from_numpy(windows[0])
        if len(self.records) <= _CACHED_RECORDS:
            self._cache[index] = signal
        return signal

    def batch(self, indices: list[int]) -> Tensor:
        return torch.stack([self[index] for index in indices])


def train_loop(settings: dict[str, Any]) -> None:
    """Ray Train's entry. ``settings``: ``config`` (dict of :class:`ClassifierFinetuneConfig`),
    ``start`` (folder of the classifier to train), ``train`` and ``validation`` records,
    ``configurations`` to validate in."""
    import ray.train
    import ray.train.torch as ray_torch

    config = ClassifierFinetuneConfig.model_validate(settings["config"])
    torch.set_num_threads(config.distributed.threads_per_worker)
    torch.manual_seed(config.seed)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray_torch.get_device()
    classifier = load_classifier(settings["start"])
    run = _Run(config, classifier, settings["train"], settings["validation"], rank, world, device)
    resumed = ray.train.get_checkpoint()
    if resumed is not None:
        with resumed.as_directory() as directory:
            run.restore(Path(directory))
    network = ray_torch.prepare_model(run.network) if world > 1 else run.network
    if rank == 0:
        run.announce()
    for epoch in range(run.epoch, config.epochs):
        started = time.perf_counter()
        losses = run.train_epoch(network, epoch)
        seconds = time.perf_counter() - started
        metrics: dict[str, Any] = {
            "epoch": epoch + 1,
            "global_step": (epoch + 1) * run.steps_per_epoch,
            "train_loss": float(np.mean(losses)),
            "lr": run.schedule.get_last_lr()[0],
            "records_per_s": len(run.train) / seconds,
        }
        logits = {leads: run.validate(leads) for leads in settings["configurations"]}
        metrics |= run.validation_metrics(logits)
        if rank == 0:
            logger.info("%s", json.dumps({k: v for k, v in metrics.items() if v is not None}))
            with tempfile.TemporaryDirectory() as folder:
                run.save(Path(folder), epoch + 1, metrics, logits)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(metrics, checkpoint=checkpoint)
        else:
            ray.train.report(metrics)


class _Run:
    """State of one worker's run; the same on all ranks but for the records each takes."""

    def __init__(
        self,
        config: ClassifierFinetuneConfig,
        classifier: Classifier,
        train: list[LabelledRecord],
        validation: list[LabelledRecord],
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        self.config, self.classifier = config, classifier
        self.rank, self.world, self.device = rank, world, device
        self.network = classifier.network.to(device)
        self.train, self.validation = train, validation
        self.train_signals, self.validation_signals = _Signals(train), _Signals(validation)
        self.targets, self.mask = _tensors(train, classifier)
        self.validation_targets, self.validation_mask = label_matrix(
            validation, classifier.labels, classifier.assessed
        )
        self.epoch = 0
        self.steps_per_epoch = max(1, len(train) // config.batch_size)
        if config.feature_grad_mult == 0.0 and hasattr(self.network, "encoder"):
            # DDP would wait for gradients that never come
            self.network.encoder.feature_extractor.requires_grad_(False)
        options = config.optimizer
        self.optimizer = torch.optim.AdamW(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=options.lr,
            betas=options.betas,
            weight_decay=options.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_share)
        self.augmentation = Augmentation(**config.augmentation.model_dump())

    def _lr_share(self, step: int) -> float:
        total = self.steps_per_epoch * self.config.epochs
        warmup = round(total * self.config.optimizer.warmup_share)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    def announce(self) -> None:
        """Say what was decided and why."""
        config = self.config
        logger.info(
            "training %s on %d records, validating on %d; device %s (%s), %s, %d workers x %d "
            "threads, batch %d, leads %s, %d of %d labels taught",
            self.network.architecture,
            len(self.train),
            len(self.validation),
            self.device,
            "as asked" if config.distributed.use_gpu else "use_gpu is off",
            config.precision,
            self.world,
            config.distributed.threads_per_worker,
            config.batch_size,
            config.leads,
            len(self.classifier.assessed),
            len(self.classifier.labels),
        )

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        """Global batches of record indices; the last incomplete one is dropped."""
        generator = torch.Generator().manual_seed(self.config.seed * 7919 + epoch)
        order = torch.randperm(len(self.train), generator=generator).tolist()
        size = self.config.batch_size
        for step in range(self.steps_per_epoch):
            yield order[step * size : (step + 1) * size]

    def train_epoch(self, network: torch.nn.Module, epoch: int) -> list[float]:
        """One pass; returns each step's global mean loss."""
        network.train()
        losses = []
        for step, batch in enumerate(self._batches(epoch)):
            mine = batch[self.rank :: self.world]
            torch.manual_seed((self.config.seed * 31 + epoch * 10_007 + step) * 64 + self.rank)
            # all workers know the whole batch's labels, so the count needs no communication
            cells = float(self.mask[batch].sum().clamp(min=1))
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss(network, mine, epoch) / cells
            # DDP averages gradients over workers; the loss is a sum over them
            (loss * self.world).backward()
            torch.nn.utils.clip_grad_norm_(
                network.parameters(), self.config.optimizer.max_grad_norm
            )
            self.optimizer.step()
            self.schedule.step()
            losses.append(self._sum_over_workers(float(loss.detach())))
        return losses

    def _loss(self, network: torch.nn.Module, indices: list[int], epoch: int) -> Tensor:
        if not indices:
            # a worker without records in the last small batch still takes part in DDP's exchange
            silent = torch.zeros(1, 12, 5000, device=self.device)
            return network(silent).logits.sum() * 0.0
        source = augment(
            self.train_signals.batch(indices),
            indices,
            seed=self.config.seed,
            epoch=epoch,
            options=self.augmentation,
        )
        source = mask_leads(source, self.config.leads).to(self.device)
        with self._autocast():
            logits = network(source).logits.float()
        targets, mask = self.targets[indices].to(logits), self.mask[indices].to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (losses * mask).sum()

    def _autocast(self) -> Any:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _sum_over_workers(self, value: float) -> float:
        if self.world == 1:
            return value
        tensor = torch.tensor([value], device=self.device)
        torch.distributed.all_reduce(tensor)
        return float(tensor)

    def validate(self, leads: str) -> np.ndarray[Any, Any]:
        """Logits (validation records, labels) on every rank, records dealt to ranks in turn."""
        self.network.eval()
        mine = list(range(self.rank, len(self.validation), self.world))
        result = np.zeros((len(self.validation), len(self.classifier.labels)), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(mine), 32):
                part = mine[start : start + 32]
                source = mask_leads(self.validation_signals.batch(part), leads).to(self.device)
                with self._autocast():
                    result[part] = self.network(source).logits.float().cpu().numpy()
        if self.world > 1:
            tensor = torch.from_numpy(result).to(self.device)
            torch.distributed.all_reduce(tensor)
            result = tensor.cpu().numpy()
        return result

    def validation_metrics(self, logits: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        """``validation_loss`` and AUROCs of the first configuration; plain sigmoid, since
        calibration is not part of what is trained."""
        if not self.validation:
            return {}
        leads, values = next(iter(logits.items()))
        labels = self.classifier.labels
        mask = self.validation_mask * np.isin(labels, configuration_labels(leads, labels))
        scores = 1 / (1 + np.exp(-values.astype(np.float64)))
        metrics = classifier_metrics(self.validation_targets, scores, mask, labels)
        return {
            "validation_loss": metrics["bce"],
            "validation_macro_auroc": metrics["macro_auroc"],
            "validation_micro_auroc": metrics["micro_auroc"],
        }

    def save(
        self,
        folder: Path,
        epoch: int,
        metrics: dict[str, Any],
        logits: dict[str, np.ndarray[Any, Any]],
    ) -> None:
        """The classifier's directory, validation logits, and what resuming needs (no pickles)."""
        self.classifier.save(folder)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        np.savez(folder / VALIDATION_FILE, **logits)  # type: ignore[arg-type]
        state = {
            "epoch": epoch,
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
        }
        torch.save(state, folder / _TRAINER_FILE)

    def restore(self, folder: Path) -> None:
        """Weights, optimiser and epoch of a checkpoint made by :meth:`save`."""
        saved = load_classifier(folder)
        self.network.load_state_dict(saved.network.state_dict())
        state = torch.load(folder / _TRAINER_FILE, map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        self.epoch = state["epoch"]


def _tensors(records: list[LabelledRecord], classifier: Classifier) -> tuple[Tensor, Tensor]:
    taught = set(classifier.assessed) & {
        code
        for leads in LEAD_CONFIGURATIONS
        if leads in classifier.lead_configurations
        for code in configuration_labels(leads, classifier.labels)
    }
    targets, mask = label_matrix(records, classifier.labels, taught)
    return torch.from_numpy(targets), torch.from_numpy(mask)
