"""The pre-training Ray Train job on the shipped records, two gloo workers on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ecg_agent_ray.classifier import load_checkpoint
from ecg_agent_ray.classifier.pretraining_checkpoint import load_pretraining_checkpoint
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.training.config import load_config
from ecg_agent_ray.training.pretrain import PretrainConfig, PretrainResult, pretrain_classifier
from ecg_agent_ray.training.pretrain_data import SegmentPairs, find_pairs, split_pairs

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"


def configured(folder: Path, *overrides: str) -> PretrainConfig:
    return load_config(
        PretrainConfig, CONFIGS / "pretrain_laptop.yaml", [f"output={folder}", *overrides]
    )


@pytest.mark.parametrize("size", ["full", "small", "laptop"])
def test_shipped_configurations_load(size: str) -> None:
    config = load_config(PretrainConfig, CONFIGS / f"pretrain_{size}.yaml")
    assert config.network_config().width % config.network_config().heads == 0
    assert config.objective_config().num_negatives == 100


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown layer"):
        configured(tmp_path, "network={layer: 2}")
    with pytest.raises(ConfigError, match="no multiple of micro_batch_size"):
        configured(tmp_path, "micro_batch_size=3")
    with pytest.raises(ConfigError, match="do not fill a batch of 64"):
        pretrain_classifier(configured(tmp_path, "batch_size=64"))


def test_pairs_are_successive_segments_of_a_patient(tmp_path: Path) -> None:
    from ecg_agent_ray import ecg

    pairs = find_pairs(configured(tmp_path))
    assert len(pairs) == len(ecg.samples())
    source, patients, segments = SegmentPairs(pairs, 2500).batch([0, 1])
    assert source.shape == (4, 12, 2500)
    assert segments.tolist() == [0, 1, 0, 1]
    assert patients[0] == patients[1] != patients[2]
    whole = ecg.read(pairs[0].path).signal
    assert source[1].numpy() == pytest.approx(whole[:, 2500:])
    train, validation = split_pairs(pairs, 0.25, 42)
    held_out = {pairs[i].patient_id for i in validation}
    assert held_out
    assert not held_out & {pairs[i].patient_id for i in train}


def test_a_checkpoint_is_pretrained_then_fine_tuned(ray_cluster: Any, tmp_path: Path) -> None:
    import mlflow

    from ecg_agent_ray.training.classifier import finetune_classifier
    from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig

    result = pretrain_classifier(configured(tmp_path / "pretrained", "epochs=2"))
    assert len(result.history) == 2
    assert result.metrics["global_step"] == 2
    run = mlflow.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["validation_loss"] == pytest.approx(result.metrics["validation_loss"])
    checkpoint = result.path / "checkpoint_last.pt"
    assert load_pretraining_checkpoint(checkpoint).objective.latent_vars == 20
    assert load_checkpoint(checkpoint).config.layers == 2

    options = [
        "data=[{kind: manifest, path: 'samples:'}]",
        f"init={checkpoint}",
        f"output={tmp_path / 'classifier'}",
        "epochs=1",
        "batch_size=4",
        "min_positives=2",
    ]
    tuned = finetune_classifier(load_config(ClassifierFinetuneConfig, None, options))
    assert tuned.metrics["n_records"] > 0


def losses(result: PretrainResult) -> list[float]:
    return [epoch["train_loss"] for epoch in result.history]


@pytest.mark.slow
def test_a_killed_worker_does_not_change_the_loss_curve(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecg_agent_ray.training import pretrain

    undisturbed = pretrain_classifier(configured(tmp_path / "1", "epochs=4"))
    crashed = tmp_path / "crashed"
    whole_loop = pretrain.train_loop

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

    monkeypatch.setattr(pretrain, "train_loop", dies_once)
    resumed = pretrain_classifier(configured(tmp_path / "2", "epochs=4"))
    assert crashed.exists()
    assert losses(resumed) == pytest.approx(losses(undisturbed), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("strategy=fsdp",), ("strategy=deepspeed", "zero_stage=2")])
def test_sharded_training_has_the_loss_of_replicated(
    ray_cluster: Any, tmp_path: Path, options: tuple[str, ...]
) -> None:
    replicated = pretrain_classifier(configured(tmp_path / "1", "epochs=2"))
    sharded = pretrain_classifier(configured(tmp_path / "2", "epochs=2", *options))
    assert losses(sharded) == pytest.approx(losses(replicated), rel=1e-4)
    assert load_checkpoint(sharded.path / "checkpoint_last.pt").config.layers == 2
