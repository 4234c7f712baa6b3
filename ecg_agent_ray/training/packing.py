"""Dialogues packed into rows of a fixed token budget, and the order in which steps take them.

One dialogue is one sequence with all its assistant turns as targets, so no history is encoded
twice. Rows are filled by best fit and position ids start again at each dialogue. Dialogues of a row
that begin with the same system message can share one copy of it: its tokens see nothing that comes
after them, so their states are the same for all.
"""

from __future__ import annotations

import abc
import bisect
import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ecg_agent_ray.agent.chat_format import IGNORE_INDEX, EncodedDialogue

__all__ = [
    "DialoguePlan",
    "Pack",
    "Piece",
    "Sample",
    "StepPlan",
    "make_packs",
    "truncate",
]


@dataclass(frozen=True)
class Sample:
    """One use of a dialogue in an epoch.

    With ``end`` it ends after so many tokens, and the names of actions are its only targets.
    ``weight`` multiplies the loss of its targets.
    """

    dialogue: int
    end: int | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Piece:
    """Tokens ``begin`` to ``end`` of a dialogue, which lie in the row from ``start`` on.

    They see each other causally, and before that the row's tokens ``seen[0]`` to ``seen[1]``: the
    dialogue's first ``begin`` tokens, shared with the row's other dialogues. ``weight`` is that of
    its sample.
    """

    dialogue: int
    begin: int
    end: int
    start: int
    seen: tuple[int, int] = (0, 0)
    weight: float = 1.0

    @property
    def stop(self) -> int:
        return self.start + self.end - self.begin


@dataclass(frozen=True)
class Pack:
    """One row: ids, labels (shifted by the trainer), action marks, positions, of equal length."""

    input_ids: list[int]
    labels: list[int]
    is_action: list[bool]
    position_ids: list[int]
    pieces: tuple[Piece, ...]

    @property
    def targets(self) -> list[int]:
        """Row indices of the targets that a loss is available for.

        A sequence's first token has no predecessor to be predicted from.
        """
        return [
            index
            for index, (label, position) in enumerate(
                zip(self.labels, self.position_ids, strict=True)
            )
            if label != IGNORE_INDEX and position > 0
        ]

    def piece_of(self, index: int) -> Piece:
        """The piece that holds a row index."""
        after = bisect.bisect_right(self.pieces, index, key=lambda piece: piece.start)
        return self.pieces[after - 1]

    @property
    def n_targets(self) -> int:
        return len(self.targets)

    def before(self, targets: Sequence[int]) -> list[int]:
        """The row indices from whose states ``targets`` are predicted."""
        first = {piece.start: piece.seen[1] - 1 for piece in self.pieces if piece.begin}
        return [first.get(index, index - 1) for index in targets]

    def weights(self, action_weight: float) -> list[float]:
        """The targets' weights: their sample's, times ``action_weight`` where naming an action."""
        return [
            self.piece_of(index).weight * (action_weight if self.is_action[index] else 1.0)
            for index in self.targets
        ]

    def total_weight(self, action_weight: float) -> float:
        """Sum of the targets' weights."""
        return sum(self.weights(action_weight))


def truncate(dialogue: EncodedDialogue, max_tokens: int) -> EncodedDialogue:
    """Keep the beginning: later turns are lost, but none sees a history it would not have had."""
    return EncodedDialogue(
        dialogue.input_ids[:max_tokens],
        dialogue.labels[:max_tokens],
        dialogue.is_action[:max_tokens],
        min(dialogue.prefix, max_tokens),
        tuple(end for end in dialogue.first_actions if end <= max_tokens),
    )


def make_packs(
    dialogues: Sequence[EncodedDialogue],
    max_tokens: int,
    seed: int,
    *,
    packing: bool = True,
    share_prefix: bool = False,
    samples: Sequence[Sample] | None = None,
    together: int = 1,
) -> list[Pack]:
    """Shuffle, then put each dialogue into the fullest row it still fits.

    Without ``packing`` each dialogue is a row of its own length. With ``share_prefix`` a row that
    holds the dialogue's system message already is taken before others, and holds it once. Each
    dialogue is used once, or as ``samples`` say. Each ``together`` samples that follow each other,
    of the same beginning, come into the same row.

    Best fit on shuffled sequences leaves about 5 % of the tokens empty at lengths of a few hundred
    in rows of 1,024, and keeps rows from being sorted by length.
    """
    used = samples if samples is not None else [Sample(n) for n in range(len(dialogues))]
    order = list(range(0, len(used), together))
    random.Random(seed).shuffle(order)
    cut = [_cut(dialogues[sample.dialogue], sample, max_tokens) for sample in used]
    keys: list[tuple[int, ...] | None] = [None] * len(cut)
    if share_prefix:
        keys = [tuple(d.input_ids[: d.prefix]) if d.prefix else None for d in cut]
    rows = _Rows(max_tokens)
    for first in order:
        group = range(first, first + together)
        if packing:
            saved = 0 if keys[first] is None else (together - 1) * cut[first].prefix
            length = sum(len(cut[index].input_ids) for index in group) - saved
            rows.add(group, length, keys[first])
        else:
            rows.members.append([*group])
    return [_join(cut, used, row, [keys[index] for index in row]) for row in rows.members]


def _cut(dialogue: EncodedDialogue, sample: Sample, max_tokens: int) -> EncodedDialogue:
    if sample.end is None:
        return truncate(dialogue, max_tokens)
    short = truncate(dialogue, min(sample.end, max_tokens))
    labels = [
        label if action else IGNORE_INDEX
        for label, action in zip(short.labels, short.is_action, strict=True)
    ]
    return replace(short, labels=labels)


class _Rows:
    """Rows being filled; ``room`` lists (tokens left, row) in order, for all and by prefix."""

    def __init__(self, max_tokens: int) -> None:
        self.members: list[list[int]] = []
        self._left: list[int] = []
        self._prefixes: list[set[tuple[int, ...]]] = []
        self._max_tokens = max_tokens
        self._room: list[tuple[int, int]] = []
        self._room_by_prefix: dict[tuple[int, ...], list[tuple[int, int]]] = {}

    def add(self, group: Sequence[int], length: int, key: tuple[int, ...] | None) -> None:
        if key is not None:
            row = self._best(self._room_by_prefix.get(key, []), length - len(key))
            if row is not None:
                self._put(group, row, length - len(key), None)
                return
        row = self._best(self._room, length)
        if row is None:
            row = len(self.members)
            self.members.append([])
            self._left.append(self._max_tokens)
            self._prefixes.append(set())
            bisect.insort(self._room, (self._max_tokens, row))
        self._put(group, row, length, key)

    @staticmethod
    def _best(room: list[tuple[int, int]], length: int) -> int | None:
        place = bisect.bisect_left(room, (length, -1))
        return room[place][1] if place < len(room) else None

    def _put(
        self, group: Sequence[int], row: int, tokens: int, key: tuple[int, ...] | None
    ) -> None:
        lists = [self._room, *(self._room_by_prefix[known] for known in self._prefixes[row])]
        for room in lists:
            room.pop(bisect.bisect_left(room, (self._left[row], row)))
        self._left[row] -= tokens
        if key is not None and key not in self._prefixes[row]:
            self._prefixes[row].add(key)
            lists.append(self._room_by_prefix.setdefault(key, []))
        for room in lists:
            bisect.insort(room, (self._left[row], row))
        self.members[row] += group


def _join(
    dialogues: Sequence[EncodedDialogue],
    samples: Sequence[Sample],
    members: Sequence[int],
    keys: Sequence[tuple[int, ...] | None],
) -> Pack:
    ids: list[int] = []
    labels: list[int] = []
    is_action: list[bool] = []
    positions: list[int] = []
    pieces: list[Piece] = []

    def add(index: int, begin: int, end: int, seen: tuple[int, int]) -> None:
        dialogue, sample = dialogues[index], samples[index]
        pieces.append(Piece(sample.dialogue, begin, end, len(ids), seen, sample.weight))
        ids.extend(dialogue.input_ids[begin:end])
        labels.extend(dialogue.labels[begin:end])
        is_action.extend(dialogue.is_action[begin:end])
        positions.extend(range(begin, end))

    sharers = Counter(keys)
    placed: dict[tuple[int, ...], tuple[int, int]] = {}
    for index, key in zip(members, keys, strict=True):
        length = len(dialogues[index].input_ids)
        if key is None or sharers[key] == 1:
            add(index, 0, length, (0, 0))
            continue
        if key not in placed:
            placed[key] = (len(ids), len(ids) + len(key))
            add(index, 0, len(key), (0, 0))
        if length > len(key):
            add(index, len(key), length, placed[key])
    return Pack(ids, labels, is_action, positions, tuple(pieces))


class StepPlan(abc.ABC):
    """Which packs each step takes, the same on every worker and for every number of workers.

    Args:
        packs_per_step: rows of one optimiser step over all workers.
    """

    def __init__(self, packs_per_step: int) -> None:
        self._packs_per_step = packs_per_step

    @abc.abstractmethod
    def epoch(self, epoch: int) -> list[Pack]:
        """The rows of one pass over the data, counted from 0."""

    @functools.cached_property
    def packs_per_epoch(self) -> int:
        return len(self.epoch(0))

    def total_steps(self, epochs: float) -> int:
        """Steps of so many passes over the data, at least one."""
        return max(1, round(epochs * self.packs_per_epoch / self._packs_per_step))

    def steps(self, first: int, last: int) -> Iterator[list[Pack]]:
        """Packs of steps ``first`` to ``last - 1``; an epoch's end runs on into the next one."""
        stream = (pack for epoch in itertools.count() for pack in self.epoch(epoch))
        for _ in range(first * self._packs_per_step):
            next(stream)
        for _ in range(first, last):
            yield [next(stream) for _ in range(self._packs_per_step)]


class DialoguePlan(StepPlan):
    """Rows of whole dialogues.

    Args:
        dialogues: all training dialogues, encoded.
        max_tokens: tokens of a row.
        packs_per_step: rows of one optimiser step over all workers.
        seed: base of each epoch's shuffle.
        packing: False for one dialogue a row.
        share_prefix: True for one copy of a system message a row.
        samples: what an epoch, counted from 0, uses of the dialogues; None for each once.
    """

    def __init__(
        self,
        dialogues: Sequence[EncodedDialogue],
        *,
        max_tokens: int,
        packs_per_step: int,
        seed: int,
        packing: bool = True,
        share_prefix: bool = False,
        samples: Callable[[int], Sequence[Sample]] | None = None,
    ) -> None:
        super().__init__(packs_per_step)
        self._dialogues = dialogues
        self._max_tokens = max_tokens
        self._seed = seed
        self._packing = packing
        self._share_prefix = share_prefix
        self._samples = samples

    def epoch(self, epoch: int) -> list[Pack]:
        """See :meth:`StepPlan.epoch`."""
        return make_packs(
            self._dialogues,
            self._max_tokens,
            self._seed + epoch,
            packing=self._packing,
            share_prefix=self._share_prefix,
            samples=self._samples and self._samples(epoch),
        )
