"""Runs and the spool on a real MLflow SQLite store and a real MLflow server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import mlflow
import pytest

from ecg_agent_ray.errors import ConfigError, ServiceError
from ecg_agent_ray.plugins.spool import RunSpool, resend
from ecg_agent_ray.plugins.tracking import configure, data_digest, git_commit, tracked_run

Server = Callable[..., AbstractContextManager[str]]


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    points = mlflow.MlflowClient().get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


def test_run_has_params_tags_data_and_ends_finished(store: str, tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("{}\n")
    digest = data_digest([data])
    with tracked_run("job", params={"lr": 3e-4}, tags={"size": "135M"}) as run:
        run.log_data("dialogues", digest, source=str(data), profile={"rows": 1})
        run.log_metrics({"loss": 1.5, "eval": {"auroc": 0.75}, "note": "no number"}, step=3)
        run.log_dict({"a": 1}, "plan.json")
    found = mlflow.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.0003"}
    assert found.data.metrics == {"loss": 1.5, "eval/auroc": 0.75}
    assert found.data.tags["size"] == "135M"
    assert found.data.tags["package.version"]
    assert found.data.tags.get("git.commit") == git_commit()
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("dialogues", digest)
    assert mlflow.artifacts.load_dict(f"{found.info.artifact_uri}/plan.json") == {"a": 1}
    assert list(run.spool.directory.glob("*.jsonl")) == []
    assert mlflow.active_run() is None


def test_failure_leaves_error_and_traceback(store: str) -> None:
    with pytest.raises(ZeroDivisionError), tracked_run("job") as run:
        run.log_metrics({"x": 1 / 0})
    found = mlflow.get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.tags["error"] == "ZeroDivisionError: division by zero"
    text = mlflow.artifacts.load_text(f"{found.info.artifact_uri}/failures/driver.txt")
    assert "1 / 0" in text


def test_interrupt_ends_killed_and_restart_continues_without_repeats(store: str) -> None:
    with pytest.raises(KeyboardInterrupt), tracked_run("job", params={"lr": 1, "n": 2}) as run:
        for step in (1, 2, 3):
            run.log_metrics({"loss": 10.0 - step}, step=step)
        raise KeyboardInterrupt
    assert mlflow.get_run(run.run_id).info.status == "KILLED"
    with tracked_run("job", params={"lr": 9, "extra": 0}, run_id=run.run_id) as again:
        for step in (2, 3, 4):
            again.log_metrics({"loss": 5.0 - step}, step=step)
    assert again.run_id == run.run_id
    found = mlflow.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "1", "n": "2", "extra": "0"}
    assert found.data.tags["param.lr"] == "9"
    assert history(run.run_id, "loss") == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 1.0)]


def test_ray_trains_sigint_handler_does_not_stay(store: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), tracked_run("job") as run:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))  # as Ray Train's fit() does
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert mlflow.get_run(run.run_id).info.status == "KILLED"


def test_a_projects_run_is_continued_in_the_projects_experiment(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``mlflow run`` opens the run and names it by environment variable."""
    client = mlflow.MlflowClient(store)
    experiment = client.create_experiment("project")
    opened = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    with tracked_run("job", params={"a": 1}, experiment="another") as run:
        assert run.run_id == opened
    finished = client.get_run(opened)
    assert finished.info.experiment_id == experiment
    assert finished.info.status == "FINISHED"
    assert finished.data.params == {"a": "1"}


def test_inner_run_is_a_child(store: str) -> None:
    with tracked_run("pipeline") as outer, tracked_run("step") as inner:
        pass
    assert mlflow.get_run(inner.run_id).data.tags["mlflow.parentRunId"] == outer.run_id


def test_a_run_outlives_its_server(
    store: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ends in time although MLflow went away, and the next job sends the rest."""
    import ecg_agent_ray.plugins.tracking as tracking

    monkeypatch.setattr(tracking, "_FLUSH_S", 0.5)
    with tracked_run("job") as run:
        monkeypatch.setattr(run.spool, "tracking_uri", f"http://127.0.0.1:{closed_port}")
        run.log_metrics({"loss": 1.0}, step=1)
    assert run.spool.path.exists()
    text = run.spool.path.read_text().replace(run.spool.tracking_uri, store)
    run.spool.path.write_text(text)
    with tracked_run("next job"):
        assert history(run.run_id, "loss") == [(1, 1.0)]


def test_file_store_and_dead_server_are_refused_with_the_mend(
    tmp_path: Path, closed_port: int
) -> None:
    with pytest.raises(ConfigError, match="sqlite:///"):
        configure(str(tmp_path / "mlruns"))
    with pytest.raises(ServiceError, match="does not answer"):
        configure(f"http://127.0.0.1:{closed_port}")


@pytest.mark.slow
def test_processes_that_start_at_once_share_one_experiment(tmp_path: Path) -> None:
    code = (
        "import sys; from ecg_agent_ray.plugins.tracking import configure;"
        "print(configure(sys.argv[1], artifact_root=sys.argv[2], experiment='shared'))"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/new/m.db", str(tmp_path / "a")]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [job.communicate(timeout=120)[0].strip() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert len(set(answers)) == 1


@pytest.mark.slow
def test_outage_is_spooled_and_sent_later(
    tmp_path: Path, store: str, closed_port: int, mlflow_server: Server
) -> None:
    """The server's port is closed first, then an MLflow server opens on that very port."""
    with tracked_run("job") as run:
        pass
    uri = f"http://127.0.0.1:{closed_port}"
    spool = RunSpool(run.run_id, uri, tmp_path / "spool")
    for step in range(5):
        spool.metrics({"loss": float(step)}, step)
    spool.text("boom", "failures/x.txt")
    spool.status("FAILED")
    assert spool.send() is False
    assert spool.flush(timeout_s=0.5) is False
    with mlflow_server(store, closed_port):
        assert resend(tmp_path / "spool") == {run.run_id: True}
    assert history(run.run_id, "loss") == [(step, float(step)) for step in range(5)]
    assert mlflow.get_run(run.run_id).info.status == "FAILED"
    assert not spool.path.exists()


def test_what_could_not_be_sent_is_sent_by_the_next_process(
    tmp_path: Path, store: str, closed_port: int
) -> None:
    with tracked_run("job") as run:
        pass
    away = RunSpool(run.run_id, f"http://127.0.0.1:{closed_port}", tmp_path / "spool")
    for step in range(3):
        away.metrics({"loss": float(step)}, step)
    assert away.flush(timeout_s=0.5) is False
    assert history(run.run_id, "loss") == []
    assert RunSpool(run.run_id, store, tmp_path / "spool").flush()
    assert history(run.run_id, "loss") == [(step, float(step)) for step in range(3)]


def test_a_crash_between_sending_and_noting_it_repeats_nothing(tmp_path: Path, store: str) -> None:
    with tracked_run("job") as run:
        pass
    spool = RunSpool(run.run_id, store, tmp_path / "spool")
    for step in range(3):
        spool.metrics({"loss": float(step)}, step)
    kept = spool.path.read_bytes()
    assert spool.send()
    spool.path.write_bytes(kept + b'{"op": "metr')  # and the writer died within a line
    again = RunSpool(run.run_id, store, tmp_path / "spool")
    again.metrics({"loss": 3.0}, 3)
    assert again.send()
    assert history(run.run_id, "loss") == [(step, float(step)) for step in range(4)]


def test_what_mlflow_refuses_for_good_is_kept_aside(tmp_path: Path, store: str) -> None:
    with tracked_run("job") as run:
        pass
    spool = RunSpool(run.run_id, store, tmp_path / "spool")
    spool.metrics({"bad\nname": 1.0}, 0)
    spool.tags({"after": "it"})
    assert spool.send()
    assert "bad" in (tmp_path / "spool" / f"{run.run_id}.rejected.jsonl").read_text()
    assert mlflow.get_run(run.run_id).data.tags["after"] == "it"
