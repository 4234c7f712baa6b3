"""Every shipped configuration loads; every fault of a bad one is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig
from ecg_agent_ray.training.config import load_config

CONFIGS = sorted(
    (Path(__file__).resolve().parents[2] / "jobs" / "configs").glob("finetune_classifier_*.yaml")
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load(path: Path) -> None:
    config = load_config(ClassifierFinetuneConfig, path, ["epochs=2", "optimizer.lr=1e-5"])
    assert config.epochs == 2
    assert config.optimizer.lr == 1e-5


def test_all_problems_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("data: []\nepoch: 3\noptimizer: {lr: -1}\ncross_validation_folds: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(ClassifierFinetuneConfig, path)
    text = "\n".join(caught.value.problems)
    assert "did you mean 'epochs'" in text
    assert "optimizer.lr" in text
    assert "data" in text


def test_calibration_needs_held_out_records() -> None:
    data = "data=[{kind: manifest, path: 'samples:'}]"
    with pytest.raises(ConfigError, match="calibrate: no record is held out"):
        load_config(
            ClassifierFinetuneConfig, None, [data, "calibrate=true", "validation.fraction=0"]
        )
    assert load_config(ClassifierFinetuneConfig, None, [data, "calibrate=true"]).calibrate
