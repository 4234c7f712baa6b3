"""The classifier's Ray Train job on the shipped records, two gloo workers on the CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.classifier import load_classifier
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.classifier import ClassifierTrainResult, finetune_classifier
from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig
from ecg_agent_ray.training.config import load_config

HELD_OUT = ["00003_hr", "00139_hr", "00351_hr", "00385_hr"]


def configured(folder: Path, *overrides: str) -> ClassifierFinetuneConfig:
    return load_config(
        ClassifierFinetuneConfig,
        None,
        [
            "data=[{kind: manifest, path: 'samples:'}]",
            f"validation.records={HELD_OUT}",
            f"output={folder / 'out'}",
            "batch_size=4",
            *overrides,
        ],
    )


def test_two_workers_continue_the_shipped_classifier(ray_cluster: Any, tmp_path: Path) -> None:
    import mlflow

    result = finetune_classifier(configured(tmp_path, "epochs=2"))
    assert set(result.to_dict()) == {"run_id", "path", "metrics", "seconds"}

    trained = load_classifier(result.path)
    assert trained.assessed == load_classifier("builtin:").assessed
    classified = tools.classify(ecg.sample(3), trained)
    assert "SR" in classified.positive
    assert "WPW" in classified.not_assessed
    metrics = json.loads((result.path / "metrics.json").read_text())
    assert metrics["n_records"] == len(HELD_OUT)
    assert {"macro_auroc", "micro_auroc", "macro_auprc", "per_label", "ece"} <= set(metrics)
    assert set(metrics["configurations"]) == {"I", "II"}

    run = mlflow.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "2"
    assert run.data.tags["lead_configuration"] == "12-lead"
    history = mlflow.MlflowClient().get_metric_history(result.run_id, "train_loss")
    assert [point.step for point in history] == [2, 4]
    artifacts = {item.path for item in mlflow.artifacts.list_artifacts(run_id=result.run_id)}
    assert "classifier" in artifacts


def test_what_cannot_be_trained_on_is_said_before_any_worker_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no label has 13 positives in 12 records"):
        finetune_classifier(configured(tmp_path, "init=null", "min_positives=13"))
    with pytest.raises(ConfigError, match="no record 999"):
        finetune_classifier(configured(tmp_path, "validation.records=['999']"))
    with pytest.raises(ConfigError, match="no record is left"):
        finetune_classifier(
            configured(tmp_path, "exclude_patients_of=[{kind: manifest, path: 'samples:'}]")
        )


def losses(result: ClassifierTrainResult) -> list[float]:
    return [epoch["train_loss"] for epoch in result.history]


@pytest.mark.slow
def test_one_worker_two_workers_and_a_killed_one_give_the_same_loss(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecg_agent_ray.training import classifier_loop

    options = ("epochs=4", "init=null", "min_positives=2", "network.sizes={width: 8, dropout: 0}")
    one = finetune_classifier(configured(tmp_path / "1", *options, "distributed.num_workers=1"))
    two = finetune_classifier(configured(tmp_path / "2", *options))
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)

    crashed = tmp_path / "crashed"
    whole_loop = classifier_loop.train_loop

    def dies_once(settings: dict[str, Any]) -> None:
        """Rank 1 is killed as it begins to report its third epoch."""
        import ray.train

        report, rank = ray.train.report, ray.train.get_context().get_world_rank()

        def counted(metrics: dict[str, Any], **rest: Any) -> None:
            if rank == 1 and metrics["epoch"] == 3 and not crashed.exists():
                crashed.touch()
                os._exit(1)
            report(metrics, **rest)

        ray.train.report = counted
        whole_loop(settings)

    monkeypatch.setattr(classifier_loop, "train_loop", dies_once)
    resumed = finetune_classifier(configured(tmp_path / "3", *options))
    assert crashed.exists()
    assert losses(resumed)[-1] == pytest.approx(losses(two)[-1], rel=1e-5)
    first = load_classifier(two.path).network.state_dict()
    for key, value in load_classifier(resumed.path).network.state_dict().items():
        assert (value - first[key]).abs().max() < 1e-5, key
