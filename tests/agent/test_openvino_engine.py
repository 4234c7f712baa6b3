"""The on-device engine writes what the transformers engine writes, and reuses what it has read."""

from __future__ import annotations

import builtins
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecg_agent_ray.agent import GenerationRequest, load_agent
from ecg_agent_ray.agent.load import AgentManifest, write_manifest
from ecg_agent_ray.dialogue import parse_turn, system_prompt
from ecg_agent_ray.errors import ConfigError, MissingDependencyError

SYSTEM = {"role": "system", "content": system_prompt("12-lead")}


@pytest.fixture(scope="module")
def merged_folder(
    tiny_tokenizer: Any, make_tiny_model: Callable[..., Any], tmp_path_factory: Any
) -> Path:
    folder = Path(tmp_path_factory.mktemp("merged"))
    make_tiny_model(num_hidden_layers=2).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    write_manifest(folder, AgentManifest())
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: Any) -> Any:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECG_AGENT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def engine(merged_folder: Path, cache: Any) -> Any:
    from ecg_agent_ray.agent import OpenVINOEngine

    return OpenVINOEngine(merged_folder, dtype="float32", threads=1)


def ask(text: str) -> list[dict[str, str]]:
    return [SYSTEM, {"role": "user", "content": text}]


def test_logits_are_those_of_transformers(engine: Any, merged_folder: Path) -> None:
    import torch

    from ecg_agent_ray.agent import TransformersEngine

    reference = TransformersEngine(merged_folder, dtype="float32")
    ids = engine.format.encode_prompt(ask("What is my heart rate?"))
    got = engine.forward(engine.new_cache(), ids, keep=20)
    expected = reference.forward(reference.new_cache(), ids, keep=20)
    assert got.shape == expected.shape
    likeness = torch.nn.functional.cosine_similarity(got, expected, dim=-1)
    assert likeness.min() > 0.98  # weights and activations have eight bits


def test_a_qwen2_with_an_adapter(tiny_tokenizer: Any, cache: Any, tmp_path: Path) -> None:
    """Biases of queries, keys and values, shared key/value heads, tied embeddings, LoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from ecg_agent_ray.agent import OpenVINOEngine, TransformersEngine

    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=len(tiny_tokenizer) + 24,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    model = Qwen2ForCausalLM(shape)
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            torch.nn.init.normal_(getattr(layer.self_attn, name).bias)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(adapter)
    ids = list(range(40, 90))
    found = {}
    for name, options in {"plain": {}, "adapted": {"adapter": adapter}}.items():
        reference = TransformersEngine(base, dtype="float32", **options)
        engine = OpenVINOEngine(base, threads=1, **options)
        found[name] = expected = reference.forward(reference.new_cache(), ids, keep=20)
        held = engine.new_cache()
        engine.forward(held, ids[:25])
        got = engine.forward(held, ids[25:], keep=20)
        assert torch.nn.functional.cosine_similarity(got, expected, dim=-1).min() > 0.98
    apart = torch.nn.functional.cosine_similarity(found["plain"], found["adapted"], dim=-1)
    assert apart.min() < 0.9


def test_what_prompts_begin_with_is_read_beforehand(engine: Any) -> None:
    engine.clear_cache()
    for _ in range(2):
        engine.warm([SYSTEM], [GenerationRequest()])
        assert len(engine.prefixes) == 1
    generation = engine.generate(ask("What is my heart rate?"), GenerationRequest(max_tokens=48))
    generation.text()
    begun = len(engine.format.encode_dialogue([SYSTEM]).input_ids)
    assert generation.usage.cached_tokens >= begun
    engine.warm([SYSTEM])  # a dialogue holds it, and stays whole
    longer = engine.generate(
        [*ask("What is my heart rate?"), {"role": "assistant", "content": "Action: x"}],
        GenerationRequest(max_tokens=48),
    )
    longer.text()
    assert longer.usage.cached_tokens > begun


def test_every_generation_is_a_turn(engine: Any) -> None:
    for seed in range(15):
        request = GenerationRequest(max_tokens=64, temperature=1.0, seed=seed)
        turn = parse_turn(engine.generate(ask(f"question {seed}"), request).text().rstrip("\n"))
        assert turn.thought


def test_a_dialogue_is_encoded_once(engine: Any) -> None:
    engine.clear_cache()
    messages = ask("first question")
    reused = []
    for number in range(5):
        generation = engine.generate(messages, GenerationRequest(max_tokens=48))
        text = generation.text()
        reused.append(generation.usage.cached_tokens / generation.usage.prompt_tokens)
        messages += [
            {"role": "assistant", "content": text},
            {"role": "user", "content": f"question {number}"},
        ]
    assert reused[0] == 0
    assert min(reused[1:]) > 0.8


def test_tokens_taken_back_leave_no_trace(engine: Any) -> None:
    import torch

    ids = engine.format.encode_prompt(ask("What is my heart rate?"))
    straight, bent = engine.new_cache(), engine.new_cache()
    expected = engine.forward(straight, ids)
    engine.forward(bent, ids[:60])
    engine.forward(bent, [7, 8, 9])
    bent.crop(-3)
    branch = bent.branch(40)
    for cache, begin in ((bent, 60), (branch, 40)):
        got = engine.forward(cache, ids[begin:])
        assert torch.nn.functional.cosine_similarity(got, expected).item() > 0.98


def test_blocks_go_back_to_the_pool(engine: Any) -> None:
    engine.clear_cache()
    gc.collect()
    free = engine._pool.n_free
    ids = list(range(5, 105))
    one = engine.new_cache()
    engine.forward(one, ids)
    other = one.branch(50)
    used = -(-100 // engine._pool.block_tokens), -(-50 // engine._pool.block_tokens)
    assert engine._pool.n_free == free - sum(used)
    one.crop(-90)
    assert len(one.blocks) == 1
    del one, other
    gc.collect()
    assert engine._pool.n_free == free


def test_a_pool_that_grows_keeps_what_it_holds(engine: Any) -> None:
    import torch

    ids = engine.format.encode_prompt(ask("What is my heart rate?"))
    held = engine.new_cache()
    engine.forward(held, ids[:-1])
    size = engine._pool.n_blocks
    others = [engine.new_cache() for _ in range(3)]
    for other in others:
        engine.forward(other, [7] * (size * engine._pool.block_tokens // 2))
    assert engine._pool.n_blocks > size
    got = engine.forward(held, ids[-1:])
    expected = engine.forward(engine.new_cache(), ids)
    assert torch.nn.functional.cosine_similarity(got, expected).item() > 0.98


def test_several_sequences_in_one_forward(engine: Any) -> None:
    import torch

    from ecg_agent_ray.agent.packed import Request

    sequences = [list(range(5, 5 + length)) for length in (3, 40, 9)]
    requests = [Request(engine.new_cache(), tokens, 2) for tokens in sequences]
    for more in ([], [40], [41, 42, 43]):
        if more:
            sequences = [[*tokens, *more] for tokens in sequences]
            keep = min(2, len(more))
            requests = [Request(request.cache, more, keep) for request in requests]
        engine._run(requests)
        for request, tokens in zip(requests, sequences, strict=True):
            alone = engine.forward(engine.new_cache(), tokens, keep=request.keep)
            likeness = torch.nn.functional.cosine_similarity(request.logits, alone, dim=-1)
            assert likeness.min() > 0.98


def test_an_agent_takes_it_by_name(merged_folder: Path, engine: Any, fixed_toolbox: Any) -> None:
    agent = load_agent(merged_folder, engine="openvino", max_tokens=48)
    assert agent.respond([{"role": "user", "content": "hi"}], fixed_toolbox).content


def test_it_is_chosen_where_it_is_faster(
    merged_folder: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecg_agent_ray.agent import OpenVINOEngine, TransformersEngine, load

    assert isinstance(load_agent(merged_folder).engine, TransformersEngine)  # a small model
    monkeypatch.setattr(load, "_WORTH_CONVERTING", range(10**9))
    assert isinstance(load_agent(merged_folder).engine, OpenVINOEngine)
    assert isinstance(load_agent(merged_folder, engine="auto").engine, OpenVINOEngine)
    assert isinstance(load_agent(merged_folder, dtype="float32").engine, TransformersEngine)
    assert isinstance(load_agent(merged_folder, engine="transformers").engine, TransformersEngine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "abacus"}, "abacus"),
        ({"engine": "openvino", "device": "cuda"}, "cuda"),
    ],
)
def test_what_cannot_be(merged_folder: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_agent(merged_folder, **options)


def test_without_the_extra(merged_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "openvino":
            raise ImportError("no openvino", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match="openvino") as told:
        load_agent(merged_folder, engine="openvino")
    assert "on-device" in str(told.value.hint)
