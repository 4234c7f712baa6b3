"""What a fine-tuning job minimises: cross-entropy of dialogues, or a preference between answers.

Preference tuning is DPO (Rafailov et al. 2023, arXiv 2305.18290), with the likelihood of the chosen
answer as an optional second term (Pang et al. 2024, arXiv 2404.19733). It is a loss of our own and
not trl's ``DPOTrainer``: that one is a transformers ``Trainer``, with its own loop, batches and
checkpoints. In it neither could the cached lower layers, the history shared by a pair's two answers
and the output layer without kept logits be used, each of which is most of the speed on a CPU, nor
the checkpoints that another number of workers resumes from. What remains of it is the loss below.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ecg_agent_ray.agent.chat_format import ChatFormat, EncodedDialogue
from ecg_agent_ray.dialogue import read_dialogues
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.llm_config import LLMFinetuneConfig
from ecg_agent_ray.training.llm_data import dialogue_plan, drawn, encode_all, training_data
from ecg_agent_ray.training.llm_model import TargetLosses
from ecg_agent_ray.training.llm_pairs import encode_pairs, read_pairs
from ecg_agent_ray.training.packing import Pack, Sample, StepPlan, make_packs

__all__ = ["Objective", "PreferenceObjective", "RowLoss", "TextObjective", "load_objective"]

logger = logging.getLogger(__name__)

Score = Callable[[Pack], TargetLosses]


@dataclass(frozen=True)
class RowLoss:
    """``loss`` is summed over what counts (a scalar tensor); ``sums`` are for the report."""

    loss: Any
    sums: dict[str, float]


class Objective(Protocol):
    """What the training loop asks of an objective."""

    @property
    def sequences(self) -> list[EncodedDialogue]:
        """All that rows are made of, training first, then validation."""

    @property
    def plan(self) -> StepPlan:
        """The rows of each step."""

    @property
    def validation(self) -> list[Pack]:
        """The rows of a validation."""

    @property
    def items(self) -> int:
        """Dialogues or pairs that an epoch uses."""

    def prepare(self, score: Score, share: Share) -> None:
        """Before the first step, with the start weights."""

    def weight(self, pack: Pack) -> float:
        """What the losses of a row are divided by."""

    def row(self, losses: TargetLosses, pack: Pack) -> RowLoss:
        """The loss of a row."""

    def report(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics from the summed ``sums`` of rows; ``plain_loss`` among them for validation."""


@dataclass(frozen=True)
class Share:
    """This worker among the others, for work that is shared out before training."""

    rank: int
    world: int
    sum: Callable[[list[float]], list[float]]
    folder: Path
    weights: Callable[[], str] | None
    """Digest of the start weights; None where they are not whole on a worker."""


def load_objective(config: LLMFinetuneConfig, chat: ChatFormat) -> Objective:
    """Read and encode what ``config.objective`` trains on."""
    if config.objective == "dpo":
        return PreferenceObjective(config, chat)
    return TextObjective(config, chat)


class TextObjective:
    """Weighted cross-entropy of all that the assistant says in the dialogues."""

    def __init__(self, config: LLMFinetuneConfig, chat: ChatFormat) -> None:
        self._action_weight = config.action_weight
        batch = config.batch
        data = training_data(chat, config)
        own = (
            encode_all(
                chat, read_dialogues(config.validation), batch.max_tokens, config.speech or "open"
            )
            if config.validation
            else []
        )
        self.items = len(data.samples(0))
        self.sequences = [*data.dialogues, *own]
        self.plan: StepPlan = dialogue_plan(data, config)
        self.validation = make_packs(
            self.sequences,
            batch.max_tokens,
            config.seed,
            share_prefix=batch.share_prefix,
            samples=[Sample(n) for n in range(len(data.dialogues), len(self.sequences))],
        )

    def prepare(self, score: Score, share: Share) -> None:
        """Nothing."""

    def weight(self, pack: Pack) -> float:
        """Sum of the targets' weights."""
        return pack.total_weight(self._action_weight)

    def row(self, losses: TargetLosses, pack: Pack) -> RowLoss:
        """Weighted cross-entropy, summed over the targets."""
        hits, actions = losses.action_hits
        sums = {
            "losses": float(losses.losses.detach().sum()),
            "targets": float(len(losses.losses)),
            "hits": float(hits),
            "actions": float(actions),
        }
        return RowLoss(losses.total, sums)

    def report(self, sums: dict[str, float]) -> dict[str, float]:
        """Unweighted loss of a target, and how often a token of an action was the likeliest."""
        metrics = {"plain_loss": sums["losses"] / sums["targets"]}
        if sums["actions"]:
            metrics["action_token_accuracy"] = sums["hits"] / sums["actions"]
        return metrics


class PreferenceObjective:
    """DPO: the chosen answer shall gain in likelihood on the rejected one, against the start.

    With ``x`` the gain of the log-likelihood ratio of chosen over rejected since the start, the
    loss of a pair is ``-log sigmoid(beta x)``, plus ``sft_weight`` times the mean cross-entropy of
    the chosen answer's tokens.
    """

    def __init__(self, config: LLMFinetuneConfig, chat: ChatFormat) -> None:
        self._settings, self._batch, self._seed = config.dpo, config.batch, config.seed
        self._encode = lambda path: encode_pairs(chat, read_pairs(path), self._batch.max_tokens)
        parts = [self._encode(source.path) for source in config.sources]
        if empty := [s.path for s, part in zip(config.sources, parts, strict=True) if not part]:
            raise ConfigError(f"no pair of {', '.join(empty)} fits batch.max_tokens")
        own = self._encode(config.validation) if config.validation else []
        train = [sequence for part in parts for sequence in part]
        sizes = [len(part) // 2 for part in parts]
        self.sequences = [*train, *own]
        self.reference: list[float] = []
        self.items = len(drawn(config.sources, sizes, config.seed, 0))

        def samples(epoch: int) -> list[Sample]:
            return [
                Sample(2 * draw.item + side, weight=draw.source.weight)
                for draw in drawn(config.sources, sizes, config.seed, epoch)
                for side in (0, 1)
            ]

        self.plan: StepPlan = _PairPlan(self._rows, samples, self._batch.packs_per_step)
        unused = range(len(train), len(self.sequences))
        self.validation = self._rows([Sample(index) for index in unused], 0)

    def _rows(self, samples: list[Sample], epoch: int) -> list[Pack]:
        return make_packs(
            self.sequences,
            self._batch.max_tokens,
            self._seed + epoch,
            packing=self._batch.packing,
            share_prefix=self._batch.share_prefix,
            samples=samples,
            together=2,
        )

    def prepare(self, score: Score, share: Share) -> None:
        """Log-likelihoods of all sequences under the start weights, kept in the output folder."""
        import numpy as np

        file = None
        if share.weights is not None:
            file = share.folder / f"reference-{self._digest(share.weights())}.npy"
        known = [float(file is not None and file.is_file() and share.rank == 0)]
        if share.sum(known)[0]:
            # rank 0's file counts for all: another node need not have one
            own = np.load(file) if share.rank == 0 and file else np.zeros(len(self.sequences))
            self.reference = share.sum([float(value) for value in own])
            return
        packs = self._rows([Sample(index) for index in range(len(self.sequences))], 0)
        found = [0.0] * len(self.sequences)
        for start in range(0, len(packs), share.world):
            own_pack = start + share.rank
            # under ZeRO-3 every worker must make the same number of forward passes
            losses = score(packs[min(own_pack, len(packs) - 1)])
            if own_pack < len(packs):
                for index, value in _by_sequence(losses, packs[own_pack]):
                    found[index] = float(value)
        self.reference = share.sum(found)
        if file is not None and share.rank == 0:
            part = file.with_suffix(".part.npy")
            np.save(part, np.asarray(self.reference))
            part.replace(file)

    def _digest(self, weights: str) -> str:
        total = hashlib.sha256(weights.encode())
        for sequence in self.sequences:
            total.update(str((sequence.prefix, sequence.input_ids)).encode())
        return total.hexdigest()[:24]

    def weight(self, pack: Pack) -> float:
        """Sum of the pairs' weights."""
        return sum(chosen[1].weight for chosen, _ in _pairs(pack))

    def row(self, losses: TargetLosses, pack: Pack) -> RowLoss:
        """Loss of the row's pairs, times their weights."""
        import torch
        from torch.nn.functional import logsigmoid

        values = [value for _, value in _by_sequence(losses, pack)]
        gains, weights, sft = [], [], []
        for pair, (chosen, rejected) in enumerate(_pairs(pack)):
            gains.append(values[2 * pair] - self.reference[chosen[1].dialogue])
            gains.append(values[2 * pair + 1] - self.reference[rejected[1].dialogue])
            weights.append(chosen[1].weight)
            sft.append(-values[2 * pair] / chosen[0])
        rewards = self._settings.beta * torch.stack(gains).view(-1, 2)
        margins = rewards[:, 0] - rewards[:, 1]
        each = -logsigmoid(margins) + self._settings.sft_weight * torch.stack(sft)
        weight = torch.tensor(weights, device=each.device)
        seen = margins.detach()
        sums = {
            "losses": float(each.detach().sum()),
            "pairs": float(len(weights)),
            "margin": float(seen.sum()),
            "preferred": float((seen > 0).sum()),
            "chosen_reward": float(rewards[:, 0].detach().sum()),
            "rejected_reward": float(rewards[:, 1].detach().sum()),
        }
        return RowLoss((each * weight).sum(), sums)

    def report(self, sums: dict[str, float]) -> dict[str, float]:
        """Means over pairs: loss, margin of the rewards, share of pairs with a positive one."""
        mean = {name: value / sums["pairs"] for name, value in sums.items() if name != "pairs"}
        return {"plain_loss": mean.pop("losses"), **mean}


class _PairPlan(StepPlan):
    def __init__(
        self,
        rows: Callable[[list[Sample], int], list[Pack]],
        samples: Callable[[int], list[Sample]],
        packs_per_step: int,
    ) -> None:
        super().__init__(packs_per_step)
        self._rows, self._samples = rows, samples

    def epoch(self, epoch: int) -> list[Pack]:
        return self._rows(self._samples(epoch), epoch)


def _owners(pack: Pack) -> list[int]:
    """For each target the place of its piece in the row."""
    places = {piece.start: place for place, piece in enumerate(pack.pieces)}
    return [places[pack.piece_of(target).start] for target in pack.targets]


def _pairs(pack: Pack) -> Iterable[tuple[tuple[int, Any], tuple[int, Any]]]:
    """Chosen and rejected piece of each pair, each with the number of its targets."""
    counts: dict[int, int] = {}
    for place in _owners(pack):
        counts[place] = counts.get(place, 0) + 1
    pieces = [(count, pack.pieces[place]) for place, count in counts.items()]
    return zip(pieces[::2], pieces[1::2], strict=True)


def _by_sequence(losses: TargetLosses, pack: Pack) -> list[tuple[int, Any]]:
    """Sequence and log-likelihood of each answer in a row, in its order."""
    import torch

    owners = _owners(pack)
    places = list(dict.fromkeys(owners))
    index = torch.tensor([places.index(owner) for owner in owners], device=losses.losses.device)
    total = torch.zeros(len(places), device=losses.losses.device)
    total = total.index_add(0, index, -losses.losses.float())
    return [(pack.pieces[place].dialogue, total[n]) for n, place in enumerate(places)]
