"""Reading fairseq-signals checkpoints without running anything that is in them.

A checkpoint is a ``torch.save`` zip whose ``model`` is the state dict and whose ``cfg`` is a plain
dict. ``torch.load(weights_only=True)`` reads it with a short allow-list, needed because validation
metrics are pickled as numpy arrays; the list holds for the one call, not for the process.

``cfg.model`` of a fine-tuned file describes the fine-tuning command line, not the encoder, and
often disagrees with the weights. Sizes are therefore inferred from tensor shapes; ``cfg`` only
gives what shapes do not tell: heads, strides, norm order.
"""

from __future__ import annotations

import ast
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecg_agent_ray.classifier.model import ECGTransformerClassifier, ECGTransformerConfig
from ecg_agent_ray.errors import CheckpointError, ModelNotFoundError, UnsafeCheckpointError
from ecg_agent_ray.plugins.fetch import fetched

__all__ = [
    "NEW_NORM",
    "OLD_NORM",
    "classifier_keys",
    "infer_config",
    "load_checkpoint",
    "parse_conv_layers",
    "read_checkpoint",
]

_DEFAULT_HEADS = 12
_MAX_CONV_LAYERS = 64
# modules of pre-training that a classifier has no use for
_PRETRAINING_ONLY = ("quantizer.", "project_q.", "final_proj.", "target_glu.", "mask_emb")
_POS = "conv_pos.pos_conv.0."
NEW_NORM = (_POS + "parametrizations.weight.original0", _POS + "parametrizations.weight.original1")
OLD_NORM = (_POS + "weight_g", _POS + "weight_v")


def _allowed_globals() -> list[Any]:
    """What numpy arrays and scalars need to be unpickled, under numpy 1's and 2's module names."""
    try:
        from numpy._core import multiarray
    except ImportError:  # numpy < 2 has the module under its old name only
        from numpy.core import multiarray  # type: ignore[no-redef]
    allowed: list[Any] = [np.ndarray, np.dtype]
    allowed += [
        (function, f"{package}.multiarray.{function.__name__}")
        for function in (multiarray._reconstruct, multiarray.scalar)
        for package in ("numpy._core", "numpy.core")
    ]
    allowed += [type(np.dtype(name)) for name in ("float32", "float64", "int64", "bool")]
    return allowed


def _allowed_names(allowed: list[Any]) -> set[str]:
    return {
        item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}"
        for item in allowed
    }


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint's dict (``cfg``, ``model``, …), on the CPU; ``path`` may be a URL.

    Raises
    ------
    ModelNotFoundError
        No such file.
    UnsafeCheckpointError
        Unpickling would need anything outside the allow-list. Nothing of the file was run.
    CheckpointError
        The file is damaged or of another kind.
    """
    path = fetched(path)
    if not path.is_file():
        raise ModelNotFoundError(f"no checkpoint file at {path}")
    allowed = _allowed_globals()
    if zipfile.is_zipfile(path):
        _refuse_unsafe(path, _allowed_names(allowed))
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|class|operand|function) ([\w.]+\.[\w.]+)", str(error))
        if found:
            raise UnsafeCheckpointError(
                f"{path} would run {found[1]} when read", hint=_UNSAFE_HINT
            ) from error
        raise CheckpointError(f"{path} is no torch checkpoint: {_short(error)}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {_short(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a checkpoint's dict")
    return state


_UNSAFE_HINT = "re-save it as plain tensors and dicts in an environment where it is trusted"


def _refuse_unsafe(path: Path, allowed: set[str]) -> None:
    try:
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # torch's reader raises many kinds on a damaged archive
        raise CheckpointError(f"{path} is a damaged checkpoint: {_short(error)}") from error
    unsafe = sorted(set(needed) - allowed)
    if unsafe:
        raise UnsafeCheckpointError(
            f"{path} would run {', '.join(unsafe)} when read", hint=_UNSAFE_HINT
        )


def _short(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return text[:200] or type(error).__name__


def load_checkpoint(path: str | Path, num_heads: int | None = None) -> ECGTransformerClassifier:
    """A classifier with the weights of a fairseq-signals checkpoint, in evaluation mode, fp32.

    Reads fine-tuned checkpoints and pre-training ones (then without a head: ``logits`` is (B, 0)).

    Parameters
    ----------
    path
        ``checkpoint_best.pt``, ``checkpoint_last.pt`` or the like, or a URL such as ``s3://…``.
    num_heads
        Attention heads; default ``cfg.model.encoder_attention_heads``, else 12.

    Raises
    ------
    ModelNotFoundError, UnsafeCheckpointError
        As :func:`read_checkpoint`.
    CheckpointError
        The weights are not those of an ECG transformer, or heads do not divide the width.
    """
    state = read_checkpoint(path)
    weights = state.get("model")
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f"{path} has no 'model' state dict of tensors")
    cfg = state.get("cfg")
    model_cfg = cfg.get("model") if isinstance(cfg, dict) else None
    try:
        weights = classifier_keys(weights)
        config = infer_config(
            weights, model_cfg if isinstance(model_cfg, dict) else {}, num_heads=num_heads
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from error
    model = ECGTransformerClassifier(config)
    try:
        model.load_state_dict({key: value.float() for key, value in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path} is no ECG transformer: {_short(error)}") from error
    return model.eval()


def classifier_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as :class:`ECGTransformerClassifier` has them, whatever kind of file they are from."""
    if not any(key.startswith("encoder.feature_extractor.") for key in weights):
        weights = {f"encoder.{key}": value for key, value in weights.items()}
    result = {}
    renamed = {f"encoder.{o}": f"encoder.{n}" for o, n in zip(OLD_NORM, NEW_NORM, strict=True)}
    for key, value in weights.items():
        if key.removeprefix("encoder.").startswith(_PRETRAINING_ONLY):
            continue
        result[renamed.get(key, key)] = value
    return result


def infer_config(
    weights: dict[str, Tensor], cfg: dict[str, Any], *, num_heads: int | None = None
) -> ECGTransformerConfig:
    """Sizes from tensor shapes (classifier key names); ``cfg`` for what shapes do not tell."""

    def shape(key: str) -> torch.Size:
        if key not in weights:
            raise CheckpointError(f"no tensor {key!r}: not an ECG transformer's weights")
        return weights[key].shape

    convs: list[torch.Size] = []
    while (key := f"encoder.feature_extractor.conv_layers.{len(convs)}.0.weight") in weights:
        convs.append(shape(key))
    if not convs or any(len(size) != 3 for size in convs):
        raise CheckpointError("no convolution layers: not an ECG transformer's weights")
    pos_v = shape(f"encoder.{NEW_NORM[1]}")
    width = pos_v[0]
    layers = 0
    while f"encoder.encoder.layers.{layers}.fc1.weight" in weights:
        layers += 1
    heads = num_heads or cfg.get("encoder_attention_heads") or _DEFAULT_HEADS
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(
            f"{heads} attention heads do not divide the width {width}",
            hint="pass num_heads, which cannot be told from the weights",
        )
    layer_norm_mode = "encoder.feature_extractor.conv_layers.0.2.1.weight" in weights
    return ECGTransformerConfig(
        num_labels=weights["proj.weight"].shape[0] if "proj.weight" in weights else 0,
        layers=layers,
        width=width,
        ffn=shape("encoder.encoder.layers.0.fc1.weight")[0],
        heads=heads,
        in_leads=convs[0][1],
        conv_layers=_conv_layers(convs, cfg.get("conv_feature_layers")),
        conv_bias="encoder.feature_extractor.conv_layers.0.0.bias" in weights,
        extractor_mode="layer_norm" if layer_norm_mode else "default",
        conv_pos=pos_v[2],
        conv_pos_groups=width // pos_v[1],
        layer_norm_first=cfg.get("layer_norm_first") is True,
    )


def _conv_layers(convs: list[torch.Size], text: object) -> tuple[tuple[int, int, int], ...]:
    strides = [2] * len(convs)
    if isinstance(text, str):
        try:
            stated = parse_conv_layers(text)
        except CheckpointError:
            stated = ()
        if [layer[1] for layer in stated] == [size[2] for size in convs]:
            strides = [layer[2] for layer in stated]
    return tuple((size[0], size[2], stride) for size, stride in zip(convs, strides, strict=True))


def parse_conv_layers(text: str) -> tuple[tuple[int, int, int], ...]:
    """``"[(256, 2, 2)] * 4"`` as a tuple of (channels, kernel, stride), nothing evaluated.

    Lists of integer triples, ``+`` and ``* integer`` are understood.

    Raises
    ------
    CheckpointError
        For anything else.
    """
    try:
        layers = _layer_list(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"conv_feature_layers {text[:80]!r} is not understood") from error
    return tuple(layers)


def _layer_list(node: ast.expr) -> list[tuple[int, int, int]]:
    if isinstance(node, ast.List | ast.Tuple):
        return [_layer(item) for item in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        layers = _layer_list(node.left) + _layer_list(node.right)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        count = _integer(node.right)
        part = _layer_list(node.left)
        if count * len(part) > _MAX_CONV_LAYERS:
            raise ValueError("too many layers")
        layers = part * count
    else:
        raise ValueError("not a list of layers")
    if len(layers) > _MAX_CONV_LAYERS:
        raise ValueError("too many layers")
    return layers


def _layer(node: ast.expr) -> tuple[int, int, int]:
    if not isinstance(node, ast.Tuple | ast.List) or len(node.elts) != 3:
        raise ValueError("a layer is (channels, kernel, stride)")
    channels, kernel, stride = (_integer(item) for item in node.elts)
    return channels, kernel, stride


def _integer(node: ast.expr) -> int:
    if not isinstance(node, ast.Constant) or type(node.value) is not int or node.value < 1:
        raise ValueError("not a positive integer")
    return node.value
