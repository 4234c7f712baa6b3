"""MLflow keeps its store in the process; each test of this folder gives it back."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

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
