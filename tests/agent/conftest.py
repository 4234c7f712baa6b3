"""A random Llama with a byte-level tokenizer: every code path of a real one, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ecg_agent_ray.agent import ToolResult, TransformersEngine
from ecg_agent_ray.agent.toolbox import TOOL_OF_ACTION
from ecg_agent_ray.dialogue import Action

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = [
    "Action: response\nThought: The user asks for a value.\nContent: Your heart rate is 72 bpm.",
    "Action: call_measurement_tool\nThought: I measure.\nTool_Output: {}",
    "Action: call_classification_tool\nThought: The rhythm is asked for.",
    "What is my heart rate? Does my ECG show atrial fibrillation? ms bpm % 0123456789",
]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.chat_template = _TEMPLATE
    return fast


@pytest.fixture(scope="session")
def make_tiny_model(tiny_tokenizer: Any) -> Callable[..., Any]:
    """A function that makes the model of a seed; a seed always gives the same weights."""

    def make(seed: int = 0, **overrides: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        settings: dict[str, Any] = {
            "vocab_size": len(tiny_tokenizer) + 24,  # padded, as many models' are
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.5,  # far apart logits: greedy output does not hang on rounding
        }
        return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).eval()

    return make


@pytest.fixture(scope="session")
def tiny_engine(tiny_tokenizer: Any, make_tiny_model: Callable[..., Any]) -> TransformersEngine:
    return TransformersEngine(make_tiny_model(), tokenizer=tiny_tokenizer, name="tiny")


OUTPUTS: dict[Action, Any] = {
    Action.CALL_MEASUREMENT: {
        "heart_rate": "72.35",
        "pr_interval": "160",
        "qrs_duration": "92",
        "qtc_interval": "412.55",
    },
    Action.CALL_CLASSIFICATION: ["SR (98.23%)", "LVH (61.20%)"],
    Action.CALL_EXPLANATION: "SR (98.23%) | time=3.072-3.072s, freq=11.7-11.7Hz",
}


class FixedToolbox:
    """Outputs known beforehand, and a count of the calls."""

    key = "fixed"

    def __init__(self) -> None:
        self.calls: list[Action] = []

    def call(self, action: Action, *, question: str, previous: Sequence[ToolResult]) -> ToolResult:
        self.calls.append(action)
        return ToolResult(TOOL_OF_ACTION[action], action, OUTPUTS[action], ms=1.0)


@pytest.fixture
def fixed_toolbox() -> FixedToolbox:
    return FixedToolbox()
