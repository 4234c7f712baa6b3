"""Checks beyond the schema: does a dialogue make sense as one, and is its text clean?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ecg_agent_ray.dialogue.actions import Action
from ecg_agent_ray.dialogue.slotted import holds_slots, slot_faults
from ecg_agent_ray.dialogue.turns import LEAD_CONFIGURATIONS, Dialogue, Turn
from ecg_agent_ray.facts.quantities import QUANTITIES

__all__ = ["DialogueStats", "Problem", "clean_report", "stats", "validate"]

_CLASS = re.compile(r"^\S+ \(\d{1,3}(\.\d+)?%\)$")
_EXPLANATION = re.compile(r"^\S+ \(\d{1,3}(\.\d+)?%\) \| ")
_MEASUREMENTS = tuple(QUANTITIES)
_LEVELS = frozenset({"A", "B", "C", "A1", "A2", "B1", "B2", "C1", "C2"})

# what a generator says about its own task instead of about the user
_LEAKS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(this|the|my|given|current|prompted|provided) (action )?sequence\b",
        r"\baction_sequence\b|\bsequence of actions\b",
        r"\b(as|per|according to|following) (the |my )?(instructions?|prompt|guidelines?|rules)\b",
        r"\b(prompt|instructions?|system) (says?|states?|requires?|dictates?|is designed to)\b",
        r"\bno tools? (calls? )?(are|is) (allowed|permitted|available)\b",
        r"\b(cefr|ground[ -]truth|gold|dataset|data set|few-shot|in[- ]context example)\b",
        r"\bnext action (should|must|is|in)\b",
        r"\bI (was|am|have been) (told|instructed|asked|required) to\b",
        r"\b(simulate|role-?play|pretend|generate (a|the) dialogue)\b",
        r"\bas an? (AI|language model|LLM)\b",
    )
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: dialogue and turn count from 0; ``turn`` is ``None`` for the whole dialogue."""

    dialogue: int
    turn: int | None
    code: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def validate(dialogues: Sequence[Dialogue]) -> list[Problem]:
    """All faults of all dialogues, in order.

    Errors would teach or score something wrong: turns out of order, a tool output in an unknown
    shape, a goodbye that is not the end, a slot without a text. Warnings are worth a look: a
    ``response`` without a tool output before it, actions other than the metadata's, a thought that
    leaks instructions.
    """
    problems: list[Problem] = []
    for number, dialogue in enumerate(dialogues):
        problems.extend(_metadata_problems(number, dialogue))
        problems.extend(_order_problems(number, dialogue))
        if holds_slots(dialogue):
            problems.extend(
                Problem(number, turn, "slot", fault) for turn, fault in slot_faults(dialogue)
            )
        for index, turn in enumerate(dialogue.turns):
            problems.extend(_turn_problems(number, index, turn))
    return problems


def clean_report(dialogues: Sequence[Dialogue]) -> list[Problem]:
    """Thoughts that speak of the generator's instructions instead of the user's need."""
    return [
        Problem(
            number,
            index,
            "leaked_instruction",
            f"the thought speaks of its instructions: {found.group(0)!r}",
            "warning",
        )
        for number, dialogue in enumerate(dialogues)
        for index, turn in enumerate(dialogue.turns)
        if turn.thought and (found := _leak(turn.thought))
    ]


@dataclass(frozen=True, slots=True)
class DialogueStats:
    """Counts over a dialogue set."""

    n_dialogues: int
    n_user_turns: int
    n_assistant_turns: int
    n_records: int
    actions: dict[str, int]
    topics: dict[str, int]
    cefr_levels: dict[str, int]
    lead_configurations: dict[str, int]
    n_action_sequences: int
    distinct_user_utterances: int
    mean_user_words: float
    mean_answer_words: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def stats(dialogues: Sequence[Dialogue]) -> DialogueStats:
    """Count turns, actions, topics, levels, and how varied the user's wording is."""
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    said = [turn.content or "" for turn in turns if turn.role == "user"]
    answers = [turn.content for turn in turns if turn.role == "assistant" and turn.content]
    return DialogueStats(
        n_dialogues=len(dialogues),
        n_user_turns=len(said),
        n_assistant_turns=len(turns) - len(said),
        n_records=len({dialogue.record_id for dialogue in dialogues if dialogue.record_id}),
        actions=_counts(str(action) for dialogue in dialogues for action in dialogue.actions),
        topics=_counts(dialogue.source_category for dialogue in dialogues),
        cefr_levels=_counts(dialogue.cefr_level or "none" for dialogue in dialogues),
        lead_configurations=_counts(
            str(dialogue.metadata.get("lead_configuration")) for dialogue in dialogues
        ),
        n_action_sequences=len({tuple(dialogue.actions) for dialogue in dialogues}),
        distinct_user_utterances=len(set(said)),
        mean_user_words=_mean_words(said),
        mean_answer_words=_mean_words(answers),
    )


def _counts(values: Iterator[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _mean_words(texts: Sequence[str]) -> float:
    return round(sum(len(text.split()) for text in texts) / len(texts), 2) if texts else 0.0


def _leak(thought: str) -> re.Match[str] | None:
    return next((found for pattern in _LEAKS if (found := pattern.search(thought))), None)


def _metadata_problems(number: int, dialogue: Dialogue) -> Iterator[Problem]:
    lead = dialogue.metadata.get("lead_configuration")
    if lead not in LEAD_CONFIGURATIONS:
        yield Problem(number, None, "lead_configuration", f"lead_configuration is {lead!r}")
    if not dialogue.ecg_files:
        yield Problem(number, None, "ecg_files", "no ECG file is named")
    level = dialogue.cefr_level
    if level is not None and level not in _LEVELS:
        yield Problem(number, None, "cefr_level", f"cefr_level is {level!r}", "warning")
    prompted = dialogue.metadata.get("action_sequence_prompted")
    if isinstance(prompted, list) and prompted != [str(action) for action in dialogue.actions]:
        yield Problem(
            number,
            None,
            "action_sequence",
            "the actions differ from the metadata's action_sequence_prompted",
            "warning",
        )


def _order_problems(number: int, dialogue: Dialogue) -> Iterator[Problem]:
    previous: Turn | None = None
    for index, turn in enumerate(dialogue.turns):
        after_call = previous is not None and previous.is_tool_call
        if turn.role == "user":
            if after_call:
                yield Problem(number, index, "order", "a tool call is not followed by an answer")
            elif previous is not None and previous.role == "user":
                yield Problem(number, index, "order", "two user turns in a row")
        elif previous is None:
            yield Problem(number, index, "order", "the dialogue does not start with the user")
        elif previous.role == "assistant" and not after_call:
            yield Problem(number, index, "order", "two answers in a row")
        elif turn.assistant_action is Action.RESPONSE and not after_call:
            yield Problem(
                number, index, "response", "response, but no tool was just called", "warning"
            )
        if (
            turn.role == "assistant"
            and turn.assistant_action is Action.SYSTEM_BYE
            and index + 1 < len(dialogue.turns)
        ):
            yield Problem(number, index, "order", "the dialogue goes on after system_bye")
        previous = turn
    if previous is not None and (previous.role == "user" or previous.is_tool_call):
        yield Problem(
            number, len(dialogue.turns) - 1, "order", "the dialogue does not end with an answer"
        )


def _turn_problems(number: int, index: int, turn: Turn) -> Iterator[Problem]:
    if turn.content is not None and not turn.content.strip():
        yield Problem(number, index, "empty", "content is empty")
    if turn.role == "user":
        return
    if not (turn.thought or "").strip():
        yield Problem(number, index, "empty", "thought is empty", "warning")
    elif found := _leak(turn.thought or ""):
        yield Problem(
            number,
            index,
            "leaked_instruction",
            f"the thought speaks of its instructions: {found.group(0)!r}",
            "warning",
        )
    if turn.is_pending:
        yield Problem(number, index, "tool_output", "the tool call has no tool_output")
    elif turn.is_tool_call and (fault := _output_fault(turn.assistant_action, turn.tool_output)):
        yield Problem(number, index, "tool_output", fault)


def _output_fault(action: Action, output: Any) -> str | None:
    failed = isinstance(output, dict) and "error" in output
    if failed or (isinstance(output, str) and output.startswith("Explanation error")):
        return None  # any tool may fail; the answer after it says so
    if action is Action.CALL_CLASSIFICATION:
        if not isinstance(output, list):
            return f"a classification is a list of statements, not {type(output).__name__}"
        bad = [item for item in output if not (isinstance(item, str) and _CLASS.match(item))]
        return f"no statement with a percentage: {bad[0]!r}" if bad else None
    if action is Action.CALL_MEASUREMENT:
        if not isinstance(output, dict) or set(output) != set(_MEASUREMENTS):
            return f"a measurement is an object of {', '.join(_MEASUREMENTS)}"
        bad = [name for name, value in output.items() if not _is_number(value)]
        return f"{bad[0]} is {output[bad[0]]!r}, neither a number nor null" if bad else None
    if not isinstance(output, str) or not _EXPLANATION.match(output):
        return "an explanation is a line 'LABEL (p%) | …'"
    return None


def _is_number(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, bool):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
