"""MLflow keeps its store in the process; each test of this folder gives it back."""

from __future__ import annotations

import contextlib
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

import mlflow
import pytest

from ecg_agent_ray.plugins.spool import server_answers
from ecg_agent_ray.plugins.tracking import configure


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its tables, so they are made once and copied."""
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
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    configure(uri, artifact_root=tmp_path / "artifacts", experiment="tests")
    yield uri
    mlflow.set_tracking_uri(None)


@pytest.fixture
def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def mlflow_server() -> Callable[[int, str], AbstractContextManager[None]]:
    """``mlflow_server(port, store)``: a real tracking server while the context is open."""
    return _server


@contextlib.contextmanager
def _server(port: int, store: str) -> Iterator[None]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 90
        while not server_answers(f"http://127.0.0.1:{port}"):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # with its workers
        server.wait(30)
