"""Promotion where teams have their registry: MLflow on PostgreSQL, artifacts on S3."""

from __future__ import annotations

import json
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from safetensors.numpy import save_file

from ecg_agent_ray.errors import ChampionChangedError, ConfigError, GateNotMetError
from ecg_agent_ray.plugins.tracking import tracked_run
from ecg_agent_ray.registry import (
    attach_evaluation,
    log_classifier,
    promote,
    resolve,
    rollback,
    show,
)
from ecg_agent_ray.registry.promotion import read_audit
from ecg_agent_ray.registry.store import registry_client

GOOD = {"macro_auroc": 0.93, "ece": 0.03, "n_records": 800}
POOR = {"macro_auroc": 0.70, "ece": 0.03, "n_records": 800}
PROMOTERS, ROUNDS = 10, 5


@pytest.fixture
def production_store(postgres_uri: str, s3_bucket: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow on PostgreSQL, with an experiment whose artifacts are on S3."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres_uri)
    mlflow.set_tracking_uri(postgres_uri)
    experiment = mlflow.create_experiment("models", artifact_location=f"s3://{s3_bucket.name}/exp")
    mlflow.set_experiment(experiment_id=experiment)
    return postgres_uri


def publish(folder: Path, metrics: dict[str, float]) -> int:
    folder.mkdir()
    save_file({"weight": np.full((2, 4), len(metrics), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "compact"}))
    (folder / "README.md").write_text("# A classifier\n")
    with tracked_run("train") as run:
        pass
    return log_classifier(folder, run_id=run.run_id, metrics=metrics).version


def test_refused_forced_passed_and_rolled_back(
    production_store: str, s3_bucket: Any, tmp_path: Path
) -> None:
    name = "ecg-classifier"
    poor = publish(tmp_path / "poor", POOR)
    with pytest.raises(GateNotMetError, match="macro_auroc"):
        promote(name, poor)
    with pytest.raises(ConfigError, match="reason"):
        promote(name, poor, force=True)
    assert promote(name, poor, force=True, reason="first of all").forced
    good = publish(tmp_path / "good", GOOD)
    with pytest.raises(ChampionChangedError):
        promote(name, good, expect_champion="none")
    assert promote(name, good, expect_champion=poor).previous == poor
    assert show(name, "champion").version == good
    assert show(name, "previous-champion").version == poor
    rollback(name, reason="a complaint")
    assert show(name, "champion").version == poor
    events = [entry["event"] for entry in read_audit(name)]
    assert events == ["refused", "promoted", "promoted", "rolled back"]
    tags = registry_client().get_registered_model(name).tags
    assert len([key for key in tags if key.startswith("audit.")]) == 4

    stored = [item.key for item in s3_bucket.objects.all()]
    assert [key for key in stored if key.endswith("model.safetensors")]
    assert not [key for key in stored if key.endswith((".pkl", ".bin", ".pt"))]
    fetched = resolve(f"models:/{name}@champion", kind="classifier")
    assert (fetched / "model.safetensors").read_bytes() == (
        tmp_path / "poor" / "model.safetensors"
    ).read_bytes()


def promoter(uri: str, home: str, orders: Connection) -> None:
    """A process that promotes when it is told to, and says what came of it."""
    os.environ |= {"MLFLOW_TRACKING_URI": uri, "ECG_AGENT_HOME": home}
    registry_client()
    orders.send("ready")
    while (order := orders.recv()) is not None:
        version, champion = order
        try:
            promote("ecg-classifier", version, expect_champion=champion)
            orders.send("won")
        except ChampionChangedError:
            orders.send("champion changed")
        except Exception as error:
            orders.send(f"{type(error).__name__}: {error}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_of_ten_promotions_at_once_one_wins(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = request.getfixturevalue("store" if kind == "sqlite" else "postgres_uri")
    mlflow.set_tracking_uri(uri)
    client = registry_client(create=True)
    client.create_registered_model("ecg-classifier")
    for _ in range(2 * PROMOTERS):
        made = client.create_model_version("ecg-classifier", source="file:///nowhere")
        attach_evaluation("ecg-classifier", int(made.version), GOOD)
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(PROMOTERS):
        ours, theirs = context.Pipe()
        arguments = (uri, str(tmp_path / "home"), theirs)
        context.Process(target=promoter, args=arguments, daemon=True).start()
        pipes.append(ours)
    assert [pipe.recv() for pipe in pipes] == ["ready"] * PROMOTERS
    champion: int | str = "none"
    for number in range(ROUNDS):
        # by turns from two halves: promoting the champion itself would change nothing
        first = 1 + PROMOTERS * (number % 2)
        for version, pipe in enumerate(pipes, first):
            pipe.send((version, champion))
        said = [pipe.recv() for pipe in pipes]
        assert sorted(said) == ["champion changed"] * (PROMOTERS - 1) + ["won"]
        champion = first + said.index("won")
        assert show("ecg-classifier", "champion").version == champion
    for pipe in pipes:
        pipe.send(None)
    events = [entry["event"] for entry in read_from(tmp_path / "home")]
    assert events == ["promoted"] * ROUNDS


def read_from(home: Path) -> list[dict[str, Any]]:
    lines = (home / "audit" / "promotions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
