"""What many tests share: the shipped records, a clean state directory, one local Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

# read by libraries at import, so set before any of them is
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads or writes the developer's own stores or cluster, or another test's."""
    monkeypatch.setenv("ECG_AGENT_HOME", str(tmp_path / "state"))
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "ECG_AGENT_API_TOKENS"):
        monkeypatch.delenv(name, raising=False)
    yield
    if (mlflow := sys.modules.get("mlflow")) is not None:
        # MLflow keeps its tracking URI for the whole process
        mlflow.set_tracking_uri(None)


@pytest.fixture
def reader_log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the readers warn of, whatever earlier tests' libraries did to the loggers."""
    from ecg_agent_ray.ecg.formats import muse, scp

    told: list[str] = []
    logger = logging.Logger("readers")
    logger.addFilter(lambda record: told.append(record.getMessage()) or True)
    for module in (muse, scp):
        monkeypatch.setattr(module, "_logger", logger)
    return told


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The larger development data, present beside some checkouts only."""
    if not (SHARED / "data").is_dir():
        pytest.skip("development data is not beside this checkout")
    return SHARED / "data"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its tables, so they are made once and copied."""
    import mlflow

    from ecg_agent_ray.plugins.tracking import configure

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    configure(f"sqlite:///{path}")
    mlflow.MlflowClient().search_registered_models()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    mlflow.set_tracking_uri(None)
    return path


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> Iterator[str]:
    """URI of a fresh SQLite store, which MLflow uses during the test."""
    import mlflow

    from ecg_agent_ray.plugins.tracking import configure

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    configure(uri, artifact_root=tmp_path / "artifacts", experiment="tests")
    yield uri
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    from ecg_agent_ray.plugins.local_cluster import local_ray

    with local_ray(num_cpus=6) as ray:
        yield ray


@pytest.fixture(scope="module")
def serve_port(ray_cluster: Any) -> Iterator[int]:
    """Ray Serve with nothing deployed; its HTTP port on 127.0.0.1."""
    from ray import serve

    serve.shutdown()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def closed_port() -> int:
    """A port on which nobody listens."""
    return _closed_port()


@pytest.fixture(scope="session")
def mlflow_server() -> Callable[..., AbstractContextManager[str]]:
    """``mlflow_server(store, port)``: a real tracking server while the context is open.

    Gives its URL; without ``port`` a free one is taken.
    """
    return _server


@contextlib.contextmanager
def _server(store: str, port: int | None = None) -> Iterator[str]:
    from ecg_agent_ray.plugins.stores import server_answers

    port = port or _closed_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 300
        while not server_answers(url):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # with its workers
        server.wait(30)
