"""Dialogues in ECG-MTD's form about any recordings, written offline from their tool outputs.

What it covers: seven topics, three CEFR levels, fixed and random sequences of moves over all seven
actions, missing measurements, requests out of scope, goodbyes at any point; users who write neatly,
carelessly or with errors. What it does not: real conversations. Its phrase bank is broad but
finite, and its answers are plain.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ecg_agent_ray.dialogue.synthesis import talk_moves, tool_moves
from ecg_agent_ray.dialogue.synthesis.checks import check_answer
from ecg_agent_ray.dialogue.synthesis.facts import RecordFacts
from ecg_agent_ray.dialogue.synthesis.phrases import SPLITS, PhraseBank, Split, load_pools
from ecg_agent_ray.dialogue.synthesis.plan import (
    LEVELS,
    SEQUENCES,
    TOPICS,
    is_possible,
    random_sequence,
)
from ecg_agent_ray.dialogue.synthesis.report import (
    Diversity,
    Overlap,
    bank_size,
    diversity,
    overlap,
)
from ecg_agent_ray.dialogue.synthesis.scene import Scene
from ecg_agent_ray.dialogue.synthesis.variation import vary
from ecg_agent_ray.dialogue.synthesis.voice import MANNERS
from ecg_agent_ray.dialogue.turns import LEAD_CONFIGURATIONS, Dialogue, LeadConfiguration
from ecg_agent_ray.errors import ConfigError

__all__ = [
    "SEQUENCES",
    "SPLITS",
    "TOPICS",
    "Diversity",
    "Overlap",
    "RecordFacts",
    "Split",
    "bank_size",
    "check_answer",
    "diversity",
    "load_pools",
    "overlap",
    "synthesize",
    "vary",
]


def _ask_for_missing(scene: Scene) -> None:
    if scene.measured:
        talk_moves.ask_for_known_null(scene)
    else:
        tool_moves.measure(scene, missing=True)


_MOVES: dict[str, Callable[[Scene], None]] = {
    "B": tool_moves.both,
    "C": tool_moves.classify,
    "D": tool_moves.classify_and_explain,
    "E": tool_moves.explain,
    "F": talk_moves.follow_up,
    "H": talk_moves.hello,
    "K": tool_moves.tool_failure,
    "M": tool_moves.measure,
    "N": talk_moves.fail,
    "Q": lambda scene: talk_moves.bye(scene, early=True),
    "X": _ask_for_missing,
    "Y": talk_moves.emergency,
    "Z": talk_moves.bye,
}
_FIXED_SHARE = 0.5


def synthesize(
    recordings_with_outputs: Sequence[RecordFacts],
    *,
    n: int,
    seed: int,
    lead_configurations: Sequence[LeadConfiguration] = LEAD_CONFIGURATIONS,
    split: Split = "train",
) -> list[Dialogue]:
    """Write ``n`` dialogues about the given recordings.

    Parameters
    ----------
    recordings_with_outputs
        Tool outputs by recording and lead configuration; those of other configurations than
        ``lead_configurations`` are left out.
    n, seed
        The same arguments give the same dialogues; a larger ``n`` goes on where a smaller ended.
    split
        ``train``, ``validation`` or ``test``: which part of the phrase bank to write from. The
        parts share no template, for users and assistant alike.

    Topics and levels are balanced. ``metadata`` names the ids of the templates used. Raises
    :class:`ConfigError` where nothing is left to write about, and
    :class:`ecg_agent_ray.errors.DialogueError` for a tool output that cannot be read.
    """
    facts = [item for item in recordings_with_outputs
             if item.lead_configuration in lead_configurations]  # fmt: skip
    if not facts:
        raise ConfigError(
            f"no recording has outputs for {', '.join(lead_configurations)}",
            hint="run the tools for these lead configurations first",
        )
    order = _in_turn(facts, random.Random(f"{seed}:{split}:records"))
    return [_write(next(order), facts, number, seed, split) for number in range(n)]


def _in_turn(facts: Sequence[RecordFacts], rng: random.Random) -> Iterator[RecordFacts]:
    """Each recording once before any comes again."""
    while True:
        yield from rng.sample(facts, k=len(facts))


def _write(
    record: RecordFacts, facts: Sequence[RecordFacts], number: int, seed: int, split: Split
) -> Dialogue:
    rng = random.Random(f"{seed}:{split}:{number}")
    topic = list(TOPICS)[number % len(TOPICS)]
    level = LEVELS[number // len(TOPICS) % len(LEVELS)]
    if rng.random() < _FIXED_SHARE:
        moves = SEQUENCES[rng.randrange(len(SEQUENCES))]
        fitting = record if is_possible(moves, record) else None
        candidates = [item for item in facts if is_possible(moves, item)]
        if fitting is None and candidates:
            fitting = rng.choice(candidates)
        record, moves = (fitting, moves) if fitting else (record, random_sequence(rng, record))
    else:
        moves = random_sequence(rng, record)
    bank = PhraseBank(split)
    manner = rng.choices(list(MANNERS), list(MANNERS.values()))[0]
    scene = Scene(record, topic, level, manner, bank, rng)
    for move in moves:
        _MOVES[move](scene)
    return Dialogue(
        turns=scene.turns,
        ecg_files=[record.ecg_file],
        metadata=_metadata(scene, split),
        source_category=TOPICS[topic],
    )


def _metadata(scene: Scene, split: Split) -> dict[str, Any]:
    digits = re.search(r"(\d+)\D*$", scene.facts.record_id)
    actions = [str(turn.assistant_action) for turn in scene.turns if turn.role == "assistant"]
    return {
        "ecg_id": int(digits.group(1)) if digits else scene.facts.record_id,
        "record_id": scene.facts.record_id,
        "cefr_level": scene.level,
        "action_sequence_prompted": actions,
        "lead_configuration": scene.facts.lead_configuration,
        "split": split,
        **({"made_up_outputs": True} if scene.facts.made_up else {}),
        "template_ids": scene.bank.used_ids,
    }
