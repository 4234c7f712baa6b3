"""Dialogue files to token sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ecg_agent_ray.agent.chat_format import ChatFormat, EncodedDialogue
from ecg_agent_ray.dialogue import Dialogue, LeadConfiguration, render_turn, system_prompt

__all__ = ["common_lead_configuration", "encode_all", "to_messages"]


def to_messages(dialogue: Dialogue, *, level: str | None = None) -> list[dict[str, Any]]:
    """OpenAI-shaped messages: the system prompt, then every turn, tool outputs included."""
    prompt = system_prompt(dialogue.lead_configuration, level=level)
    messages = [{"role": "system", "content": prompt}]
    for turn in dialogue.turns:
        content = turn.content if turn.role == "user" else render_turn(turn)
        messages.append({"role": turn.role, "content": content or ""})
    return messages


def encode_all(chat: ChatFormat, dialogues: Iterable[Dialogue]) -> list[EncodedDialogue]:
    """Encode each dialogue, every other one with its language level in the prompt."""
    encoded = []
    for index, dialogue in enumerate(dialogues):
        level = dialogue.cefr_level if index % 2 else None
        encoded.append(chat.encode_dialogue(to_messages(dialogue, level=level)))
    return encoded


def common_lead_configuration(dialogues: Sequence[Dialogue]) -> LeadConfiguration | None:
    """The lead configuration all dialogues share, or None."""
    found = {dialogue.lead_configuration for dialogue in dialogues}
    return found.pop() if len(found) == 1 else None
