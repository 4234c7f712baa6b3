"""``kube submit`` against a local server that speaks the API and holds what it gets to the CRDs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from ecg_agent_ray.cli import run
from ecg_agent_ray.errors import ConfigError, RefusedError, ServiceError, TrainingError
from ecg_agent_ray.kube import load_objects, prepare_job, render, submit_job
from ecg_agent_ray.kube.render import _command
from ecg_agent_ray.kube.schemas import schema_problems

pytest.importorskip("kubernetes")
try:
    _command()
except Exception:
    pytest.skip("neither kustomize nor kubectl is installed", allow_module_level=True)

RAYJOBS = "/apis/ray.io/v1/namespaces/ecg-agent/rayjobs"


class Cluster:
    """RayJobs that end as ``outcome`` says, one state further at each look."""

    def __init__(self) -> None:
        self.outcome = "SUCCEEDED"
        self.jobs: dict[str, dict[str, Any]] = {}
        self.looks: dict[str, int] = {}

        self.refusals: list[int] = []
        self.states: list[dict[str, Any]] | None = None
        self.lose_answers = False

    def create(self, job: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refusals:
            return self.refusals.pop(0), {"kind": "Status", "message": "not now"}
        if job["metadata"]["name"] in self.jobs:
            return 409, {"kind": "Status", "reason": "AlreadyExists"}
        problems = list(schema_problems(job) or ())
        if problems:
            return 422, {"kind": "Status", "message": "; ".join(problems)}
        self.jobs[job["metadata"]["name"]] = job
        if self.lose_answers:
            self.lose_answers = False
            return 504, {"kind": "Status", "message": "made, but the answer was lost"}
        return 201, job

    def get(self, name: str) -> tuple[int, dict[str, Any]]:
        if self.refusals and name in self.looks:
            return self.refusals.pop(0), {"kind": "Status", "message": "not now"}
        if name not in self.jobs:
            return 404, {"kind": "Status", "message": f"rayjobs {name} not found"}
        look = self.looks[name] = self.looks.get(name, 0) + 1
        states: list[dict[str, str]] = [
            {},
            {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
            {
                "jobDeploymentStatus": "Complete" if self.outcome == "SUCCEEDED" else "Failed",
                "jobStatus": self.outcome,
                "message": "out of memory",
            },
        ]
        states = self.states or states
        return 200, self.jobs[name] | {"status": states[min(look, len(states)) - 1]}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    state = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: dict[str, Any]) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_POST(self) -> None:
            assert self.path.split("?")[0] == RAYJOBS
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(*state.create(json.loads(body)))

        def do_GET(self) -> None:
            self._answer(*state.get(self.path.rsplit("/", 1)[1]))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "test",
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def kind() -> list[dict[str, Any]]:
    return load_objects(render("kind"))


def test_followed_to_its_end(cluster: Cluster, kind: list[dict[str, Any]]) -> None:
    seen: list[str] = []
    job = prepare_job(kind, "finetune-llm-1b", ["steps=2"], "finetune-llm-1b-x7k2p")
    result = submit_job(job, poll_s=0.01, progress=seen.append)
    assert result == {
        "job": "finetune-llm-1b-x7k2p",
        "namespace": "ecg-agent",
        "status": "SUCCEEDED",
    }
    assert [text.split(": ")[1] for text in seen] == ["Initializing", "Running", "Complete"]
    sent = cluster.jobs[result["job"]]["spec"]
    assert sent["suspend"] is False
    assert sent["entrypoint"].endswith("output=/work/llm-1b steps=2")


def test_failure_says_why(cluster: Cluster, kind: list[dict[str, Any]]) -> None:
    cluster.outcome = "FAILED"
    with pytest.raises(TrainingError, match="failed: out of memory"):
        submit_job(prepare_job(kind, "train-delineator"), poll_s=0.01)


def test_refusal_of_the_server_is_told(cluster: Cluster, kind: list[dict[str, Any]]) -> None:
    job = prepare_job(kind, "train-delineator")
    job["spec"]["retries"] = 3
    with pytest.raises(ConfigError, match="unknown field 'retries'"):
        submit_job(job, poll_s=0.01)


def test_bad_override_and_unknown_job(kind: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="stepps: unknown key, did you mean 'steps'"):
        prepare_job(kind, "finetune-llm-1b", ["stepps=2"])
    with pytest.raises(ConfigError, match="there are: evaluate-agent"):
        prepare_job(kind, "nothing")


def test_placeholder_images_are_refused() -> None:
    with pytest.raises(RefusedError, match="placeholder"):
        prepare_job(load_objects(render("production")), "evaluate-agent")


def test_no_server(kind: list[dict[str, Any]], cluster: Cluster, tmp_path: Path) -> None:
    import kubernetes.config.kube_config as location

    path = Path(location.KUBE_CONFIG_DEFAULT_LOCATION)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(ServiceError, match="does not answer"):
        submit_job(prepare_job(kind, "train-delineator"), retries=1, poll_s=0.01)


def test_names_differ_from_run_to_run(kind: list[dict[str, Any]]) -> None:
    names = {prepare_job(kind, "train-delineator")["metadata"]["name"] for _ in range(20)}
    assert len(names) == 20


def test_a_busy_server_is_asked_again(cluster: Cluster, kind: list[dict[str, Any]]) -> None:
    cluster.refusals = [503, 429, 500]
    result = submit_job(prepare_job(kind, "train-delineator"), poll_s=0.01)
    assert result["status"] == "SUCCEEDED"
    assert len(cluster.jobs) == 1


def test_one_job_though_the_answer_was_lost(cluster: Cluster, kind: list[dict[str, Any]]) -> None:
    cluster.lose_answers = True
    result = submit_job(prepare_job(kind, "train-delineator"), poll_s=0.01)
    assert result["status"] == "SUCCEEDED"
    assert list(cluster.jobs) == [result["job"]]


def test_a_name_that_is_taken(cluster: Cluster, kind: list[dict[str, Any]]) -> None:
    submit_job(prepare_job(kind, "train-delineator", name="mine"), wait=False)
    with pytest.raises(ConfigError, match="there is a job mine in ecg-agent already"):
        submit_job(prepare_job(kind, "train-delineator", name="mine"), poll_s=0.01)


@pytest.mark.parametrize(("status", "hint"), [(401, "log in"), (403, "ecg-agent-submitter")])
def test_credentials_that_are_refused(
    cluster: Cluster, kind: list[dict[str, Any]], status: int, hint: str
) -> None:
    cluster.refusals = [status]
    with pytest.raises(ConfigError, match=f"answers {status}") as caught:
        submit_job(prepare_job(kind, "train-delineator"), poll_s=0.01)
    assert hint in str(caught.value.hint)
    assert not cluster.jobs


def test_a_retried_job_is_followed_on(cluster: Cluster, kind: list[dict[str, Any]]) -> None:
    cluster.states = [
        {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
        {"jobDeploymentStatus": "Retrying", "failed": 1},
        {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "failed": 1},
        {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "failed": 1},
    ]
    seen: list[str] = []
    job = prepare_job(kind, "train-delineator", name="d")
    assert submit_job(job, poll_s=0.01, progress=seen.append)["status"] == "SUCCEEDED"
    assert "d: Retrying (after 1 failed)" in seen


@pytest.mark.parametrize(
    "state",
    [
        {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"},
        {"jobDeploymentStatus": "ValidationFailed", "message": "bad"},
        {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"},
    ],
)
def test_every_other_end_is_a_failure(
    cluster: Cluster, kind: list[dict[str, Any]], state: dict[str, Any]
) -> None:
    cluster.states = [state]
    with pytest.raises(TrainingError):
        submit_job(prepare_job(kind, "train-delineator"), poll_s=0.01)


def test_time_is_up_and_the_job_goes_on(cluster: Cluster, kind: list[dict[str, Any]]) -> None:
    cluster.states = [{"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}]
    with pytest.raises(ServiceError, match=r"is Running after 0\.1 s; it goes on"):
        submit_job(prepare_job(kind, "train-delineator"), poll_s=0.01, timeout_s=0.1)
    assert len(cluster.jobs) == 1


def test_a_deleted_job_is_no_success(cluster: Cluster, kind: list[dict[str, Any]]) -> None:
    cluster.states = [{"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}]
    with pytest.raises(TrainingError, match="was deleted"):
        submit_job(
            prepare_job(kind, "train-delineator"),
            poll_s=0.01,
            progress=lambda text: cluster.jobs.clear(),
        )


def test_an_interrupt_leaves_the_job_and_says_so(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.states = [{"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}]

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ecg_agent_ray.kube.submit.time.sleep", interrupt)
    command = ["kube", "submit", "train-delineator", "--overlay", "kind", "--name", "mine"]
    assert run(command) == 130
    assert "mine goes on" in capsys.readouterr().err
    assert list(cluster.jobs) == ["mine"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kind.yaml"
    assert run(["kube", "render", "kind", "--output", str(file)]) == 0
    assert run(["kube", "validate", str(file)]) == 0
    assert "0 errors" in capsys.readouterr().out
    file.write_text(file.read_text(encoding="utf-8").replace("suspend:", "suspended:"), "utf-8")
    assert run(["kube", "validate", str(file), "--json"]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["errors"] == 11
    assert lines[0]["target"] == str(file)
    assert run(["kube", "submit", "train-delineator", "--overlay", "kind", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["kind"] == "RayJob"
    assert run(["kube", "submit", "train-delineator"]) == 3
    assert run(["kube", "validate", str(tmp_path / "none.yaml")]) == 2
