"""A real Ray Train V2 job of two gloo workers that logs into one MLflow run."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mlflow
import pytest

from ecg_agent_ray.plugins.stores import server_answers
from ecg_agent_ray.plugins.tracking import tracked_run
from ecg_agent_ray.plugins.train_callback import MLflowTrainCallback, numeric_metrics


@pytest.fixture(autouse=True)
def _quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train takes one report each time it polls its workers, by default every 2 s."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def loop(config: dict[str, Any]) -> None:
    """Five steps; rank 1 dies once at step 4, after reports 1 to 3 and a checkpoint at 2."""
    import torch
    import torch.distributed as dist
    from ray import train

    rank = train.get_context().get_world_rank()
    start = 0
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            start = int((Path(folder) / "step").read_text())
    for step in range(start + 1, 6):
        total = torch.ones(1) * (rank + 1)
        dist.all_reduce(total)
        if rank == 1 and step == 4 and not Path(config["crashed"]).exists():
            Path(config["crashed"]).touch()
            raise RuntimeError("worker lost on purpose")
        metrics = {"global_step": step, "sum": float(total), "rank": rank, "text": "x"}
        if step == 2:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "step").write_text(str(step))
                saved = train.Checkpoint.from_directory(folder)
                train.report(metrics, checkpoint=saved, checkpoint_dir_name="at-2")
        else:
            train.report(metrics)


def fit(callback: MLflowTrainCallback, tmp_path: Path, *, max_failures: int) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        loop,
        train_loop_config={"crashed": str(tmp_path / "crashed")},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="job",
            storage_path=str(tmp_path / "ray"),
            callbacks=[callback],
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    ).fit()


def test_one_run_one_value_a_step_across_a_worker_restart(
    ray_cluster: Any, store: str, tmp_path: Path
) -> None:
    with tracked_run("job") as run:
        fit(run.callback(checkpoints="artifact"), tmp_path, max_failures=1)
    client = mlflow.MlflowClient()
    points = client.get_metric_history(run.run_id, "sum")
    assert sorted((p.step, p.value) for p in points) == [(step, 3.0) for step in range(1, 6)]
    assert {p.value for p in client.get_metric_history(run.run_id, "rank")} == {0.0}
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert set(found.data.metrics) == {"sum", "rank"}
    assert found.data.tags["ray.train.checkpoint"].endswith("at-2")
    assert found.data.tags["ray.train.checkpoint_step"] == "2"
    assert found.data.tags["ray.train.failures"] == "1"
    assert found.data.tags["ray.job_id"]
    uri = found.info.artifact_uri
    assert mlflow.artifacts.load_text(f"{uri}/checkpoints/at-2/step") == "2"
    text = mlflow.artifacts.load_text(f"{uri}/failures/attempt-1-rank-1.txt")
    assert "worker lost on purpose" in text
    assert len(client.search_runs([run.experiment_id])) == 1


@pytest.mark.slow
def test_failed_job_is_a_failed_run(ray_cluster: Any, store: str, tmp_path: Path) -> None:
    from ray.train import TrainingFailedError

    with pytest.raises(TrainingFailedError), tracked_run("job") as run:
        fit(run.callback(), tmp_path, max_failures=0)
    found = mlflow.get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert "worker lost on purpose" in found.data.tags["error"]
    points = mlflow.MlflowClient().get_metric_history(run.run_id, "sum")
    assert sorted(p.step for p in points) == [1, 2, 3]


@pytest.mark.slow
def test_usable_alone_and_while_mlflow_is_away(
    ray_cluster: Any, store: str, tmp_path: Path
) -> None:
    """No tracked_run; the port is closed during fit, so that all of it waits on the disk."""
    (tmp_path / "crashed").touch()
    run_id = mlflow.MlflowClient().create_run("1").info.run_id
    callback = MLflowTrainCallback(run_id, "http://127.0.0.1:9", spool_dir=tmp_path / "spool")
    fit(callback, tmp_path, max_failures=0)
    assert callback.flush(timeout_s=0.3) is False
    assert mlflow.get_run(run_id).data.metrics == {}
    late = MLflowTrainCallback(run_id, store, spool_dir=tmp_path / "spool")
    assert late.flush()
    points = mlflow.MlflowClient().get_metric_history(run_id, "sum")
    assert sorted((p.step, p.value) for p in points) == [(step, 3.0) for step in range(1, 6)]


def patient_loop(config: dict[str, Any]) -> None:
    """A report a second; the test stops and starts MLflow meanwhile."""
    import time

    from ray import train

    for step in range(1, config["steps"] + 1):
        time.sleep(1.0)
        train.report({"global_step": step, "loss": 1.0 / step})
        if train.get_context().get_world_rank() == 0:
            Path(config["progress"]).write_text(str(step))


@pytest.mark.slow
def test_mlflow_stopped_within_a_job_loses_nothing(
    ray_cluster: Any,
    store: str,
    tmp_path: Path,
    closed_port: int,
    mlflow_server: Callable[..., AbstractContextManager[str]],
) -> None:
    """A real server on its port, stopped for a minute of a running job: 62 steps of a second."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    port, progress, steps = closed_port, tmp_path / "progress", 90
    uri = f"http://127.0.0.1:{port}"

    def wait_for(step: int) -> None:
        deadline = time.monotonic() + 400
        while not progress.exists() or int(progress.read_text() or 0) < step:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def switch() -> None:
        with first:
            wait_for(8)
        stopped.set()
        away = time.monotonic()
        wait_for(68)
        print(f"MLflow was away for {time.monotonic() - away:.0f} s")
        with mlflow_server(store, port):
            finished.wait(400)

    stopped, finished = threading.Event(), threading.Event()
    first = mlflow_server(store, port)
    with contextlib.ExitStack() as stack:
        outage = threading.Thread(target=switch)
        outage.start()
        stack.callback(outage.join)
        stack.callback(finished.set)
        while not server_answers(uri):
            time.sleep(0.2)
        with tracked_run("job", tracking_uri=uri) as run:
            started = time.monotonic()
            TorchTrainer(
                patient_loop,
                train_loop_config={"steps": steps, "progress": str(progress)},
                torch_config=TorchConfig(backend="gloo"),
                scaling_config=ScalingConfig(num_workers=2),
                run_config=RunConfig(
                    name="job", storage_path=str(tmp_path / "ray"), callbacks=[run.callback()]
                ),
            ).fit()
            print(f"{steps} steps in {time.monotonic() - started:.0f} s")
    assert stopped.is_set()
    points = mlflow.MlflowClient(store).get_metric_history(run.run_id, "loss")
    assert sorted((p.step, p.value) for p in points) == [(s, 1.0 / s) for s in range(1, steps + 1)]
    assert mlflow.MlflowClient(store).get_run(run.run_id).info.status == "FINISHED"


def test_numeric_metrics_takes_numbers_alone() -> None:
    import numpy as np
    import torch

    report = {
        "a": 1,
        "b": {"c": np.float32(2.5), "d": torch.tensor([3.0])},
        "e": "text",
        "f": [1, 2],
        "g": torch.zeros(2),
        "h": True,
    }
    assert numeric_metrics(report) == {"a": 1.0, "b/c": 2.5, "b/d": 3.0, "h": 1.0}
