"""How varied synthetic dialogues are, and how much held-out ones share with training ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ecg_agent_ray.dialogue.synthesis.phrases import load_pools
from ecg_agent_ray.dialogue.turns import Dialogue

__all__ = ["Diversity", "Overlap", "bank_size", "diversity", "overlap"]

_WORD = re.compile(r"[a-z0-9']+")


@dataclass(frozen=True, slots=True)
class Diversity:
    """Of the users' words: ``distinct_n`` is distinct n-grams / all n-grams (Li et al., 2016)."""

    n_utterances: int
    n_distinct: int
    n_words: int
    distinct_1: float
    distinct_2: float
    distinct_3: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a held-out set shares with the training set.

    ``templates`` and ``records`` are counts; ``utterances`` and ``trigrams`` the share of held-out
    users' distinct utterances and word trigrams that training has too. An utterance may coincide
    without a shared template ("thanks, bye").
    """

    templates: int
    records: int
    utterances: float
    trigrams: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diversity(dialogues: Sequence[Dialogue]) -> Diversity:
    said = [_words(text) for text in _said(dialogues)]
    return Diversity(
        n_utterances=len(said),
        n_distinct=len(set(said)),
        n_words=sum(map(len, said)),
        distinct_1=_distinct(said, 1),
        distinct_2=_distinct(said, 2),
        distinct_3=_distinct(said, 3),
    )


def overlap(training: Sequence[Dialogue], held_out: Sequence[Dialogue]) -> Overlap:
    ours, theirs = (set(map(_words, _said(part))) for part in (training, held_out))
    our_grams, their_grams = (set(_grams(part, 3)) for part in (ours, theirs))
    return Overlap(
        templates=len(_templates(training) & _templates(held_out)),
        records=len(_records(training) & _records(held_out)),
        utterances=_share(len(ours & theirs), len(theirs)),
        trigrams=_share(len(our_grams & their_grams), len(their_grams)),
    )


def bank_size() -> dict[str, int]:
    """Templates by who speaks: ``user``, ``answer``, ``thought``."""
    sizes: dict[str, int] = {}
    for name, templates in load_pools().items():
        speaker, _, rest = name.partition(".")
        if rest:
            sizes[speaker] = sizes.get(speaker, 0) + len(templates)
    return sizes


def _said(dialogues: Sequence[Dialogue]) -> list[str]:
    return [
        turn.content or ""
        for dialogue in dialogues
        for turn in dialogue.turns
        if turn.role == "user"
    ]


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


def _grams(texts: Iterable[tuple[str, ...]], n: int) -> Iterable[tuple[str, ...]]:
    return (words[at : at + n] for words in texts for at in range(len(words) - n + 1))


def _distinct(texts: Sequence[tuple[str, ...]], n: int) -> float:
    grams = list(_grams(texts, n))
    return _share(len(set(grams)), len(grams))


def _templates(dialogues: Sequence[Dialogue]) -> set[str]:
    return {name for item in dialogues for name in item.metadata.get("template_ids", [])}


def _records(dialogues: Sequence[Dialogue]) -> set[str]:
    return {item.record_id for item in dialogues if item.record_id}


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
