"""The classifier's Ray Train job on the shipped records, two gloo workers on the CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.classifier import load_classifier
from ecg_agent_ray.classifier.challenge import CLASSES
from ecg_agent_ray.errors import ConfigError, MissingDependencyError
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

    result = finetune_classifier(
        configured(tmp_path, "epochs=2", "micro_batch_size=1", "choose_thresholds=true")
    )
    assert set(result.to_dict()) == {"run_id", "path", "metrics", "seconds"}

    trained = load_classifier(result.path)
    assert trained.assessed == load_classifier("builtin:").assessed
    classified = tools.classify(ecg.sample(3), trained)
    assert "SR" in classified.positive
    assert "WPW" in classified.not_assessed
    assert trained.thresholds["II"] != load_classifier("builtin:").thresholds["II"]
    metrics = json.loads((result.path / "metrics.json").read_text())
    assert metrics["n_records"] == len(HELD_OUT)
    assert {"reliability", "intervals"} <= set(metrics)
    assert {"macro_auroc", "micro_auroc", "macro_auprc", "per_label", "ece"} <= set(metrics)
    assert set(metrics["configurations"]) == {"I", "II"}

    run = mlflow.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "2"
    assert run.data.tags["lead_configuration"] == "12-lead"
    history = mlflow.MlflowClient().get_metric_history(result.run_id, "train_loss")
    assert [point.step for point in history] == [2, 4]
    artifacts = {item.path for item in mlflow.artifacts.list_artifacts(run_id=result.run_id)}
    assert {"classifier", "plots"} <= artifacts


def test_what_cannot_be_trained_on_is_said_before_any_worker_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no label has 13 positives in 12 records"):
        finetune_classifier(configured(tmp_path, "init=null", "min_positives=13"))
    with pytest.raises(ConfigError, match="no record 999"):
        finetune_classifier(configured(tmp_path, "validation.records=['999']"))
    with pytest.raises(ConfigError, match="no record is left"):
        finetune_classifier(
            configured(tmp_path, "exclude_patients_of=[{kind: manifest, path: 'samples:'}]")
        )


def test_what_a_strategy_cannot_do_is_said_before_any_worker_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"fsdp cannot shard rhythm\.sharpness"):
        finetune_classifier(configured(tmp_path, "strategy=fsdp"))
    monkeypatch.setattr("ecg_agent_ray.training.deepspeed_setup._path", lambda: str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"g\+\+ and ninja"):
        finetune_classifier(configured(tmp_path, "strategy=deepspeed"))


def losses(result: ClassifierTrainResult) -> list[float]:
    return [epoch["train_loss"] for epoch in result.history]


def same_weights(first: ClassifierTrainResult, second: ClassifierTrainResult) -> bool:
    one = load_classifier(first.path).network.state_dict()
    other = load_classifier(second.path).network.state_dict()
    return all(bool((other[key] - value).abs().max() < 1e-5) for key, value in one.items())


SMALL_NETWORK = ("epochs=4", "init=null", "min_positives=2", "network.sizes={width: 8, dropout: 0}")
SMALL_TRANSFORMER = (
    "epochs=4",
    "init=null",
    "min_positives=2",
    "network.architecture=ecg_transformer",
    "network.sizes={layers: 2, width: 32, ffn: 64, heads: 2, activation_dropout: 0, "
    "conv_layers: [[16, 2, 2], [16, 2, 2], [16, 2, 2], [16, 2, 2]]}",
)


@pytest.fixture(scope="module")
def undisturbed(
    ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory
) -> ClassifierTrainResult:
    """Two replicas of the small transformer."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("undisturbed")
        patch.setenv("ECG_AGENT_HOME", str(folder / "state"))
        return finetune_classifier(configured(folder, *SMALL_TRANSFORMER))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("micro_batch_size=1",),
        ("strategy=fsdp", "micro_batch_size=1"),
        ("strategy=deepspeed", "zero_stage=1"),
        ("strategy=deepspeed", "zero_stage=2", "micro_batch_size=1"),
    ],
    ids=" ".join,
)
def test_every_strategy_has_the_loss_of_replicas(
    ray_cluster: Any, tmp_path: Path, undisturbed: ClassifierTrainResult, options: tuple[str, ...]
) -> None:
    result = finetune_classifier(configured(tmp_path, *SMALL_TRANSFORMER, *options))
    assert losses(result) == pytest.approx(losses(undisturbed), rel=1e-4)
    assert same_weights(result, undisturbed)


@pytest.fixture
def dies_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rank 1 is killed as it begins to report its third epoch; the file is there once it was."""
    from ecg_agent_ray.training import classifier_loop

    crashed = tmp_path / "crashed"
    whole_loop = classifier_loop.train_loop

    def loop(settings: dict[str, Any]) -> None:
        import ray.train

        report, rank = ray.train.report, ray.train.get_context().get_world_rank()

        def counted(metrics: dict[str, Any], **rest: Any) -> None:
            if rank == 1 and metrics["epoch"] == 3 and not crashed.exists():
                crashed.touch()
                os._exit(1)
            report(metrics, **rest)

        ray.train.report = counted
        whole_loop(settings)

    monkeypatch.setattr("ecg_agent_ray.training.classifier.train_loop", loop)
    return crashed


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed"])
def test_a_killed_worker_does_not_change_the_loss_curve(
    ray_cluster: Any,
    tmp_path: Path,
    undisturbed: ClassifierTrainResult,
    dies_once: Path,
    strategy: str,
) -> None:
    resumed = finetune_classifier(configured(tmp_path, *SMALL_TRANSFORMER, f"strategy={strategy}"))
    assert dies_once.exists()
    tolerance = 1e-5 if strategy == "ddp" else 1e-4
    assert losses(resumed) == pytest.approx(losses(undisturbed), rel=tolerance)
    assert same_weights(resumed, undisturbed)


def test_a_network_for_the_challenges_classes(
    ray_cluster: Any, shared_data: Path, tmp_path: Path
) -> None:
    """xresnet1d from scratch on two workers, calibrated on the held-out patients."""
    result = finetune_classifier(
        configured(
            tmp_path,
            f"data=[{{kind: physionet, path: {shared_data / 'cinc2021'}}}]",
            "validation.records=null",
            "validation.fraction=0.4",
            "labels=challenge2021",
            "init=null",
            "network={architecture: xresnet1d, sizes: {depth: 18, width: 8}}",
            "min_positives=4",
            "calibrate=true",
            "epochs=1",
        )
    )
    trained = load_classifier(result.path)
    assert trained.network.architecture == "xresnet1d"
    assert trained.labels == CLASSES
    assert "427084000" in trained.assessed
    assert trained.lead_configurations == ("12-lead",)
    assert trained.calibration is not None
    assert trained.calibration.name == "platt-validation"
    assert set(trained.thresholds) == {"12-lead"}
    assert {"ece", "ece_uncalibrated"} <= set(result.metrics)


@pytest.mark.slow
def test_one_worker_has_the_loss_of_two(ray_cluster: Any, tmp_path: Path) -> None:
    one = finetune_classifier(
        configured(tmp_path / "1", *SMALL_NETWORK, "distributed.num_workers=1")
    )
    two = finetune_classifier(configured(tmp_path / "2", *SMALL_NETWORK))
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
