"""Prefix stability for the template of each model family that a configuration is shipped for."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, load_tokenizer
from ecg_agent_ray.agent.chat_format import TOOL_OUTPUT_MARKER, ChatFormat
from ecg_agent_ray.dialogue import Action, Dialogue, Turn, system_prompt
from ecg_agent_ray.dialogue.render import dialogue_messages
from ecg_agent_ray.shipped import shipped

TEMPLATES = Path(__file__).parent / "templates"
FAMILIES = {"Llama-3": "llama3", "Qwen3": "qwen3", "qwen2.5": "qwen2.5", "smollm2": "own"}
SPECIAL = {
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "qwen2.5": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "own": [],
}
BOTH = [["ST_DEP (71.20%)", "SR (98.23%)"], {"heart_rate": "61.73", "pr_interval": None}]


def messages() -> list[dict[str, str]]:
    """Every kind of turn, two tool calls in a row, awkward words."""
    turns = [
        Turn.user("  what's my rhythm & rate? "),
        Turn.call(Action.CALL_CLASSIFICATION, "Findings are asked for.", BOTH[0]),
        Turn.call(Action.CALL_MEASUREMENT, "A value, too.", BOTH[1]),
        Turn.answer(Action.RESPONSE, "I have both.", "Sinus rhythm, 61.73 bpm.\n\nAction: rest."),
        Turn.user("<|im_end|><|eot_id|><think>What is sinus rhythm?</think>"),
        Turn.answer(Action.RESPONSE_FOLLOWUP, "A term.", "\nYour heart's own pace. "),
        Turn.user("bye"),
        Turn.answer(Action.SYSTEM_BYE, "End.", "Take care."),
    ]
    dialogue = Dialogue(turns=turns, ecg_files=["a.hea"], metadata={"lead_configuration": "I"})
    return dialogue_messages(dialogue, system_prompt("I"))


@pytest.fixture(scope="module", params=sorted(set(FAMILIES.values())))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """The laptop model's vocabulary with the family's special tokens and template."""
    loaded = load_tokenizer(LAPTOP_BASE_MODEL)
    if request.param != "own":
        loaded.add_special_tokens({"additional_special_tokens": SPECIAL[request.param]})
        loaded.bos_token = SPECIAL[request.param][0]
        loaded.chat_template = (TEMPLATES / f"{request.param}.jinja").read_text(encoding="utf-8")
    loaded.family = request.param
    return loaded


def test_every_shipped_base_model_is_of_a_family_tested_here() -> None:
    for path in shipped("jobs/configs").rglob("*llm*.yaml"):
        name = yaml.safe_load(path.read_text(encoding="utf-8")).get("base_model")
        assert name is None or any(family in name for family in FAMILIES), path
    for path in shipped("jobs/configs/llm").glob("*x*.yaml"):
        name = yaml.safe_load(path.read_text(encoding="utf-8"))["base_model"]
        assert any(family in name for family in FAMILIES), path


def test_what_is_trained_on_is_token_for_token_what_generation_sees(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer)
    dialogue = messages()
    whole = chat.encode_dialogue(dialogue)
    for length, message in enumerate(dialogue):
        if not length:
            continue
        earlier = chat.encode_dialogue(dialogue[:length])
        assert whole.input_ids[: len(earlier.input_ids)] == earlier.input_ids
        assert whole.labels[: len(earlier.labels)] == earlier.labels
        if message["role"] == "assistant":
            prompt = chat.encode_prompt(dialogue[:length])
            assert whole.input_ids[: len(prompt)] == prompt
            # what is generated next is what is a target next, to the end token or the tool's turn
            own = message["content"].partition(TOOL_OUTPUT_MARKER)[0]
            wanted = chat.content_ids(own)
            assert whole.labels[len(prompt) : len(prompt) + len(wanted)] == wanted


def test_the_stream_is_the_familys_own_text(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer)
    dialogue = [{**m, "content": m["content"].strip()} for m in messages()]
    clean = [m for m in dialogue if "<|" not in m["content"]]
    # up to a user message: Qwen3 renders an assistant message at the end in another way
    last = max(i for i, m in enumerate(clean) if m["role"] == "user")
    expected = tokenizer.apply_chat_template(
        clean[: last + 1], tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
    )
    assert tokenizer.decode(chat.encode_prompt(clean[: last + 1])) == expected


def test_qwen3s_own_template_is_not_stable_and_llama_3s_changes_with_the_date(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialogue = messages()
    rendered = [
        tokenizer.apply_chat_template(dialogue[: n + 1], tokenize=False)
        for n in range(len(dialogue))
    ]
    stable = all(after.startswith(before) for before, after in pairwise(rendered))
    assert stable == (tokenizer.family != "qwen3")
    today = datetime.now().strftime("%d %b %Y")
    assert (today in rendered[0]) == (tokenizer.family == "llama3")
    assert today not in tokenizer.decode(ChatFormat(tokenizer).encode_dialogue(dialogue).input_ids)


def test_the_template_for_other_servers_gives_the_same_text_at_every_place(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer)
    dialogue = messages()
    for length in range(1, len(dialogue) + 1):
        text = tokenizer.apply_chat_template(
            dialogue[:length],
            tokenize=False,
            add_generation_prompt=True,
            chat_template=chat.template,
        )
        assert text == tokenizer.decode(chat.encode_prompt(dialogue[:length]))
