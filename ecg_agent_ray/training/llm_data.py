"""Dialogue files to token sequences."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ecg_agent_ray.agent.chat_format import ChatFormat, EncodedDialogue
from ecg_agent_ray.agent.speech import Speech, StrictView
from ecg_agent_ray.dialogue import Dialogue, read_dialogues, system_prompt
from ecg_agent_ray.dialogue.render import dialogue_messages
from ecg_agent_ray.training.llm_config import DataSource, LLMFinetuneConfig
from ecg_agent_ray.training.packing import DialoguePlan, Sample, truncate

__all__ = [
    "TrainingData",
    "dialogue_plan",
    "drawn",
    "encode_all",
    "training_data",
]


def encode_all(
    chat: ChatFormat,
    dialogues: Iterable[Dialogue],
    max_tokens: int | None = None,
    speech: Speech = "open",
) -> list[EncodedDialogue]:
    """Encode each dialogue as a model of this speech reads it.

    For an open model every other dialogue has its language level in the prompt; for a strict one
    answers are in slots and user turns carry the knowledge that retrieval finds for them, with what
    the metadata keep ``beside`` the tool outputs. A longer one than ``max_tokens`` keeps its
    beginning.
    """
    encoded = []
    for index, dialogue in enumerate(dialogues):
        whole = chat.encode_dialogue(_messages(dialogue, speech, with_level=index % 2 == 1))
        encoded.append(whole if max_tokens is None else truncate(whole, max_tokens))
    return encoded


def _messages(dialogue: Dialogue, speech: Speech, *, with_level: bool) -> list[dict[str, str]]:
    if speech == "strict":
        prompt = system_prompt(dialogue.lead_configuration, speech=speech)
        view = StrictView.of(dialogue.turns, dialogue.metadata.get("beside"))
        return [{"role": "system", "content": prompt}, *view.messages]
    level = dialogue.cefr_level if with_level else None
    return dialogue_messages(dialogue, system_prompt(dialogue.lead_configuration, level=level))


@dataclass(frozen=True)
class Draw:
    """One use of an item in an epoch; ``item`` counts through all sources."""

    item: int
    source: DataSource
    rng: random.Random
    cut: bool


def drawn(sources: Sequence[DataSource], sizes: Sequence[int], seed: int, epoch: int) -> list[Draw]:
    """What an epoch (from 0) uses of sources of so many items, the same for the same seed."""
    found: list[Draw] = []
    start = 0
    for number, (source, size) in enumerate(zip(sources, sizes, strict=True)):
        rng = random.Random(f"{seed} {epoch} {number}")
        whole, part = divmod(round(source.repeat * size), size)
        used = [*range(start, start + size)] * whole
        used += sorted(rng.sample(range(start, start + size), part))
        cut = set(rng.sample(range(len(used)), round(source.first_actions * len(used))))
        found += [Draw(item, source, rng, place in cut) for place, item in enumerate(used)]
        start += size
    return found


@dataclass(frozen=True)
class TrainingData:
    """The dialogues of all sources in one list, and what each epoch uses of them."""

    dialogues: list[EncodedDialogue]
    sources: list[DataSource]
    sizes: list[int]
    seed: int

    def samples(self, epoch: int) -> list[Sample]:
        """Drawn anew for each epoch (from 0), the same for the same seed."""
        found = []
        for draw in drawn(self.sources, self.sizes, self.seed, epoch):
            ends = self.dialogues[draw.item].first_actions if draw.cut else ()
            end = draw.rng.choice(ends) if ends else None
            found.append(Sample(draw.item, end, draw.source.weight))
        return found


def training_data(chat: ChatFormat, config: LLMFinetuneConfig) -> TrainingData:
    """Read and encode all sources of ``config.train``."""
    encoded = [
        encode_all(
            chat, read_dialogues(source.path), config.batch.max_tokens, config.speech or "open"
        )
        for source in config.sources
    ]
    return TrainingData(
        [dialogue for part in encoded for dialogue in part],
        config.sources,
        [len(part) for part in encoded],
        config.seed,
    )


def dialogue_plan(data: TrainingData, config: LLMFinetuneConfig) -> DialoguePlan:
    """Which rows each step takes."""
    return DialoguePlan(
        data.dialogues,
        max_tokens=config.batch.max_tokens,
        packs_per_step=config.batch.packs_per_step,
        seed=config.seed,
        packing=config.batch.packing,
        share_prefix=config.batch.share_prefix,
        samples=data.samples,
    )
