"""The migrations Job's script, on SQLite: empty database, again, and the waiting init container."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ecg_agent_ray.shipped import shipped

pytest.importorskip("flask_wtf", reason="MLflow's user accounts need mlflow[auth]")


@pytest.mark.slow
def test_upgrade_then_wait(tmp_path: Path) -> None:
    auth = tmp_path / "auth.ini"
    auth.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/users.db\n"
        "admin_username = admin\nadmin_password = longer-than-twelve\n",
        encoding="utf-8",
    )
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/tracking.db",
        "MLFLOW_AUTH_CONFIG_PATH": str(auth),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "test",
    }
    script = shipped("kube/base/mlflow/schema.py")
    for verb in ("upgrade", "upgrade", "wait"):
        subprocess.run([sys.executable, script, verb], env=environment, check=True, timeout=120)
    with sqlite3.connect(tmp_path / "tracking.db") as database:
        assert database.execute("select count(*) from registered_models").fetchone() == (0,)
