"""``mlflow run -b ray`` on a real local Ray: through its job server, and without an address."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import ExecutionException

from ecg_agent_ray.plugins.ray_jobs import connect

TOKEN = "a" * 64

CLUSTER = """
import sys
from ecg_agent_ray.plugins.local_cluster import job_server_url, local_ray

with local_ray(num_cpus=4, job_server=True):
    print(job_server_url(), flush=True)
    sys.stdin.read()
"""

PROJECT = """
name: tiny
entry_points:
  main:
    parameters:
      steps: {type: float, default: 3}
      data: {type: path, default: inner.txt}
      exit: {type: float, default: 0}
    command: "python job.py {steps} {data} {exit}"
"""

JOB = """
import os, sys, time
import mlflow

steps, data, code = sys.argv[1:]
print("data:", open(data).read().strip(), flush=True)
with mlflow.start_run():
    for step in range(int(float(steps))):
        mlflow.log_metric("step", step, step=step)
        print("line", step, flush=True)
        time.sleep(0.1)
    if "JOIN" in os.environ:
        import ray
        ray.init(logging_level="ERROR")
    mlflow.set_tag("token", os.environ.get("HANDED_OVER", "none"))
sys.exit(int(float(code)))
"""


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """A cluster of another process, which wants a token."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
    )
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        yield cluster.stdout.readline().strip()
    finally:
        cluster.stdin.close()
        cluster.wait(60)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "MLproject").write_text(PROJECT)
    (folder / "job.py").write_text(JOB)
    (folder / "inner.txt").write_text("from the project")
    return folder


def config(job_server: str, **options: Any) -> dict[str, Any]:
    return {"address": job_server, "token": TOKEN, **options}


def run(project: Path, backend_config: dict[str, Any], **options: Any) -> Any:
    return mlflow.projects.run(
        str(project),
        backend="ray",
        backend_config=backend_config,
        env_manager="local",
        **options,
    )


def test_a_run_is_a_job_and_each_knows_the_other(
    store: str,
    job_server: str,
    project: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HANDED_OVER", "yes")
    submitted = run(project, config(job_server, pass_env=["HANDED_OVER"]), run_name="a name")
    output = capfd.readouterr().out
    assert output.count("data: from the project") == 1
    assert [output.count(f"line {step}\n") for step in range(4)] == [1, 1, 1, 0]
    found = mlflow.get_run(submitted.run_id)
    assert found.info.status == submitted.get_status() == "FINISHED"
    assert found.info.run_name == "a name"
    assert found.data.metrics == {"step": 2}
    assert found.data.params == {"steps": "3", "data": "inner.txt", "exit": "0"}
    tags = found.data.tags
    assert tags["token"] == "yes"
    assert tags["mlflow.project.backend"] == "ray"
    assert tags["ray.submission_id"] == submitted.job_id
    assert tags["ray.job_server"] == job_server
    client = connect(job_server, headers={"Authorization": f"Bearer {TOKEN}"})
    job = client.get_job_info(submitted.job_id)
    assert job.metadata["mlflow.run_id"] == submitted.run_id
    assert job.metadata["mlflow.experiment_id"] == found.info.experiment_id


def test_paths_files_and_artifacts_reach_the_job(
    store: str, job_server: str, project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "with a blank.txt"
    outside.write_text("from outside")
    with mlflow.start_run() as parent:
        mlflow.log_text("from the store", "in.txt")
        uri = f"runs:/{parent.info.run_id}/in.txt"
        child = run(project, config(job_server), parameters={"data": uri})
        other = run(project, config(job_server), parameters={"data": str(outside)})
    output = capfd.readouterr().out
    assert "data: from the store" in output
    assert "data: from outside" in output
    assert mlflow.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert mlflow.get_run(other.run_id).info.status == "FINISHED"


def test_a_failed_job_is_a_failed_run(store: str, job_server: str, project: Path) -> None:
    with pytest.raises(ExecutionException, match="failed"):
        run(project, config(job_server), parameters={"exit": 3})
    (found,) = mlflow.search_runs(output_format="list")
    assert found.info.status == "FAILED"
    assert found.data.tags["ray.exit_code"] == "3"
    assert "exit code 3" in found.data.tags["error"]


def test_cancel_stops_the_job(store: str, job_server: str, project: Path) -> None:
    submitted = run(project, config(job_server), parameters={"steps": 10_000}, synchronous=False)
    wait_for(lambda: submitted.get_status() == "RUNNING")
    submitted.cancel()
    assert submitted.get_status() == "KILLED"
    assert mlflow.get_run(submitted.run_id).info.status in ("KILLED", "FAILED")
    assert not submitted.wait()


def test_ctrl_c_stops_the_job_and_says_130(
    store: str, job_server: str, project: Path, tmp_path: Path
) -> None:
    cluster = tmp_path / "cluster.json"
    cluster.write_text(json.dumps(config(job_server)))
    command = [sys.executable, "-m", "mlflow", "run", str(project), "-b", "ray", "-P", "steps=1e4"]
    command += ["--backend-config", str(cluster), "--env-manager", "local", "--run-name", "long"]
    env = os.environ | {"MLFLOW_TRACKING_URI": store}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        # a test run in the background of a shell ignores it, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "line 2\n":
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    (found,) = mlflow.search_runs(
        search_all_experiments=True, filter_string="run_name = 'long'", output_format="list"
    )
    assert found.info.status == "KILLED"
    client = connect(job_server, headers={"Authorization": f"Bearer {TOKEN}"})
    assert client.get_job_status(found.data.tags["ray.submission_id"]).value == "STOPPED"


@pytest.mark.slow
def test_without_an_address_a_cluster_is_made_and_gone_afterwards(
    store: str, project: Path, job_server: str
) -> None:
    """Beside another cluster of the machine, which its job must not take for its own."""
    command = [sys.executable, "-m", "mlflow", "run", str(project), "-b", "ray"]
    command += ["--env-manager", "local"]
    command += ["--backend-config", json.dumps({"runtime_env": {"env_vars": {"JOIN": "1"}}})]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=env | {"MLFLOW_TRACKING_URI": store}
    )
    assert done.returncode == 0, done.stderr
    assert "line 2\n" in done.stdout
    assert "succeeded" in done.stderr
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert found.info.status == "FINISHED"
    with pytest.raises(ExecutionException, match="no Ray job server answers"):
        run(project, {"address": found.data.tags["ray.job_server"]})


@pytest.mark.parametrize(
    ("backend_config", "said"),
    [
        ({"adress": "http://x"}, "adress: unknown key, did you mean 'address'?"),
        ({"address": "ray://127.0.0.1:10001"}, "give the job server"),
        ({"address": "http://10.0.0.9:8265"}, "use a tracking server"),
        ({"token_file": "/nowhere/token", "address": "http://127.0.0.1:1"}, "token_file"),
        ({"pass_env": ["NOT_SET_ANYWHERE"]}, "NOT_SET_ANYWHERE"),
        ({"entrypoint": {"num_gpus": -1}}, "entrypoint.num_gpus"),
    ],
)
def test_bad_configuration_is_refused_by_name(
    store: str, project: Path, backend_config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExecutionException) as caught:
        run(project, backend_config)
    assert said in str(caught.value)
    assert [r.info.status for r in mlflow.search_runs(output_format="list")] in ([], ["FAILED"])


def test_a_wrong_token_is_refused(store: str, job_server: str, project: Path) -> None:
    with pytest.raises(ExecutionException, match=r"(?i)token"):
        run(project, {"address": job_server, "token": "b" * 64})


def test_python_env_becomes_a_runtime_environment(project: Path) -> None:
    from mlflow.projects import utils

    from ecg_agent_ray.errors import ConfigError
    from ecg_agent_ray.plugins.project_environment import environment

    (project / "python_env.yaml").write_text(
        "python: '3.11'\ndependencies:\n  - -r more.txt\n  - numpy==2.0\n"
    )
    (project / "more.txt").write_text("# why\npandas>=2  # tables\n-c constraints.txt\n\n")
    loaded = utils.load_project(str(project))
    assert environment(loaded, "local") == {}
    assert environment(loaded, None) == {"pip": ["pandas>=2", "numpy==2.0"]}
    assert environment(loaded, "uv") == {"uv": ["pandas>=2", "numpy==2.0"]}
    with pytest.raises(ConfigError):
        environment(loaded, "conda")


def wait_for(condition: Any, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
