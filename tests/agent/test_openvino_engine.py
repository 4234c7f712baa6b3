"""The on-device engine writes what the transformers engine writes, and reuses what it has read."""

from __future__ import annotations

import builtins
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
    for _ in range(200):  # states are written anew on the way
        engine.forward(bent, [7, 8, 9])
        bent.crop(-3)
    assert len(bent.valid) < len(ids) + 600
    assert bent.valid.sum() == len(ids)


def test_an_agent_takes_it_by_name(merged_folder: Path, engine: Any, fixed_toolbox: Any) -> None:
    agent = load_agent(merged_folder, engine="openvino", max_tokens=48)
    assert agent.respond([{"role": "user", "content": "hi"}], fixed_toolbox).content


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
