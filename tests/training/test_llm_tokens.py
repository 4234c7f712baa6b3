"""One pass over a dialogue against one copy of its history for each turn: cost and loss."""

from __future__ import annotations

from typing import Any

import pytest

from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, load_tokenizer
from ecg_agent_ray.agent.chat_format import IGNORE_INDEX, ChatFormat, EncodedDialogue
from ecg_agent_ray.dialogue import Dialogue, system_prompt
from ecg_agent_ray.dialogue.render import dialogue_messages
from ecg_agent_ray.dialogue.synthesis import RecordFacts, synthesize
from ecg_agent_ray.training.llm_data import encode_all
from ecg_agent_ray.training.packing import make_packs

FACTS = RecordFacts(
    record_id="HR00001",
    ecg_file="HR00001.mat",
    lead_configuration="12-lead",
    measurement={
        "heart_rate": "72.35",
        "pr_interval": "160",
        "qrs_duration": None,
        "qtc_interval": "412.55",
    },
    classification=["SR (98.23%)", "NORM (86.88%)"],
    explanation={"SR": "SR (98.23%) | time=3.072-3.072s, freq=11.7-11.7Hz"},
)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(load_tokenizer(LAPTOP_BASE_MODEL))


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    return synthesize([FACTS], n=200, seed=1)


def copies(chat: ChatFormat, dialogue: Dialogue, level: str | None) -> list[EncodedDialogue]:
    """The other scheme: for each assistant turn all that came before it, and the turn as target."""
    messages = dialogue_messages(dialogue, system_prompt(dialogue.lead_configuration, level=level))
    found = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = len(chat.encode_prompt(messages[:index]))
        turn = chat.encode_dialogue(messages[: index + 1])
        # what follows a turn's last target teaches nothing
        last = max(i for i, label in enumerate(turn.labels) if label != IGNORE_INDEX)
        labels = [IGNORE_INDEX] * prompt + turn.labels[prompt:]
        found.append(
            EncodedDialogue(
                turn.input_ids[: last + 1], labels[: last + 1], turn.is_action[: last + 1]
            )
        )
    return found


def both(
    chat: ChatFormat, dialogues: list[Dialogue]
) -> tuple[list[EncodedDialogue], list[EncodedDialogue]]:
    whole = encode_all(chat, dialogues)
    levels = [item.cefr_level if index % 2 else None for index, item in enumerate(dialogues)]
    per_turn = [
        copy
        for dialogue, level in zip(dialogues, levels, strict=True)
        for copy in copies(chat, dialogue, level)
    ]
    return whole, per_turn


def test_an_epoch_takes_at_most_two_fifths_of_the_tokens_for_the_same_targets(
    chat: ChatFormat, dialogues: list[Dialogue]
) -> None:
    whole, per_turn = both(chat, dialogues)
    assert sum(d.n_targets for d in whole) == sum(d.n_targets for d in per_turn)
    once = sum(len(pack.input_ids) for pack in make_packs(whole, 4096, seed=0))
    copied = sum(len(d.input_ids) for d in per_turn)
    print(f"{once} tokens in one pass, {copied} in copies: {once / copied:.3f}")
    assert once <= 0.4 * copied


def test_the_loss_of_every_target_is_the_same(chat: ChatFormat, dialogues: list[Dialogue]) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    from ecg_agent_ray.training.llm_model import sequence_loss

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(chat.tokenizer), num_attention_heads=4, **sizes)
    ).eval()
    whole, per_turn = both(chat, dialogues[:8])
    with torch.no_grad():
        packed, alone = (
            sum(
                sequence_loss(model, pack, "cpu").item()
                for pack in make_packs(encoded, 4096, seed=0, packing=packing)
            )
            / sum(d.n_targets for d in encoded)
            for encoded, packing in ((whole, True), (per_turn, False))
        )
    assert packed == pytest.approx(alone, abs=1e-4)
