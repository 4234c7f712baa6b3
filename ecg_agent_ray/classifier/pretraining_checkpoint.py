"""Pre-training checkpoints in fairseq-signals' form, read and written.

Its fine-tuning, :func:`ecg_agent_ray.classifier.load_checkpoint` and a fine-tuning job's ``init``
take what is written here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ecg_agent_ray.classifier.checkpoint import (
    classifier_keys,
    infer_config,
    read_checkpoint,
)
from ecg_agent_ray.classifier.checkpoint_export import upstream_encoder_cfg, write_upstream
from ecg_agent_ray.classifier.pretraining import ECGPretrainingModel, PretrainingConfig
from ecg_agent_ray.errors import CheckpointError

__all__ = ["export_pretraining_checkpoint", "load_pretraining_checkpoint"]

_DEFAULT_GROUPS = 2
_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "dropout_input")


def load_pretraining_checkpoint(
    path: str | Path, num_heads: int | None = None, objective: PretrainingConfig | None = None
) -> ECGPretrainingModel:
    """The network of a pre-training checkpoint, in training mode, fp32.

    Sizes come from the weights; ``objective`` gives the rest of the objective (its sizes are
    overruled), default the values in the file's ``cfg``, else the full-size recipe's.

    Raises
    ------
    ModelNotFoundError, UnsafeCheckpointError
        As :func:`ecg_agent_ray.classifier.checkpoint.read_checkpoint`.
    CheckpointError
        No pre-training checkpoint of an ECG transformer, a classifier's for example.
    """
    state = read_checkpoint(path)
    weights = state.get("model")
    if not isinstance(weights, dict) or "quantizer.vars" not in weights:
        raise CheckpointError(
            f"{path} is no pre-training checkpoint: it has no quantizer",
            hint="a classifier's checkpoint can be fine-tuned, not pre-trained further",
        )
    weights = {key: value.float() for key, value in weights.items()}
    cfg = state.get("cfg")
    model_cfg = cfg.get("model") if isinstance(cfg, dict) else None
    model_cfg = model_cfg if isinstance(model_cfg, dict) else {}
    shared = classifier_keys(weights)
    config = infer_config(shared, model_cfg, num_heads=num_heads)
    rates = {key: float(model_cfg[key]) for key in _DROPOUTS if _is_number(model_cfg.get(key))}
    config = replace(config, **rates, feature_grad_mult=_feature_grad_mult(model_cfg))  # type: ignore[arg-type]
    model = ECGPretrainingModel(config, _objective(weights, model_cfg, objective))
    own = {key.removeprefix("encoder."): value for key, value in shared.items()}
    extra = {key: value for key, value in weights.items() if key in model.state_dict()}
    try:
        model.load_state_dict({**extra, **own})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {str(error)[:200]}") from error
    return model


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _feature_grad_mult(cfg: dict[str, Any]) -> float:
    value = cfg.get("feature_grad_mult")
    return float(value) if isinstance(value, int | float) else 0.1


def _objective(
    weights: dict[str, Tensor], cfg: dict[str, Any], given: PretrainingConfig | None
) -> PretrainingConfig:
    groups = cfg.get("latent_groups")
    groups = groups if isinstance(groups, int) and groups > 0 else _DEFAULT_GROUPS
    codes = weights["quantizer.vars"].shape[1]
    if codes % groups:
        raise CheckpointError(f"{codes} codes are no {groups} groups of equal size")
    if given is None:
        known = {
            key: cfg[key]
            for key in ("logit_temp", "num_negatives", "mask_prob", "mask_length")
            if _is_number(cfg.get(key))
        }
        if _is_number(cfg.get("dropout_features")):
            known["dropout_features"] = cfg["dropout_features"]
        given = PretrainingConfig(**known)
    return replace(
        given,
        latent_groups=groups,
        latent_vars=codes // groups,
        final_dim=weights["project_q.weight"].shape[0],
    )


def export_pretraining_checkpoint(
    model: ECGPretrainingModel,
    path: str | Path,
    *,
    weights: dict[str, Tensor] | None = None,
    num_updates: int = 0,
) -> Path:
    """Write ``model`` as fairseq-signals writes a pre-training checkpoint, fp32; the path.

    ``weights`` stands in for the model's own state dict where that is sharded over workers.
    """
    objective = model.objective
    weights = model.state_dict() if weights is None else weights
    return write_upstream(
        path,
        {key: value.detach().float().cpu() for key, value in weights.items()},
        model_cfg={
            "_name": "wav2vec2_cmsc",
            **upstream_encoder_cfg(model.config),
            "apply_mask": True,
            "mask_length": objective.mask_length,
            "mask_prob": objective.mask_prob,
            "dropout_features": objective.dropout_features,
            "logit_temp": objective.logit_temp,
            "quantize_targets": True,
            "latent_vars": objective.latent_vars,
            "latent_groups": objective.latent_groups,
            "latent_dim": 0,
            "latent_temp": list(objective.latent_temp),
            "final_dim": objective.final_dim,
            "num_negatives": objective.num_negatives,
        },
        task_cfg={
            "_name": "ecg_pretraining",
            "perturbation_mode": ["random_leads_masking"],
            "p": [1.0],
            "mask_leads_selection": "random",
            "mask_leads_prob": objective.lead_mask_prob,
        },
        criterion_cfg={
            "_name": "wav2vec2_with_cmsc",
            "temp": objective.cmsc_temp,
            "infonce": True,
            "loss_weights": [objective.diversity_weight, objective.features_weight],
        },
        criterion_name="Wav2Vec2WithCMSCCriterion",
        num_updates=num_updates,
    )
