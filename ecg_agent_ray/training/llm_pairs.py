"""Preference pairs: two answers to one history, the better one first. Files and token sequences.

A pairs file is JSON lines::

    {"messages": [{"role": "system", …}, {"role": "user", …}, …],
     "chosen": "Action: …\\nThought: …\\nContent: …", "rejected": "…", …}

``messages`` are as a model reads them: the system message first, assistant turns rendered (see
:func:`ecg_agent_ray.dialogue.render_turn`). A text that calls a tool ends after its thought. Other
keys are kept, for whoever looks at the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ecg_agent_ray.agent.chat_format import IGNORE_INDEX, ChatFormat, EncodedDialogue
from ecg_agent_ray.agent.chat_format import TOOL_OUTPUT_MARKER as CALLED
from ecg_agent_ray.dialogue import LeadConfiguration, dialogue_files, parse_turn
from ecg_agent_ray.errors import DialogueError

__all__ = ["PreferencePair", "encode_pairs", "read_pairs", "write_pairs"]

logger = logging.getLogger(__name__)


class PreferencePair(BaseModel):
    """One line of a pairs file. Immutable; unknown keys survive a round trip."""

    model_config = ConfigDict(extra="allow", frozen=True)

    messages: list[dict[str, str]] = Field(min_length=2)
    chosen: str = Field(min_length=1)
    rejected: str = Field(min_length=1)
    lead_configuration: LeadConfiguration | None = None
    key: str | None = Field(default=None, description="Names the situation that was answered.")
    rewards: dict[Literal["chosen", "rejected"], dict[str, float]] | None = Field(
        default=None, description="By name, each from 0 to 1; why the one was preferred."
    )


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """All pairs of a file or a folder of files; :class:`DialogueError` names a faulty line."""
    pairs = []
    for file in dialogue_files(path):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                pairs.append(PreferencePair.model_validate_json(line))
            except ValidationError as error:
                fault = error.errors(include_url=False, include_input=False)[0]
                where = ".".join(map(str, fault["loc"]))
                raise DialogueError(
                    f"{file}, line {number} is not a preference pair: {where}: {fault['msg']}"
                ) from error
    if not pairs:
        raise DialogueError(f"{path} holds no preference pair")
    return pairs


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> Path:
    """Write a pairs file; its path."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [pair.model_dump_json(exclude_none=True) + "\n" for pair in pairs]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def encode_pairs(
    chat: ChatFormat, pairs: Sequence[PreferencePair], max_tokens: int
) -> list[EncodedDialogue]:
    """Two sequences a pair, chosen and rejected; targets are the answers' own words alone.

    ``prefix`` counts the whole history, up to where the two answers begin. A pair longer than
    ``max_tokens``, its history counted once, is dropped with a warning: cut, it would compare
    something else.
    """
    found: list[EncodedDialogue] = []
    for pair in pairs:
        begin = len(chat.encode_prompt(pair.messages))
        both = [_answer(chat, pair, text, begin) for text in (pair.chosen, pair.rejected)]
        if sum(len(one.input_ids) for one in both) - begin <= max_tokens:
            found += both
    dropped = len(pairs) - len(found) // 2
    if dropped:
        logger.warning(
            "%d of %d pairs are longer than %d tokens and dropped", dropped, len(pairs), max_tokens
        )
    return found


def _answer(chat: ChatFormat, pair: PreferencePair, text: str, begin: int) -> EncodedDialogue:
    if CALLED not in text and _is_pending(text):
        text += CALLED  # the last that a model writes of a tool call
    message = {"role": "assistant", "content": text}
    whole = chat.encode_dialogue([*pair.messages, message])
    labels = [IGNORE_INDEX] * begin + whole.labels[begin:]
    last = max(index for index, label in enumerate(labels) if label != IGNORE_INDEX) + 1
    return replace(
        whole,
        input_ids=whole.input_ids[:last],
        labels=labels[:last],
        is_action=whole.is_action[:last],
        prefix=begin,
    )


def _is_pending(text: str) -> bool:
    try:
        return parse_turn(text).is_pending
    except DialogueError:
        return False
