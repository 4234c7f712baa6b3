"""A transformers model as an OpenVINO model with 8-bit weights, made once and kept while used.

The model, its adapter merged, is traced with one key/value input and output a layer, which become
states; weights are quantised to 8 bits a channel by NNCF. Making it takes a minute, reading it back
a second. When it is read, OpenVINO's own pass turns each attention with states into paged
attention: keys and values then lie in blocks that the caller holds.

Four bits (groups of 64) took a tenth to a quarter less time a forward for Qwen2.5-Coder-0.5B, but
chose another next token than fp32 in 15 to 18 of 100 places; eight bits do in 3.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ecg_agent_ray.errors import ConfigError, MissingDependencyError
from ecg_agent_ray.plugins.fetch import remove_unused
from ecg_agent_ray.settings import load_settings

__all__ = ["INPUTS", "can_convert", "exported", "paged", "require_openvino"]

_log = logging.getLogger(__name__)

INPUTS = ("input_ids", "attention_mask", "position_ids", "keep", "beam_idx")
"""Token ids (1, n); additive mask (1, 1, n, cached + n); positions (1, n); which tokens' logits are
wanted; which row of the batch each row goes on from."""

_FORM = "2"
"""Of the file; another number makes all of them anew."""


def require_openvino() -> Any:
    """The package; raises :class:`MissingDependencyError` naming the extra."""
    try:
        import openvino
    except ImportError as error:
        raise _missing(str(error.name)) from error
    return openvino


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"the engine openvino needs the package {package}",
        hint="pip install 'ecg-agent-ray[on-device]'",
    )


def can_convert(config: Any) -> bool:
    """Whether a model of this transformers configuration keeps plain keys and values."""
    from ecg_agent_ray.agent.prefix_cache import GrowingLayer, new_cache

    return all(isinstance(layer, GrowingLayer) for layer in new_cache(config).layers)


def exported(base_model: str | Path, adapter: Path | None) -> Path:
    """The model's file in the cache, made if it is not there.

    Raises
    ------
    ModelNotFoundError, CheckpointError
        As loading the base model and its adapter does.
    ConfigError
        The model has layers without a plain key/value cache.
    """
    from ecg_agent_ray.agent.base_model import resolve_base_model

    resolved = resolve_base_model(str(base_model))
    folder = load_settings().cache_dir / "openvino" / _key(resolved, adapter)
    path = folder / "model.xml"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if path.is_file():
            os.utime(folder)
        else:
            remove_unused(folder.parent)  # each trained adapter makes one
            _log.warning("converting %s for OpenVINO, once", base_model)
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                _export(str(base_model), adapter, scratch / "model.xml")
                scratch.replace(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return path


def paged(path: Path) -> Any:
    """The model of a file that :func:`exported` gave, with its keys and values in blocks.

    Inputs (token counts of all sequences together): ``input_ids``, ``position_ids`` (n,), ``keep``,
    and what paged attention takes: ``past_lens``, ``subsequence_begins``, ``block_indices``,
    ``block_indices_begins``, ``max_context_len``, ``key_cache.N`` and ``value_cache.N``.
    """
    import openvino
    from openvino._offline_transformations import paged_attention_transformation

    model = openvino.Core().read_model(path)
    paged_attention_transformation(model)
    return model


def _key(resolved: str, adapter: Path | None) -> str:
    digest = hashlib.sha256(f"{_FORM}:{importlib.metadata.version('openvino')}".encode())
    digest.update(resolved.encode())
    folders = [path for path in (Path(resolved), adapter) if path is not None and path.is_dir()]
    for folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            stat = file.stat()
            digest.update(f"{file.name}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _export(base_model: str, adapter: Path | None, path: Path) -> None:
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    from ecg_agent_ray.agent.base_model import load_base_model
    from ecg_agent_ray.agent.transformers_engine import merged

    try:
        import nncf
    except ImportError as error:
        raise _missing("nncf") from error
    model = load_base_model(base_model, dtype="float32")
    if not can_convert(model.config):
        raise ConfigError(
            f"the engine openvino cannot run {type(model).__name__}: its layers keep no plain "
            "keys and values",
            hint="use the engine transformers",
        )
    if adapter is not None:
        model = merged(model, adapter)
    converted, past, present = _traced(model.eval())
    apply_make_stateful_transformation(converted, dict(zip(past, present, strict=True)))
    _begin_states_empty(converted)
    # not nncf.set_log_level, which would quieten the handlers of the whole process
    logging.getLogger("nncf").setLevel(logging.ERROR)
    quantised = nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(quantised, path, compress_to_fp16=False)


def _traced(model: Any) -> tuple[Any, list[str], list[str]]:
    """The OpenVINO model with keys and values as inputs and outputs, and their names."""
    import openvino
    import torch
    from transformers.cache_utils import Cache, DynamicLayer

    config = model.config.get_text_config(decoder=True)
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    class Joined(DynamicLayer):
        """Past keys and values that new ones are appended to."""

        def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
            super().__init__()
            self.keys: Any = keys
            self.values: Any = values
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            self.keys = torch.cat([self.keys, key_states], dim=-2)
            self.values = torch.cat([self.values, value_states], dim=-2)
            return self.keys, self.values

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            position_ids: torch.Tensor,
            keep: torch.Tensor,
            beam_idx: torch.Tensor,
            *past: torch.Tensor,
        ) -> tuple[torch.Tensor, ...]:
            pairs = zip(past[::2], past[1::2], strict=True)
            # the choice of rows is what OpenVINO knows an attention with states by
            chosen = [(k.index_select(0, beam_idx), v.index_select(0, beam_idx)) for k, v in pairs]
            joined: list[Any] = [Joined(keys, values) for keys, values in chosen]
            cache = Cache(layers=joined)
            hidden = self.model.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            # paged attention has the tokens on the first axis
            row = hidden.reshape(1, -1, hidden.shape[-1])
            logits = self.model.get_output_embeddings()(row.index_select(1, keep))
            states = [state for layer in joined for state in (layer.keys, layer.values)]
            return (logits, *states)

    new, old = 5, 7
    example = (
        torch.ones(1, new, dtype=torch.long),
        torch.zeros(1, 1, new, old + new),
        torch.arange(old, old + new)[None],
        torch.arange(2),
        torch.zeros(1, dtype=torch.int32),
        *(torch.randn(1, heads, old, width) for _ in range(2 * layers)),
    )
    with torch.no_grad():
        converted = openvino.convert_model(Traced(), example_input=example)
    past = [f"past.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    present = [name.replace("past", "present") for name in past]
    shapes = {
        "input_ids": [1, -1],
        "attention_mask": [1, 1, -1, -1],
        "position_ids": [1, -1],
        "keep": [-1],
        "beam_idx": [-1],
    }
    reshaped = {}
    for port, name in zip(converted.inputs, (*INPUTS, *past), strict=True):
        port.get_tensor().set_names({name})
        reshaped[port] = openvino.PartialShape(shapes.get(name, [-1, heads, -1, width]))
    for port, name in zip(converted.outputs, ("logits", *present), strict=True):
        port.get_tensor().set_names({name})
    converted.reshape(reshaped)
    return converted, past, present


def _begin_states_empty(model: Any) -> None:
    """Give every state an initial value without positions, one row for each of the batch."""
    from openvino import opset13

    ids = next(port for port in model.inputs if "input_ids" in port.get_names())
    zero = opset13.constant(0, dtype=np.int64)
    first = opset13.constant([0], dtype=np.int64)
    batch = opset13.gather(opset13.shape_of(ids, output_type="i64"), first, zero)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            shape = node.get_output_partial_shape(0)
            rest = [opset13.constant([size.get_min_length()], np.int64) for size in list(shape)[1:]]
            begin = opset13.constant(0.0, dtype=node.get_output_element_type(0))
            dimensions = opset13.concat([batch, *rest], axis=0)
            node.set_arguments([opset13.broadcast(begin, dimensions)])
    model.validate_nodes_and_infer_types()
