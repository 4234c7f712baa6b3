"""Base models from GGUF files: embeddings tied again, the tokenizer its makers', named weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecg_agent_ray.agent import GenerationRequest, TransformersEngine
from ecg_agent_ray.agent.base_model import (
    LAPTOP_BASE_MODEL,
    load_base_model,
    load_tokenizer,
    resolve_base_model,
    resolve_gguf,
)
from ecg_agent_ray.agent.chat_format import ChatFormat
from ecg_agent_ray.agent.export import export_gguf
from ecg_agent_ray.agent.load import AgentManifest, write_manifest
from ecg_agent_ray.dialogue import Action, parse_turn, system_prompt
from ecg_agent_ray.errors import ModelNotFoundError
from ecg_agent_ray.weights import find, named

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 128, 128, 2, 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CODER = "weights:qwen2.5-coder-0.5b-instruct"


def write_gguf(path: Path, tokenizer: Any, *, tied: bool) -> None:
    """A random Qwen2 as its makers' files are: the embedding twice, a padded vocabulary."""
    import gguf

    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"[PAD{number}]" for number in range(len(tokens), len(tokens) + 24)]
    kinds = [3 if t in SPECIAL else 5 if t.startswith("[PAD") else 1 for t in tokens]
    merges = [" ".join(pair) for pair in _merges(tokenizer)]
    writer = gguf.GGUFWriter(path, "qwen2")
    for name, value in {
        "context_length": 512,
        "embedding_length": HIDDEN,
        "block_count": LAYERS,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
    }.items():
        writer.add_uint32(f"qwen2.{name}", value)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_chat_template(tokenizer.chat_template)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int, kind: str = "F32", value: Any = None) -> None:
        array = (rng.standard_normal(shape) * 0.3).astype(np.float32) if value is None else value
        stored = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)

    embedding = (rng.standard_normal((len(tokens), HIDDEN)) * 0.3).astype(np.float32)
    add("token_embd.weight", value=embedding, kind="Q5_0")
    add("output.weight", len(tokens), HIDDEN, value=embedding if tied else None, kind="Q8_0")
    add("output_norm.weight", HIDDEN, value=np.ones(HIDDEN, np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{norm}.weight", HIDDEN, value=np.ones(HIDDEN, np.float32))
        for name, rows in (("q", HIDDEN), ("k", HIDDEN // 2), ("v", HIDDEN // 2)):
            add(f"blk.{layer}.attn_{name}.weight", rows, HIDDEN, kind="Q8_0")
            add(f"blk.{layer}.attn_{name}.bias", rows)
        add(f"blk.{layer}.attn_output.weight", HIDDEN, HIDDEN, kind="Q8_0")
        for name in ("gate", "up", "down"):
            add(f"blk.{layer}.ffn_{name}.weight", HIDDEN, INNER, kind="Q8_0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    import json

    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) for merge in merges]


@pytest.fixture(scope="module")
def qwen2_tokenizer(tiny_tokenizer: Any) -> Any:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
    return tokenizer


@pytest.fixture(scope="module")
def gguf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture
def make_gguf(
    qwen2_tokenizer: Any, gguf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    monkeypatch.setenv("ECG_AGENT_CACHE", str(gguf_folder / "cache"))

    def make(*, tied: bool) -> str:
        path = gguf_folder / f"{'tied' if tied else 'apart'}.gguf"
        if not path.exists():
            write_gguf(path, qwen2_tokenizer, tied=tied)
        return str(path)

    return make


def test_an_embedding_quantised_twice_is_one_again(make_gguf: Callable[..., str]) -> None:
    import gguf

    path = make_gguf(tied=True)
    model = load_base_model(path, dtype="float32")
    assert model.config.tie_word_embeddings and model.config.vocab_size % 8 == 0
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    # both are the finer copy
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}["output.weight"]
    finer = gguf.quants.dequantize(held.data, held.tensor_type)
    assert np.allclose(model.get_input_embeddings().weight.detach(), finer, atol=0.01)


def test_an_output_of_its_own_stays(make_gguf: Callable[..., str]) -> None:
    model = load_base_model(make_gguf(tied=False), dtype="float32")
    assert not model.config.tie_word_embeddings
    assert not np.allclose(
        model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()
    )


def test_the_tokenizer_is_its_makers(make_gguf: Callable[..., str], qwen2_tokenizer: Any) -> None:
    tokenizer = load_tokenizer(make_gguf(tied=True))
    assert len(tokenizer) == len(qwen2_tokenizer)  # the padding is none of its tokens
    assert tokenizer.encode("Ame\u0301lie") == tokenizer.encode("Am\u00e9lie")  # NFC
    text = "<|im_start|>user\nWhat is my heart rate?<|im_end|>\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    form = ChatFormat(tokenizer)
    assert tokenizer.decode([form.end_token_id]) == "<|im_end|>"
    # no special token can be written by a user
    assert not set(form.content_ids(text)) & set(tokenizer.added_tokens_decoder)


def test_an_adapter_on_it_is_exported_as_gguf(
    make_gguf: Callable[..., str], tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    base = make_gguf(tied=True)
    agent = tmp_path / "agent"
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_base_model(base, dtype="float32"), lora).save_pretrained(agent)
    write_manifest(agent, AgentManifest(base_model=base))
    merged = PeftModel.from_pretrained(load_base_model(base, dtype="float32"), str(agent))
    exported = export_gguf(agent, tmp_path / "agent.gguf", kind="q8_0")
    again = load_base_model(str(exported), dtype="float32")
    assert again.config.tie_word_embeddings
    ids = torch.arange(40, 90)[None]
    with torch.inference_mode():
        plain = load_base_model(base, dtype="float32")(ids).logits[0]
        wanted, got = (model(ids).logits[0] for model in (merged.merge_and_unload(), again))
    like = torch.nn.functional.cosine_similarity
    assert like(got, wanted, dim=-1).median() > 0.998 > 0.98 > like(plain, wanted, dim=-1).median()


def test_named_weights_are_a_base_model(monkeypatch: pytest.MonkeyPatch) -> None:
    if find(named(LAPTOP_BASE_MODEL)) is None:
        pytest.skip("the laptop's base model is not on this machine")
    folder = Path(resolve_base_model(LAPTOP_BASE_MODEL))
    assert (folder / "model.safetensors").is_file()
    assert folder.name.startswith("smollm2-135m-instruct-")
    assert resolve_gguf(LAPTOP_BASE_MODEL).suffix == ".gguf"
    with pytest.raises(ModelNotFoundError, match="gpt-7"):
        resolve_base_model("weights:gpt-7")
    # made once, the folder stands for itself: the bytes are not looked for again
    monkeypatch.setattr("ecg_agent_ray.agent.base_model.fetch", None)
    assert resolve_base_model(LAPTOP_BASE_MODEL) == str(folder)


@pytest.mark.slow
def test_the_larger_base_model() -> None:
    """Qwen2.5-Coder-0.5B-Instruct, where its bytes are in the cache."""
    if find(named(CODER)) is None:
        pytest.skip("its bytes are not in the cache")
    engine = TransformersEngine(CODER, dtype="float32")
    tokenizer, config = engine.tokenizer, engine.model.config
    assert (len(tokenizer), config.vocab_size) == (151_665, 151_936)
    assert config.tie_word_embeddings and config.num_key_value_heads == 2
    # token ids as Qwen publishes them
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n") == [
        *(151644, 872, 198, 6023, 151645, 198)
    ]
    assert engine.end_ids == {151645} and 151643 in engine.never_set
    messages = [
        {"role": "system", "content": system_prompt("12-lead")},
        {"role": "user", "content": "Hello, what does QRS mean?"},
    ]
    request = GenerationRequest(actions=(Action.RESPONSE_FOLLOWUP,), max_tokens=120)
    generation = engine.generate(messages, request)
    turn = parse_turn(generation.text())
    assert generation.finish_reason == "stop" and "QRS" in (turn.content or "")
