"""Exports of a small agent on a small GGUF base: reloaded, they compute what the agent does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecg_agent_ray.agent.base_model import LAPTOP_BASE_MODEL, load_base_model, resolve_gguf
from ecg_agent_ray.agent.chat_format import ChatFormat
from ecg_agent_ray.agent.export import GGUF_TYPES, export_gguf, export_merged
from ecg_agent_ray.agent.load import AgentManifest, read_manifest, write_manifest
from ecg_agent_ray.cli import run
from ecg_agent_ray.dialogue import Action, Dialogue, Turn, write_dialogues
from ecg_agent_ray.errors import CheckpointError, InputError
from ecg_agent_ray.pipelines.export_check import check_export

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 64, 128, 2, 4, 2
WIDTHS = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // 2, HIDDEN),
    "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama as GGUF, with the laptop model's tokenizer."""
    import gguf

    laptop = gguf.GGUFReader(resolve_gguf(LAPTOP_BASE_MODEL))
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in laptop.fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    vocabulary = len(laptop.fields["tokenizer.ggml.tokens"].contents())
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> Any:
        return (rng.standard_normal((rows, columns)) * 0.3).astype(np.float16)

    writer.add_tensor("token_embd.weight", matrix(vocabulary, HIDDEN))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for layer in range(LAYERS):
        for name, shape in WIDTHS.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(*shape))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain(path: Path) -> Any:
    """The model of a GGUF file, without its tokenizer, whose conversion takes long."""
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype="float32",
    )


@pytest.fixture(scope="module")
def trained(base: Path) -> Path:
    """An agent whose adapter changes much."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM")
    model = get_peft_model(plain(base), lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    folder = base.parent / "agent"
    model.save_pretrained(folder)
    write_manifest(folder, AgentManifest(base_model=str(base), lead_configuration="II"))
    return folder


@pytest.fixture
def agent(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "agent"))


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.arange(100, 160).unsqueeze(0)).logits[0].float()


def of_agent(agent: Path, base: Path) -> Any:
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(plain(base), agent))


def test_merged_weights_are_an_agent_of_the_same_output(
    agent: Path, base: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    (agent / "drafts.txt").write_text("A message.\n")
    folder = export_merged(agent, tmp_path / "merged", dtype="float32")
    assert (folder / "drafts.txt").read_text() == "A message.\n"
    wanted = of_agent(agent, base)
    found = logits(load_base_model(str(folder), dtype="float32"))
    # its base went through the cache, which holds bf16
    assert float((found - wanted).std()) < 0.05 * float(wanted.std())
    assert read_manifest(folder).lead_configuration == "II"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == ChatFormat(tokenizer).template
    with pytest.raises(InputError, match="no adapter"):
        export_merged(folder, tmp_path / "again")


def test_gguf_files_reload_to_the_same_output(agent: Path, base: Path, tmp_path: Path) -> None:
    wanted = of_agent(agent, base)
    scale = float(wanted.std())
    unchanged = float((logits(plain(base)) - wanted).std()) / scale
    files = [export_gguf(agent, tmp_path / f"{kind}.gguf", kind=kind) for kind in GGUF_TYPES]
    errors = [float((logits(plain(file)) - wanted).std()) / scale for file in files]
    assert errors == sorted(errors)
    assert errors[0] < 0.005
    # a random model has no direction that quantising spares: 0.05 and 0.67 were seen, and 1.1
    # for the base without the adapter
    assert errors[1] < 0.1 * unchanged
    assert errors[2] < 0.8 * unchanged


def test_what_cannot_be_exported_is_said(agent: Path, base: Path, tmp_path: Path) -> None:
    settings = agent / "adapter_config.json"
    whole = settings.read_text()
    write_manifest(agent, AgentManifest(base_model="org/model"))
    with pytest.raises(InputError, match="no GGUF file"):
        export_gguf(agent, tmp_path / "x.gguf")
    write_manifest(agent, AgentManifest(base_model=str(base)))
    (agent / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        export_gguf(agent, tmp_path / "x.gguf")
    with pytest.raises(InputError, match="cannot be named"):
        export_gguf(agent, tmp_path / "x")
    settings.write_text(whole)
    export = ["models", "export", str(agent), "--output"]
    assert run([*export, str(tmp_path / "y"), "--format", "gguf-q4_k_m"]) == 2
    assert run([*export, str(agent), "--format", "merged"]) == 2


def _dialogue(question: str) -> Dialogue:
    output = {"heart_rate": "60.00", "pr_interval": "160", "qrs_duration": "90"}
    turns = [
        Turn.user(question),
        Turn.call(Action.CALL_MEASUREMENT, "Asked for.", {**output, "qtc_interval": "410.00"}),
        Turn.answer(Action.RESPONSE, "I have it.", "Your heart rate is 60 bpm."),
    ]
    return Dialogue(turns=turns, ecg_files=["a.hea"], metadata={"lead_configuration": "II"})


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "gguf-q8_0"])
def test_an_export_is_held_against_its_agent(
    agent: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["What is my pulse?", "heart rate?", "How fast is my heart?"]
    rows = write_dialogues(tmp_path / "d.jsonl", [_dialogue(text) for text in asked])
    output = tmp_path / ("merged" if form == "merged" else "agent.gguf")
    command = ["models", "export", str(agent), "--output", str(output), "--format", form]
    assert run([*command, "--dialogues", str(rows), "--limit", "2", "--json"]) == 0
    check = json.loads(capsys.readouterr().out)["check"]
    record = output / "export_check.json" if form == "merged" else tmp_path / "agent.check.json"
    assert json.loads(record.read_text()) == check
    assert check["n_dialogues"] == 2
    for model in (check["original"], check["export"]):
        assert model["turns"] == 4
        assert 0 <= model["next_action_accuracy"] <= 1
        assert model["tokens_per_second"] > 0
        # at least the weights are in memory
        assert model["peak_memory_mib"] > model["file_mib"] > 0
    # random weights do what they do; those that were only merged do the same
    assert check["same_action"] == 1 or form != "merged"
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, but no more")
    with pytest.raises(CheckpointError, match="could not be loaded"):
        check_export(agent, broken, dialogues=rows)
