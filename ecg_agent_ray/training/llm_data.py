"""Dialogue files to token sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ecg_agent_ray.agent.chat_format import ChatFormat, EncodedDialogue
from ecg_agent_ray.agent.speech import Speech, StrictView
from ecg_agent_ray.dialogue import Dialogue, LeadConfiguration, system_prompt
from ecg_agent_ray.dialogue.render import dialogue_messages
from ecg_agent_ray.training.llm_config import BatchConfig
from ecg_agent_ray.training.packing import Pack, make_packs

__all__ = ["common_lead_configuration", "encode_all", "make_rows"]


def encode_all(
    chat: ChatFormat, dialogues: Iterable[Dialogue], speech: Speech = "open"
) -> list[EncodedDialogue]:
    """Encode each dialogue as a model of this speech reads it.

    For an open model every other dialogue has its language level in the prompt; for a strict one
    answers are in slots and user turns carry the knowledge that retrieval finds for them, with what
    the metadata keep ``beside`` the tool outputs.
    """
    encoded = []
    for index, dialogue in enumerate(dialogues):
        if speech == "strict":
            prompt = system_prompt(dialogue.lead_configuration, speech=speech)
            view = StrictView.of(dialogue.turns, dialogue.metadata.get("beside"))
            system = {"role": "system", "content": prompt}
            encoded.append(chat.encode_dialogue([system, *view.messages]))
            continue
        level = dialogue.cefr_level if index % 2 else None
        prompt = system_prompt(dialogue.lead_configuration, level=level)
        encoded.append(chat.encode_dialogue(dialogue_messages(dialogue, prompt)))
    return encoded


def common_lead_configuration(dialogues: Sequence[Dialogue]) -> LeadConfiguration | None:
    """The lead configuration all dialogues share, or None."""
    found = {dialogue.lead_configuration for dialogue in dialogues}
    return found.pop() if len(found) == 1 else None


def make_rows(encoded: Sequence[EncodedDialogue], batch: BatchConfig, seed: int) -> list[Pack]:
    """One epoch's rows: packed, or one dialogue each."""
    return make_packs(
        encoded,
        batch.max_tokens,
        seed,
        packing=batch.packing,
        share_prefix=batch.share_prefix,
    )
