"""The classifier's training loop: what every Ray Train worker runs.

The loss of a step is the mean over the assessed cells of the *global* batch, and records are dealt
to workers by their place in it, so that the loss curve depends neither on the number of workers nor
on the size of micro-batches (but for a network with batch norm, which sees a worker's micro-batch).
All randomness is keyed by seed, epoch and record: a resumed run goes on exactly where the lost one
was.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ecg_agent_ray.classifier.augmentation import Augmentation, augment, mask_leads
from ecg_agent_ray.classifier.bundle import load_classifier
from ecg_agent_ray.classifier.dataset import LabelledRecord, label_matrix, read_recording
from ecg_agent_ray.classifier.labels import configuration_labels
from ecg_agent_ray.classifier.metrics import classifier_metrics
from ecg_agent_ray.classifier.preprocessing import prepare
from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig
from ecg_agent_ray.training.strategies import report, share

__all__ = ["Progress", "Signals", "Split", "train_loop"]

logger = logging.getLogger(__name__)

_VALIDATION_FILE = "validation.npz"
_PROGRESS_FILE = "progress.json"
_TRAINER_FILE = "trainer.pt"
_CACHED_RECORDS = 4000
"""Below this many records (1 GB) the signals stay in memory; above they are read when used."""


class Signals:
    """First window of each record, (12, 5000); the rest of a longer record is not trained on."""

    def __init__(self, records: list[LabelledRecord]) -> None:
        self.records = records
        self._cache: dict[int, Tensor] = {}

    def __getitem__(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index]
        windows = prepare(read_recording(self.records[index])).windows
        signal = torch.from_numpy(windows[0])
        if len(self.records) <= _CACHED_RECORDS:
            self._cache[index] = signal
        return signal

    def batch(self, indices: list[int]) -> Tensor:
        return torch.stack([self[index] for index in indices])


def train_loop(settings: dict[str, Any]) -> None:
    """Ray Train's entry.

    ``settings``: ``config`` (dict of :class:`ClassifierFinetuneConfig`), ``start`` (folder of the
    classifier each split begins with), ``records``, ``splits`` (a :class:`Split` each, trained one
    after the other), ``configurations`` to validate in.
    """
    import ray.train
    import ray.train.torch as ray_torch

    config = ClassifierFinetuneConfig.model_validate(settings["config"])
    torch.set_num_threads(config.distributed.threads_per_worker)
    context = ray.train.get_context()
    worker = _Worker(context.get_world_rank(), context.get_world_size(), ray_torch.get_device())
    splits: list[Split] = settings["splits"]
    signals = Signals(settings["records"])
    progress = Progress()
    resumed = ray.train.get_checkpoint()
    if resumed is not None:
        with resumed.as_directory() as directory:
            progress = Progress.read(Path(directory))
    for index in range(progress.split, len(splits)):
        torch.manual_seed(config.seed)
        with contextlib.ExitStack() as stack:
            folder = None
            if resumed is not None and index == progress.split:
                folder = Path(stack.enter_context(resumed.as_directory()))
            run = _Run(config, settings["start"], signals, splits[index], worker, folder)
        if worker.rank == 0:
            run.announce()
        for epoch in range(run.epoch, config.epochs):
            started = time.perf_counter()
            metrics = run.train_epoch(epoch)
            metrics["epoch_s"] = time.perf_counter() - started
            metrics["split"] = index
            metrics["global_step"] = progress.steps + (epoch + 1) * run.steps_per_epoch
            progress.history.append(metrics)
            last = epoch + 1 == config.epochs
            if not last and (epoch + 1) % config.report_every:
                continue
            # folds are judged at their end only; choosing an epoch needs every one judged
            if len(splits) == 1 or last:
                logits = {leads: run.validate(leads) for leads in settings["configurations"]}
                progress.logits[splits[index].name] = logits
                metrics |= run.validation_metrics(logits)
            with tempfile.TemporaryDirectory() as name:
                run.save(Path(name), epoch + 1)
                if worker.rank == 0:
                    known = {key: value for key, value in metrics.items() if value is not None}
                    logger.info("%s", json.dumps(known))
                    progress.write(Path(name), index)
                report(metrics, Path(name))
        progress.steps += config.epochs * run.steps_per_epoch


@dataclass(frozen=True)
class Split:
    """Indices of the records to train on and to judge by."""

    name: str
    train: tuple[int, ...]
    validation: tuple[int, ...]


@dataclass(frozen=True)
class _Worker:
    rank: int
    world: int
    device: torch.device


@dataclass
class Progress:
    """What a checkpoint keeps beside the current split's weights."""

    split: int = 0
    steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    logits: dict[str, dict[str, np.ndarray[Any, Any]]] = field(default_factory=dict)

    def write(self, folder: Path, split: int) -> None:
        values = {"split": split, "steps": self.steps, "history": self.history}
        (folder / _PROGRESS_FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")
        arrays = {
            f"{name}/{leads}": values
            for name, by_leads in self.logits.items()
            for leads, values in by_leads.items()
        }
        np.savez(folder / _VALIDATION_FILE, **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, folder: Path) -> Progress:
        progress = cls(**json.loads((folder / _PROGRESS_FILE).read_text(encoding="utf-8")))
        with np.load(folder / _VALIDATION_FILE, allow_pickle=False) as arrays:
            for key in arrays.files:
                name, leads = key.split("/")
                progress.logits.setdefault(name, {})[leads] = arrays[key]
        return progress


class _Run:
    """State of one split on one worker; the same on all ranks but for the records each takes.

    It begins with the classifier in the folder ``start``, or goes on from the checkpoint
    ``resumed``.
    """

    def __init__(
        self,
        config: ClassifierFinetuneConfig,
        start: str,
        signals: Signals,
        split: Split,
        worker: _Worker,
        resumed: Path | None,
    ) -> None:
        self.config, self.signals = config, signals
        self.split, self.worker = split, worker
        self.train, self.validation = split.train, split.validation
        self.classifier = load_classifier(resumed or start)
        targets, mask = label_matrix(
            signals.records, self.classifier.labels, self.classifier.assessed
        )
        self.targets, self.mask = torch.from_numpy(targets), torch.from_numpy(mask)
        self.epoch = 0
        self.steps_per_epoch = max(1, len(self.train) // config.batch_size)
        # of every worker, so that all make the same number of passes
        share_of_batch = -(-min(config.batch_size, len(self.train)) // worker.world)
        self.micro = min(config.micro_batch_size or share_of_batch, share_of_batch)
        self.micro_steps = -(-share_of_batch // self.micro)
        network = self.classifier.network
        if config.feature_grad_mult is not None and hasattr(network, "encoder"):
            network.encoder.feature_grad_mult = config.feature_grad_mult
            if config.feature_grad_mult == 0.0:
                # DDP would wait for gradients that never come
                network.encoder.feature_extractor.requires_grad_(False)
        options = config.optimizer
        self.shared = share(
            network,
            lambda parameters: torch.optim.AdamW(
                parameters, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
            ),
            config,
            world=worker.world,
            device=worker.device,
            micro_steps=self.micro_steps,
            max_grad_norm=options.max_grad_norm,
        )
        if resumed is not None:
            state = torch.load(resumed / _TRAINER_FILE, map_location="cpu", weights_only=True)
            self.epoch = state["epoch"]
            self.shared.restore(resumed)
        self.augmentation = Augmentation(**config.augmentation.model_dump())

    def _lr(self, step: int) -> float:
        total = self.steps_per_epoch * self.config.epochs
        warmup = round(total * self.config.optimizer.warmup_share)
        if step < warmup:
            return self.config.optimizer.lr * (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, total - warmup)
        return self.config.optimizer.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def announce(self) -> None:
        """Say what was decided and why."""
        config = self.config
        logger.info(
            "%s: training %s on %d records, validating on %d; device %s (%s), %s, %d workers x %d "
            "threads by %s, batch %d in micro-batches of %d, leads %s, %d of %d labels taught",
            self.split.name,
            self.classifier.network.architecture,
            len(self.train),
            len(self.validation),
            self.worker.device,
            "as asked" if config.distributed.use_gpu else "use_gpu is off",
            config.precision,
            self.worker.world,
            config.distributed.threads_per_worker,
            config.strategy if self.worker.world > 1 else "nothing, there is one",
            config.batch_size,
            self.micro,
            config.leads,
            len(self.classifier.assessed),
            len(self.classifier.labels),
        )

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        """Global batches of record indices; the last incomplete one is dropped."""
        generator = torch.Generator().manual_seed(self.config.seed * 7919 + epoch)
        order = [self.train[i] for i in torch.randperm(len(self.train), generator=generator)]
        size = self.config.batch_size
        for step in range(self.steps_per_epoch):
            yield order[step * size : (step + 1) * size]

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """One pass; returns the epoch's ``train_loss`` (mean over steps), ``lr``, speed."""
        started = time.perf_counter()
        self.shared.network.train()
        losses = []
        for step, batch in enumerate(self._batches(epoch), start=epoch * self.steps_per_epoch):
            losses.append(self._update(batch, epoch, step))
        return {
            "epoch": epoch + 1,
            "train_loss": float(np.mean(losses)),
            "lr": self._lr((epoch + 1) * self.steps_per_epoch - 1),
            "records_per_s": len(losses) * self.config.batch_size / (time.perf_counter() - started),
        }

    def _update(self, batch: list[int], epoch: int, step: int) -> float:
        """One update of the weights; the global batch's loss before it."""
        mine = batch[self.worker.rank :: self.worker.world]
        torch.manual_seed((self.config.seed * 31 + step) * 64 + self.worker.rank)
        # all workers know the whole batch's labels, so the count needs no communication
        cells = float(self.mask[batch].sum().clamp(min=1))
        total = 0.0
        for index in range(self.micro_steps):
            part = mine[index * self.micro : (index + 1) * self.micro]
            with self.shared.accumulating(last=index + 1 == self.micro_steps):
                loss = self._loss(part, epoch) / cells
                # gradients are averaged over workers; the loss is a sum over them
                self.shared.backward(loss * self.worker.world)
            total += float(loss.detach())
        self.shared.step(self._lr(step))
        return self._sum_over_workers(total)

    def _loss(self, indices: list[int], epoch: int) -> Tensor:
        if not indices:
            # a worker without records left still takes part in the exchange
            return self._logits(torch.zeros(1, 12, 5000)).sum() * 0.0
        source = augment(
            self.signals.batch(indices),
            indices,
            seed=self.config.seed,
            epoch=epoch,
            options=self.augmentation,
        )
        logits = self._logits(mask_leads(source, self.config.leads))
        targets, mask = self.targets[indices].to(logits), self.mask[indices].to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (losses * mask).sum()

    def _logits(self, source: Tensor) -> Tensor:
        with self.shared.autocast():
            logits: Tensor = self.shared.network(source.to(self.worker.device)).logits
        return logits.float()

    def _sum_over_workers(self, value: float) -> float:
        if self.worker.world == 1:
            return value
        tensor = torch.tensor([value], device=self.worker.device)
        torch.distributed.all_reduce(tensor)
        return float(tensor)

    def validate(self, leads: str) -> np.ndarray[Any, Any]:
        """Logits (validation records, labels) on every rank, records dealt to ranks in turn."""
        self.shared.network.eval()
        self.shared.share_buffers()
        mine = list(range(self.worker.rank, len(self.validation), self.worker.world))
        result = np.zeros((len(self.validation), len(self.classifier.labels)), dtype=np.float32)
        longest = -(-len(self.validation) // self.worker.world)
        with torch.no_grad():
            for start in range(0, longest, 32):
                part = mine[start : start + 32]
                # a worker without records left still takes part in gathering sharded weights
                rows = part or [0]
                source = self.signals.batch([self.validation[i] for i in rows])
                logits = self._logits(mask_leads(source, leads))
                if part:
                    result[part] = logits.cpu().numpy()
        if self.worker.world > 1:
            tensor = torch.from_numpy(result).to(self.worker.device)
            torch.distributed.all_reduce(tensor)
            result = tensor.cpu().numpy()
        return result

    def validation_metrics(self, logits: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        """``validation_loss`` and AUROCs of the first configuration; plain sigmoid, since
        calibration is not part of what is trained."""
        if not self.validation:
            return {}
        leads, values = next(iter(logits.items()))
        labels, rows = self.classifier.labels, list(self.validation)
        detectable = np.isin(labels, configuration_labels(leads, labels))
        targets, mask = self.targets[rows].numpy(), self.mask[rows].numpy() * detectable
        scores = 1 / (1 + np.exp(-values.astype(np.float64)))
        metrics = classifier_metrics(targets, scores, mask, labels)
        return {
            "validation_loss": metrics["bce"],
            "validation_macro_auroc": metrics["macro_auroc"],
            "validation_micro_auroc": metrics["micro_auroc"],
        }

    def save(self, folder: Path, epoch: int) -> None:
        """The classifier's directory, and what resuming needs (tensors and numbers); every worker
        calls this, since all take part in gathering shards."""
        weights = self.shared.weights()
        self.shared.save(folder, self.worker.rank)
        if self.worker.rank == 0:
            self.classifier.save(folder, weights=weights)
            torch.save({"epoch": epoch}, folder / _TRAINER_FILE)
