"""Preference pairs from a model's own answers, judged by rewards that can be verified.

    situations = dialogue_situations(agent, read_dialogues("train.jsonl"))
    sampled = sample_answers(agent.engine, situations, "samples.jsonl", Sampling(per_situation=6))
    pairs = preference_pairs(sampled, {"action": right_action, "brevity": brevity(40)})
    write_pairs("pairs.jsonl", pairs)

Sampling is the slow part: each situation's answers are written as soon as they are there, and the
same call goes on after what the file holds. Judging them takes seconds and may be done again with
other rewards. A reward is any function of the answer and the situation, from 0 (bad) to 1.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ecg_agent_ray.agent.engine import Engine, GenerationRequest
from ecg_agent_ray.agent.loop import Agent
from ecg_agent_ray.agent.toolbox import offered_actions
from ecg_agent_ray.dialogue import (
    Action,
    Dialogue,
    LeadConfiguration,
    Turn,
    parse_turn,
)
from ecg_agent_ray.errors import DialogueError
from ecg_agent_ray.facts import SLOT
from ecg_agent_ray.training.llm_pairs import PreferencePair

__all__ = [
    "Reward",
    "Sampled",
    "Sampling",
    "Situation",
    "brevity",
    "dialogue_situations",
    "preference_pairs",
    "right_action",
    "sample_answers",
]

logger = logging.getLogger(__name__)


class Situation(BaseModel):
    """Where the model has to write an assistant message.

    ``messages`` are what it reads, the system message first. ``reference`` is a good answer, None
    where none is known; ``facts`` is whatever rewards need beside. ``key`` names the situation in
    the file of samples.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    messages: list[dict[str, str]]
    actions: list[Action] = Field(default_factory=lambda: [*Action])
    slots: list[str] | None = Field(default=None, description="As in a GenerationRequest.")
    reference: str | None = None
    lead_configuration: LeadConfiguration | None = None
    facts: dict[str, Any] = Field(default_factory=dict)


class Sampled(BaseModel):
    """A situation and the distinct answers that the model gave."""

    model_config = ConfigDict(frozen=True)

    situation: Situation
    answers: list[str]


class Sampling(BaseModel):
    """How answers are drawn. A situation's draws depend on ``seed`` and its key alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_situation: int = Field(default=6, ge=2)
    temperature: float = Field(default=0.9, gt=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=160, ge=1)
    seed: int = 0


Reward = Callable[[Turn, Situation], float]
"""How good an answer is, 0 to 1."""


def dialogue_situations(
    agent: Agent,
    dialogues: Iterable[Dialogue],
    *,
    facts: Callable[[Dialogue, int], dict[str, Any]] | None = None,
) -> Iterator[Situation]:
    """A situation for each assistant turn, after the dialogue's own history.

    Parameters
    ----------
    agent
        Whose model reads them: it decides the system message, the speech and what is offered.
    dialogues
        With the assistant's turns as references; what the tools know beyond their outputs is read
        from the metadata's ``beside``, as in training.
    facts
        What rewards are to know, from the dialogue and the turn's place in it.
    """
    for dialogue in dialogues:
        beside = dialogue.metadata.get("beside")
        called: list[Action] = []
        for place, turn in enumerate(dialogue.turns):
            if turn.role == "user":
                called = []
                continue
            history = dialogue.turns[:place]
            messages, slots = agent.view(history, beside)
            read = [dict(message) for message in (agent.system, *messages)]
            whole = zlib.crc32(json.dumps(read).encode())
            yield Situation(
                key=f"{dialogue.record_id or 'dialogue'}-{place}-{whole:08x}",
                messages=read,
                actions=[*offered_actions(called, agent.max_tool_calls)],
                slots=None if slots is None else list(slots),
                reference=_written(agent, history, turn, beside),
                lead_configuration=dialogue.lead_configuration,
                facts=facts(dialogue, place) if facts else {},
            )
            if turn.is_tool_call:
                called.append(turn.assistant_action)


def _written(agent: Agent, history: Sequence[Turn], turn: Turn, beside: Any) -> str:
    """What the model itself would write of a turn."""
    if turn.is_tool_call:
        turn = Turn(role="assistant", action=turn.assistant_action, thought=turn.thought)
    return agent.view([*history, turn], beside)[0][-1]["content"]


def sample_answers(
    engine: Engine,
    situations: Iterable[Situation],
    path: str | Path,
    sampling: Sampling | None = None,
) -> Iterator[Sampled]:
    """Draw answers, one file line a situation; those that the file holds are not drawn again.

    Yields every situation's answers in their order, from the file or just drawn. A line that a
    killed process left half written is drawn again.
    """
    sampling = sampling or Sampling()
    file = Path(path)
    known = _known(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        if file.stat().st_size and not file.read_bytes().endswith(b"\n"):
            out.write("\n")
        for situation in situations:
            found = known.get(situation.key)
            if found is None:
                found = Sampled(situation=situation, answers=_drawn(engine, situation, sampling))
                out.write(found.model_dump_json() + "\n")
                out.flush()
            yield found


def _known(file: Path) -> dict[str, Sampled]:
    found: dict[str, Sampled] = {}
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for line in lines:
        try:
            sampled = Sampled.model_validate_json(line)
        except ValueError:
            continue  # torn
        found[sampled.situation.key] = sampled
    return found


def _drawn(engine: Engine, situation: Situation, sampling: Sampling) -> list[str]:
    answers: dict[str, None] = {}
    first = sampling.seed * 1_000_003 + zlib.crc32(situation.key.encode())
    for number in range(sampling.per_situation):
        request = GenerationRequest(
            actions=tuple(situation.actions),
            slots=None if situation.slots is None else tuple(situation.slots),
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=(first + number) % 2**31,
        )
        answers[engine.generate(situation.messages, request).text().rstrip("\n")] = None
    return list(answers)


def preference_pairs(
    sampled: Iterable[Sampled],
    rewards: Mapping[str, Reward],
    *,
    weights: Mapping[str, float] | None = None,
    margin: float = 0.25,
    with_reference: bool = True,
    per_situation: int = 1,
) -> list[PreferencePair]:
    """Pair each situation's best answer with its worst ones.

    Parameters
    ----------
    sampled
        Answers to judge; one that is no assistant turn at all gets no reward and may be rejected.
    rewards
        By name; an answer's score is their weighted mean.
    weights
        Of the rewards, 1 where a name lacks.
    margin
        Least difference of the scores, 0 to 1; situations with less give no pair.
    with_reference
        The reference is a candidate too, which teaches where no drawn answer is good. Of equally
        good ones a drawn answer is chosen: it is the model's own wording.
    per_situation
        Most pairs of one situation, all with the same chosen answer, worst first.
    """
    shares = {name: (weights or {}).get(name, 1.0) for name in rewards}
    pairs: list[PreferencePair] = []
    for one in sampled:
        situation = one.situation
        texts = list(one.answers)
        if with_reference and situation.reference is not None and _may_be_written(situation):
            texts.append(situation.reference)
        judged = [_judged(text, situation, rewards, shares) for text in texts]
        if not judged:
            continue
        best = max(range(len(judged)), key=lambda n: judged[n][0])
        worst_first = sorted(range(len(one.answers)), key=lambda n: judged[n][0])
        pairs += [
            _pair(situation, (texts[best], *judged[best]), (texts[n], *judged[n]))
            for n in worst_first[:per_situation]
            if judged[best][0] - judged[n][0] >= margin
        ]
    logger.info("%d preference pairs", len(pairs))
    return pairs


def _may_be_written(situation: Situation) -> bool:
    """Whether the reference holds no slot that the model is not offered here."""
    named = SLOT.findall(situation.reference or "")
    return situation.slots is None or set(named) <= set(situation.slots)


def _judged(
    text: str, situation: Situation, rewards: Mapping[str, Reward], shares: Mapping[str, float]
) -> tuple[float, dict[str, float]]:
    try:
        turn = parse_turn(text)
    except DialogueError:
        return 0.0, {}
    found = {name: float(reward(turn, situation)) for name, reward in rewards.items()}
    total = sum(shares.values())
    return sum(shares[name] * value for name, value in found.items()) / total, found


def _pair(
    situation: Situation,
    chosen: tuple[str, float, dict[str, float]],
    rejected: tuple[str, float, dict[str, float]],
) -> PreferencePair:
    return PreferencePair(
        messages=situation.messages,
        chosen=chosen[0],
        rejected=rejected[0],
        lead_configuration=situation.lead_configuration,
        key=situation.key,
        rewards={"chosen": chosen[2], "rejected": rejected[2]},
    )


def right_action(turn: Turn, situation: Situation) -> float:
    """1 where the answer does what the reference does; without a reference 0."""
    if situation.reference is None:
        return 0.0
    return float(turn.assistant_action is parse_turn(situation.reference).assistant_action)


def brevity(words: int) -> Reward:
    """1 up to so many words of content, then falling with their number."""

    def reward(turn: Turn, _: Situation) -> float:
        return min(1.0, words / max(1, len((turn.content or "").split())))

    return reward
