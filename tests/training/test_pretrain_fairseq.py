"""The command for fairseq-signals' own trainer; the library itself is not installed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecg_agent_ray.errors import ConfigError, MissingDependencyError
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.pretrain_fairseq import (
    FairseqTrainConfig,
    fairseq_command,
    parse_log_line,
    run_fairseq,
)

PLACES = ["source_tree=/src", "data=/data", "output=/out"]


def configured(*overrides: str) -> FairseqTrainConfig:
    return load_config(FairseqTrainConfig, None, [*PLACES, *overrides])


def test_pretraining_command() -> None:
    command = fairseq_command(
        configured("model.conv_feature_layers='[(32, 2, 2)] * 4'", "model.encoder_layers=2")
    )
    assert command[0] == "fairseq-hydra-train"
    assert "task.data=/data" in command
    assert "checkpoint.save_dir=/out/checkpoints" in command
    assert "model.conv_feature_layers='[(32, 2, 2)] * 4'" in command
    assert command[-4:] == [
        "--config-dir",
        "/src/examples/w2v_cmsc/config/pretraining",
        "--config-name",
        "w2v_cmsc_rlm",
    ]


def test_finetuning_states_its_labels_and_start() -> None:
    command = fairseq_command(configured("stage=finetune", "pretrained=/m.pt"))
    assert "model.num_labels=71" in command
    assert "model.model_path=/m.pt" in command
    with pytest.raises(ConfigError, match="needs `pretrained`"):
        configured("stage=finetune")


def test_a_key_that_upstream_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no encoder_layer"):
        configured("model.encoder_layer=3")
    with pytest.raises(ConfigError, match="has no num_labels"):
        configured("model.num_labels=3")


def test_what_to_install_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"not installed on this machine.*clone"):
        run_fairseq(configured("executable=fairseq-hydra-train-absent"))


def test_log_lines() -> None:
    line = '[2025-01-01][train][INFO] - {"epoch": 1, "train_loss": "3.25", "train_wall": "x"}'
    assert parse_log_line(line) == {"epoch": 1.0, "train_loss": 3.25}
    assert parse_log_line("no {json") == {}
