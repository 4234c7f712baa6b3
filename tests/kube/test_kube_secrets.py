"""``create-secrets.sh`` with kubectl itself, against a local server that keeps Secrets."""

from __future__ import annotations

import base64
import configparser
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from ecg_agent_ray.kube.render import _command
from ecg_agent_ray.shipped import shipped

try:
    KUBECTL = next(part for part in _command() if part.endswith("kubectl"))
except Exception:
    pytest.skip("kubectl is not installed", allow_module_level=True)
if shutil.which("openssl") is None:
    pytest.skip("openssl is not installed", allow_module_level=True)

PATH = "/api/v1/namespaces/hearts/secrets"
ALL = {
    "ray-auth-token",
    "ecg-agent-api-tokens",
    "mlflow-server",
    "mlflow-client",
    "postgres",
    "object-store",
    "gcs-redis",
}
RESOURCE = {"name": "secrets", "namespaced": True, "kind": "Secret", "verbs": ["get", "create"]}
DISCOVERY: dict[str, dict[str, Any]] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [RESOURCE]},
}


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.secrets: dict[str, dict[str, Any]] = {}
        self.broken = False
        self.folder = folder

    def value(self, name: str, key: str) -> str:
        return base64.b64decode(self.secrets[name]["data"][key]).decode()

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "tokens").write_text("app:sha256:abc\n", encoding="utf-8")
        values = {
            "PATH": f"{Path(KUBECTL).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "KUBECONFIG": str(self.folder / "kubeconfig"),
        }
        script = shipped("kube/create-secrets.sh")
        return subprocess.run(
            ["bash", script, "hearts", self.folder / "tokens"],
            env=values | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    state = Cluster(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: dict[str, Any]) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path in DISCOVERY:
                self._answer(200, DISCOVERY[path])
            elif state.broken:
                self._answer(403, {"kind": "Status", "reason": "Forbidden", "code": 403})
            elif path == PATH:
                items = list(state.secrets.values())
                self._answer(200, {"kind": "SecretList", "apiVersion": "v1", "items": items})
            elif (name := path.removeprefix(PATH + "/")) in state.secrets:
                self._answer(200, state.secrets[name])
            else:
                self._answer(404, {"kind": "Status", "reason": "NotFound", "code": 404})

        def do_POST(self) -> None:
            assert self.path.split("?")[0] == PATH
            secret = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.secrets[secret["metadata"]["name"]] = secret
            self._answer(201, secret)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        ],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "t", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "t",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config), encoding="utf-8")
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def assert_both_sides_agree(cluster: Cluster) -> None:
    auth = configparser.ConfigParser()
    auth.read_string(cluster.value("mlflow-server", "auth.ini"))
    uri = cluster.value("mlflow-server", "backend-uri")
    password = cluster.value("mlflow-client", "MLFLOW_TRACKING_PASSWORD")
    assert len(password) >= 12
    assert auth["mlflow"]["admin_password"] == password
    assert auth["mlflow"]["database_uri"] == uri
    if "@postgres:" in uri:
        postgres = cluster.value("postgres", "password")
        assert uri == f"postgresql://mlflow:{postgres}@postgres:5432/mlflow"
    (identity,) = json.loads(cluster.value("object-store", "s3.json"))["identities"]
    assert identity["credentials"] == [
        {
            "accessKey": cluster.value("mlflow-server", "s3-access-key"),
            "secretKey": cluster.value("mlflow-server", "s3-secret-key"),
        }
    ]


def test_all_are_made_and_a_second_run_keeps_them(cluster: Cluster) -> None:
    done = cluster.run()
    assert done.returncode == 0, done.stderr
    assert cluster.secrets.keys() == ALL
    assert_both_sides_agree(cluster)
    before = json.dumps(cluster.secrets)
    again = cluster.run(S3_ACCESS_KEY="another")
    assert again.stdout.count("kept") == len(ALL)
    assert json.dumps(cluster.secrets) == before


@pytest.mark.parametrize("lost", sorted(ALL - {"ray-auth-token", "gcs-redis"}))
def test_one_that_was_lost_is_made_to_fit_the_others(cluster: Cluster, lost: str) -> None:
    cluster.run()
    before = {name: secret for name, secret in cluster.secrets.items() if name != lost}
    del cluster.secrets[lost]
    done = cluster.run()
    assert done.returncode == 0, done.stderr
    assert {n: s for n, s in cluster.secrets.items() if n != lost} == before
    assert_both_sides_agree(cluster)


def test_external_storage(cluster: Cluster) -> None:
    uri = "postgresql://u:p%40ss@db.example.com:5432/mlflow"
    done = cluster.run(
        BACKEND_URI=uri, S3_ACCESS_KEY="A", S3_SECRET_KEY="b/c+d", REDIS_PASSWORD="r"
    )
    assert done.returncode == 0, done.stderr
    assert cluster.value("mlflow-server", "backend-uri") == uri
    assert cluster.value("mlflow-server", "s3-secret-key") == "b/c+d"
    assert cluster.value("gcs-redis", "password") == "r"
    assert_both_sides_agree(cluster)


def test_a_server_secret_of_another_form_is_not_guessed_at(cluster: Cluster) -> None:
    cluster.run()
    auth = base64.b64encode(b"[mlflow]\ndatabase_uri = x\n").decode()
    cluster.secrets["mlflow-server"]["data"]["auth.ini"] = auth
    del cluster.secrets["mlflow-client"]
    done = cluster.run()
    assert done.returncode == 1
    assert "mlflow-client has to be made by hand" in done.stderr
    assert "mlflow-client" not in cluster.secrets


def test_a_cluster_that_refuses_is_not_taken_for_an_empty_one(cluster: Cluster) -> None:
    cluster.broken = True
    assert cluster.run().returncode != 0
    assert not cluster.secrets
