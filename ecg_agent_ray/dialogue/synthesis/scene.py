"""One dialogue while it is being written: what is known so far, and how its turns are added."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ecg_agent_ray.dialogue.actions import Action
from ecg_agent_ray.dialogue.synthesis.checks import check_answer
from ecg_agent_ray.dialogue.synthesis.facts import Finding, RecordFacts
from ecg_agent_ray.dialogue.synthesis.knowledge import Condition
from ecg_agent_ray.dialogue.synthesis.phrases import PhraseBank
from ecg_agent_ray.dialogue.synthesis.voice import type_like
from ecg_agent_ray.dialogue.turns import Turn
from ecg_agent_ray.facts.quantities import QUANTITIES

__all__ = ["RATING_WORDS", "Focus", "Scene", "capital", "joined"]

RATING_WORDS = {
    "low": "below the usual range",
    "normal": "in the usual range",
    "high": "above the usual range",
}
_LEXICON_NAME = {
    "heart_rate": "{hr}",
    "pr_interval": "{pr}",
    "qrs_duration": "{qrs}",
    "qtc_interval": "{qtc}",
}


@dataclass(frozen=True, slots=True)
class Focus:
    """What "that" would mean in the user's next words."""

    kind: Literal["value", "values", "finding", "explanation"]
    key: str = ""


@dataclass
class Scene:
    """State of a dialogue in the making; the moves read it and add turns to it."""

    facts: RecordFacts
    topic: str
    level: str
    manner: str
    bank: PhraseBank
    rng: random.Random
    turns: list[Turn] = field(default_factory=list)
    focus: Focus | None = None
    done: set[Action] = field(default_factory=set)
    recent: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)

    # --- what is known -------------------------------------------------------------------------
    @property
    def is_first(self) -> bool:
        return not self.turns

    @property
    def measured(self) -> bool:
        return Action.CALL_MEASUREMENT in self.done

    @property
    def classified(self) -> bool:
        return Action.CALL_CLASSIFICATION in self.done

    @property
    def leading(self) -> Finding | None:
        """The finding to talk about first: the leading abnormal one, else the leading one."""
        findings = self.facts.findings
        return next((item for item in findings if not item.is_benign), None) or (
            findings[0] if findings else None
        )

    def finding(self, code: str) -> Finding:
        return next(item for item in self.facts.findings if item.code == code)

    # --- words ---------------------------------------------------------------------------------
    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def draw(self, pool: str, **values: str) -> str:
        return self.bank.draw(self.rng, pool, self.level, values)

    def user_name(self, key: str) -> str:
        """What a user calls a measured value."""
        return self.bank.fill(self.rng, _LEXICON_NAME[key], {})

    def condition_slots(self, condition: Condition) -> dict[str, str]:
        """A name of the condition: as it is, ``bare`` of its article, and with a capital."""
        name = self.rng.choice(condition.names)
        bare = re.sub(r"^(a|an) ", "", name)
        return {"condition": name, "bare": bare, "condition_cap": capital(name)}

    def value_slots(self, key: str) -> dict[str, str]:
        """Slots of an answer about one value that was measured."""
        quantity = QUANTITIES[key]
        return {
            "name": quantity.name,
            "shown": self.facts.shown(key),
            "usual": quantity.usual,
            "meaning": quantity.meaning,
            "rating": RATING_WORDS[self.facts.rating(key)],
        }

    def values_list(self, keys: Sequence[str]) -> str:
        return joined([f"{QUANTITIES[key].name} {self.facts.shown(key)}" for key in keys])

    def off_list(self, keys: Sequence[str]) -> str:
        """Those of ``keys`` outside their usual range, in words; empty where all are inside."""
        parts = []
        for key in keys:
            rating = self.facts.rating(key)
            if rating != "normal":
                word = "below" if rating == "low" else "above"
                parts.append(f"the {QUANTITIES[key].name} is {word} the usual range")
        return joined(parts)

    # --- turns ---------------------------------------------------------------------------------
    def say(self, *parts: str) -> None:
        """Add a user turn of the given parts, typed in the user's manner."""
        text = " ".join(part for part in parts if part)
        self.heard.append(text)
        self.turns.append(Turn.user(type_like(text, self.manner, self.rng)))

    def call(self, action: Action, thought: str, output: Any) -> None:
        self.turns.append(Turn.call(action, capital(thought), output))
        self.done.add(action)

    def answer(self, action: Action, thought: str, *sentences: str, general: bool = False) -> None:
        """Add an answer, after checking it against the tool outputs so far.

        Raises :class:`ecg_agent_ray.errors.DialogueError` where it does not hold.
        """
        content = " ".join(capital(sentence) for sentence in sentences if sentence)
        heard = " ".join(self.heard)  # before typing errors, which would hide a name
        outputs = [
            (turn.assistant_action, turn.tool_output) for turn in self.turns if turn.is_tool_call
        ]
        for text in (thought, content):
            check_answer(text, outputs, heard=heard, general=general)
        self.turns.append(Turn.answer(action, capital(thought), content))

    def choose(self, weights: Mapping[str, float]) -> str:
        """A name by weight, seldom one that was just chosen."""
        names = list(weights)
        damped = [weights[name] * (0.15 if name in self.recent else 1.0) for name in names]
        name = self.rng.choices(names, damped)[0]
        self.recent.append(name)
        return name


def joined(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def capital(text: str) -> str:
    """First letter large, the rest as it is (PR, QTc)."""
    return text[:1].upper() + text[1:]
