"""Writing checkpoints that fairseq-signals reads.

Its loader turns ``cfg`` into a struct and assigns to it, so sections and keys it touches have to be
there: ``criterion`` and ``lr_scheduler`` (set to null when an encoder is fine-tuned), ``task.data``
(set to the new data), ``task.normalize`` and ``task.filter`` (compared), ``extra_state``'s iterator
(read when training resumes). ``cfg.model`` and ``cfg.task`` hold keys of the named model and task
alone, since an unknown key is refused when they are merged with that model's settings. Facts read
from fairseq-signals at commit 6b9e137 and its history.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ecg_agent_ray.classifier.checkpoint import NEW_NORM, OLD_NORM
from ecg_agent_ray.classifier.model import ECGTransformerClassifier, ECGTransformerConfig

__all__ = ["export_checkpoint", "upstream_encoder_cfg", "write_upstream"]

_SECTIONS = (
    "common",
    "common_eval",
    "distributed_training",
    "dataset",
    "optimization",
    "checkpoint",
)
_LEARNING_RATE = 5e-5


def export_checkpoint(
    model: ECGTransformerClassifier,
    path: str | Path,
    *,
    legacy_weight_norm: bool = False,
    num_updates: int = 0,
) -> Path:
    """Write ``model`` in the form fairseq-signals reads, fp32; returns the path.

    ``cfg.model`` states the sizes the weights have and ``no_pretrained_weights``, so that upstream
    needs no other file. A model without a head is written as the encoder alone
    (``ecg_transformer``), which upstream's fine-tuning takes as its ``model.model_path``.
    ``legacy_weight_norm`` writes the key names from before 2025.
    """
    headless = model.proj is None
    weights = {key: value.detach().float().cpu() for key, value in model.state_dict().items()}
    if headless:
        weights = {key.removeprefix("encoder."): value for key, value in weights.items()}
    if legacy_weight_norm:
        prefix = "" if headless else "encoder."
        for old, new in zip(OLD_NORM, NEW_NORM, strict=True):
            weights[prefix + old] = weights.pop(prefix + new)
    task = "ecg_pretraining" if headless else "ecg_classification"
    return write_upstream(
        path,
        weights,
        model_cfg=_encoder_cfg(model.config) if headless else _classifier_cfg(model.config),
        task_cfg={"_name": task},
        criterion_cfg={"_name": "binary_cross_entropy_with_logits"},
        criterion_name="BinaryCrossEntropyWithLogitsCriterion",
        num_updates=num_updates,
    )


def write_upstream(
    path: str | Path,
    weights: dict[str, Any],
    *,
    model_cfg: dict[str, Any],
    task_cfg: dict[str, Any],
    criterion_cfg: dict[str, Any],
    criterion_name: str,
    num_updates: int,
) -> Path:
    """A file in the form of fairseq-signals' trainer, without optimiser state; returns its path."""
    task = {"data": "", "filter": False, "normalize": False, **task_cfg}
    state = {
        "args": None,
        "cfg": {
            **{section: {} for section in _SECTIONS},
            "model": model_cfg,
            "task": task,
            "criterion": criterion_cfg,
            "lr_scheduler": {"_name": "fixed", "lr": [_LEARNING_RATE]},
            "optimizer": {"_name": "adam", "lr": [_LEARNING_RATE]},
        },
        "model": weights,
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": criterion_name,
                "optimizer_name": "Adam",
                "lr_scheduler_state": {"lr": _LEARNING_RATE},
                "num_updates": num_updates,
            }
        ],
        "task_state": {},
        "extra_state": {
            "metrics": {},
            "previous_training_time": 0.0,
            # training that goes on from here starts with its first epoch
            "train_iterator": {
                "version": 2,
                "epoch": 1,
                "iterations_in_epoch": 0,
                "shuffle": True,
            },
            "val_loss": None,
        },
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def upstream_encoder_cfg(config: ECGTransformerConfig) -> dict[str, Any]:
    """The encoder's part of ``cfg.model`` under fairseq-signals' names."""
    return {
        "encoder_layers": config.layers,
        "encoder_embed_dim": config.width,
        "encoder_ffn_embed_dim": config.ffn,
        "encoder_attention_heads": config.heads,
        "layer_norm_first": config.layer_norm_first,
        "extractor_mode": config.extractor_mode,
        "conv_feature_layers": repr(list(config.conv_layers)),
        "in_d": config.in_leads,
        "conv_bias": config.conv_bias,
        "conv_pos": config.conv_pos,
        "conv_pos_groups": config.conv_pos_groups,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "encoder_layerdrop": 0.0,
        "dropout_input": config.dropout_input,
        "feature_grad_mult": config.feature_grad_mult,
        "all_gather": False,
        "saliency": False,
        "normalize": False,
        "filter": False,
        "data": "",
    }


def _encoder_cfg(config: ECGTransformerConfig) -> dict[str, Any]:
    return {"_name": "ecg_transformer", **upstream_encoder_cfg(config)}


def _classifier_cfg(config: ECGTransformerConfig) -> dict[str, Any]:
    return {
        "_name": "ecg_transformer_classifier",
        "num_labels": config.num_labels,
        **upstream_encoder_cfg(config),
        "final_dropout": config.final_dropout,
        "apply_mask": False,
        "model_path": None,
        "no_pretrained_weights": True,
        "freeze_finetune_updates": 0,
    }
