"""Files for fairseq-signals have what its loader touches, of the types it needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from ecg_agent_ray._cli import models
from ecg_agent_ray.classifier import (
    Classifier,
    ECGTransformerClassifier,
    ECGTransformerConfig,
    export_checkpoint,
    load_checkpoint,
)
from ecg_agent_ray.classifier.pretraining import ECGPretrainingModel, PretrainingConfig
from ecg_agent_ray.classifier.pretraining_checkpoint import export_pretraining_checkpoint
from ecg_agent_ray.errors import ConfigError, InputError

SIZES = ECGTransformerConfig(
    num_labels=3, layers=1, width=32, ffn=64, heads=4, conv_layers=((16, 2, 2),) * 4
)
# of the text of ``conv_feature_layers`` upstream evaluates; the others it reads as they are
TYPES = {
    "encoder_layers": int,
    "encoder_embed_dim": int,
    "encoder_ffn_embed_dim": int,
    "encoder_attention_heads": int,
    "layer_norm_first": bool,
    "extractor_mode": str,
    "conv_feature_layers": str,
    "in_d": int,
    "conv_bias": bool,
    "conv_pos": int,
    "conv_pos_groups": int,
    "dropout": float,
    "attention_dropout": float,
    "activation_dropout": float,
    "encoder_layerdrop": float,
    "dropout_input": float,
    "feature_grad_mult": float,
    "normalize": bool,
    "filter": bool,
}


def written(kind: str, path: Path) -> dict[str, Any]:
    if kind == "pretraining":
        model = ECGPretrainingModel(SIZES, PretrainingConfig(latent_vars=4, final_dim=8))
        export_pretraining_checkpoint(model, path)
    else:
        labels = 0 if kind == "encoder" else SIZES.num_labels
        export_checkpoint(ECGTransformerClassifier(replace(SIZES, num_labels=labels)), path)
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


@pytest.mark.parametrize("kind", ["classifier", "encoder", "pretraining"])
def test_what_fairseq_signals_touches_is_there(tmp_path: Path, kind: str) -> None:
    state = written(kind, tmp_path / "checkpoint.pt")
    cfg = state["cfg"]
    # fine-tuning assigns to these in a struct, which takes no new keys
    assert {"criterion", "lr_scheduler"} <= set(cfg)
    task = cfg["task"]
    assert isinstance(task["data"], str)
    assert task["normalize"] is False
    assert task["filter"] is False
    names = {
        "classifier": ("ecg_transformer_classifier", "ecg_classification"),
        "encoder": ("ecg_transformer", "ecg_pretraining"),
        "pretraining": ("wav2vec2_cmsc", "ecg_pretraining"),
    }
    assert (cfg["model"]["_name"], task["_name"]) == names[kind]
    assert {key: type(cfg["model"][key]) for key in TYPES} == TYPES
    # the loader reads the last entry, the trainer the iterator
    (history,) = state["optimizer_history"]
    assert {"criterion_name", "optimizer_name", "lr_scheduler_state", "num_updates"} <= set(history)
    assert state["args"] is None
    assert state["extra_state"]["train_iterator"] == {
        "version": 2,
        "epoch": 1,
        "iterations_in_epoch": 0,
        "shuffle": True,
    }


def test_an_encoder_alone_is_what_upstream_fine_tunes(tmp_path: Path) -> None:
    state = written("encoder", tmp_path / "encoder.pt")
    assert not any(key.startswith(("proj.", "encoder.encoder.")) for key in state["model"])
    assert "num_labels" not in state["cfg"]["model"]
    again = load_checkpoint(tmp_path / "encoder.pt")
    assert again.config.num_labels == 0


@pytest.mark.parametrize(
    ("kind", "fixture"), [("classifier", "finetuned_26"), ("pretraining", "pretrained")]
)
def test_no_key_is_unknown_to_fairseq_signals(
    tmp_path: Path, parity: Path, kind: str, fixture: str
) -> None:
    """Settings it does not have are refused when they are merged with those it has."""
    upstream = json.loads((parity / f"{fixture}.json").read_text())
    cfg = written(kind, tmp_path / "checkpoint.pt")["cfg"]
    for section in ("model", "task", "criterion"):
        assert set(cfg[section]) <= set(upstream[f"cfg.{section}"])


def export(uri: Path, output: Path) -> Any:
    app = typer.Typer()
    models.register(app)
    app.command("other")(lambda: None)
    arguments = ["models", "export", str(uri), "--output", str(output), "--format", "fairseq"]
    return CliRunner().invoke(app, [*arguments, "--json"])


def test_a_classifier_folder_is_exported(tmp_path: Path) -> None:
    network = ECGTransformerClassifier(SIZES)
    labels = ("AFIB", "SR", "PVC")
    Classifier(network=network, labels=labels, assessed=labels).save(tmp_path / "model")
    done = export(tmp_path / "model", tmp_path / "checkpoint_best.pt")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["path"] == str(tmp_path / "checkpoint_best.pt")
    again = load_checkpoint(tmp_path / "checkpoint_best.pt").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in network.state_dict().items())
    assert isinstance(
        export(tmp_path / "model", tmp_path / "checkpoint_best.pt").exception, InputError
    )


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    done = export(Path("builtin:"), tmp_path / "x.pt")
    assert isinstance(done.exception, ConfigError)
    assert "beat_rhythm" in str(done.exception)
