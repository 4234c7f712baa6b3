"""An agent's adapter merged into its base model: a transformers folder, or one GGUF file.

A GGUF file is made from the base model's own: its metadata and tokenizer stay, the adapter's change
is added to the weights it touches, and the matrices are quantised anew. Of a base model that is no
GGUF file, llama.cpp's ``convert_hf_to_gguf.py`` makes one from the merged folder. Q4_K_M is not
among the types: no kept Python library quantises to it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ecg_agent_ray.agent.base_model import load_base_model, load_tokenizer, resolve_gguf
from ecg_agent_ray.agent.chat_format import ChatFormat
from ecg_agent_ray.agent.drafts import DRAFTS_NAME
from ecg_agent_ray.agent.load import AgentManifest, read_manifest, write_manifest
from ecg_agent_ray.errors import CheckpointError, InputError

__all__ = ["GGUF_TYPES", "GgufType", "export_gguf", "export_merged"]

GgufType = Literal["f16", "q8_0", "q4_0"]
GGUF_TYPES: tuple[GgufType, ...] = ("f16", "q8_0", "q4_0")

_BLOCK = re.compile(r"model\.layers\.(\d+)\.\w+\.(\w+)\.lora_A\.weight$")
_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def export_merged(agent: str | Path, output: str | Path, *, dtype: str = "bfloat16") -> Path:
    """Write merged safetensors, tokenizer, manifest, card and drafts to the folder ``output``.

    The tokenizer's chat template is the prefix-stable one, so that any server renders a dialogue as
    it was trained. Raises :class:`InputError` where ``agent`` holds no adapter.
    """
    from peft import PeftModel

    source, manifest = _adapter_folder(agent)
    # summed in fp32: a small change would be rounded away twice
    model = PeftModel.from_pretrained(
        load_base_model(manifest.base_model, dtype="float32"), str(source)
    )
    target = Path(output)
    target.mkdir(parents=True, exist_ok=True)
    merged = model.merge_and_unload()
    merged.to(_torch_dtype(dtype)).save_pretrained(target)
    tokenizer = load_tokenizer(manifest.base_model)
    tokenizer.chat_template = ChatFormat(tokenizer).template
    tokenizer.save_pretrained(target)
    write_manifest(target, manifest.model_copy(update={"fallback": None}))
    for name in ("README.md", DRAFTS_NAME):
        if (source / name).is_file():
            shutil.copy(source / name, target)
    return target.resolve()


def export_gguf(agent: str | Path, output: str | Path, *, kind: GgufType = "q8_0") -> Path:
    """Write one GGUF file, its matrices of type ``kind``, vectors in fp32.

    Raises :class:`InputError` where ``output`` is not named ``*.gguf``, the base model is no GGUF
    file or ``agent`` holds no adapter, :class:`CheckpointError` where the two do not fit.
    """
    import gguf

    if Path(output).suffix != ".gguf":
        raise InputError(
            f"a GGUF file cannot be named {output}",
            hint="end it with .gguf: what reads such files goes by the name",
        )
    source, manifest = _adapter_folder(agent)
    base = gguf.GGUFReader(resolve_gguf(manifest.base_model))
    architecture = str(base.fields["general.architecture"].contents())
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(target, architecture)
    file_type = gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"]
    _copy_metadata(base, writer, file_type.value, _template(manifest))
    for name, array, stored_as in _tensors(base, _changes(source), architecture, kind):
        writer.add_tensor(name, array, raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target.resolve()


def _adapter_folder(agent: str | Path) -> tuple[Path, AgentManifest]:
    folder = Path(agent)
    manifest = read_manifest(folder)
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} holds no adapter to merge", hint="its weights are merged")
    return folder, manifest


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _template(manifest: AgentManifest) -> str:
    return ChatFormat(load_tokenizer(manifest.base_model)).template


def _copy_metadata(base: Any, writer: Any, file_type: int, template: str) -> None:
    import gguf

    changed = {"general.file_type": file_type, "tokenizer.chat_template": template}
    left_out = {"general.architecture", "general.quantization_version", *changed}
    for name, field in base.fields.items():
        if name in left_out or name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_chat_template(template)


def _changes(adapter: Path) -> dict[str, Any]:
    """What the adapter adds to a weight, by the weight's GGUF name; (outputs, inputs), fp32."""
    from safetensors.torch import load_file

    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = settings["r"]
    scale = settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)
    file = adapter / "adapter_model.safetensors"
    try:
        tensors = {name: value.float().numpy() for name, value in load_file(file).items()}
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    changes = {}
    for name, down in tensors.items():
        if found := _BLOCK.search(name):
            up = tensors[name.replace("lora_A", "lora_B")]
            module = _NAMES.get(found.group(2))
            if module is None:
                raise CheckpointError(f"{name} has no place in a GGUF file")
            changes[f"blk.{found.group(1)}.{module}.weight"] = scale * (up @ down)
    if 2 * len(changes) != len(tensors):
        raise CheckpointError(f"{file} holds more than LoRA matrices")
    return changes


def _tensors(
    base: Any, changes: dict[str, Any], architecture: str, kind: GgufType
) -> Iterator[tuple[str, Any, Any]]:
    import gguf
    import numpy as np

    matrix = gguf.GGMLQuantizationType[kind.upper()]
    vector = gguf.GGMLQuantizationType.F32
    if missing := set(changes) - {tensor.name for tensor in base.tensors}:
        raise CheckpointError(f"the base model has no {', '.join(sorted(missing)[:3])}")
    for tensor in base.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        change = changes.get(tensor.name)
        if change is not None:
            if architecture == "llama" and ".attn_q." in tensor.name:
                change = _rotary_order(change, _heads(base, architecture, "head_count"))
            elif architecture == "llama" and ".attn_k." in tensor.name:
                change = _rotary_order(change, _heads(base, architecture, "head_count_kv"))
            if change.shape != weight.shape:
                raise CheckpointError(f"{tensor.name}: {change.shape} is added to {weight.shape}")
            weight = weight + change
        stored_as = matrix if weight.ndim > 1 else vector
        yield tensor.name, gguf.quants.quantize(weight, stored_as), stored_as


def _heads(base: Any, architecture: str, key: str) -> int:
    return int(base.fields[f"{architecture}.attention.{key}"].contents())


def _rotary_order(weight: Any, heads: int) -> Any:
    """llama.cpp pairs neighbouring rows of a head for rotation, transformers its two halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
