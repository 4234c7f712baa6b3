"""What MLflow finds of this package once it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LOOK = """
import mlflow
from mlflow.deployments import get_deploy_client
from mlflow.projects.backend.loader import load_backend
from mlflow.tracking.context.registry import _run_context_provider_registry as providers
import ecg_agent_ray

print(ecg_agent_ray.__file__)
print(type(load_backend("ray")).__name__)
print(type(get_deploy_client("ray-serve")).__name__)
print([type(provider).__name__ for provider in providers])
"""


def test_mlflow_finds_the_plugins() -> None:
    from mlflow.projects.backend.loader import load_backend
    from mlflow.tracking.context.registry import _run_context_provider_registry as providers

    from ecg_agent_ray.plugins.project_backend import RayProjectBackend
    from ecg_agent_ray.plugins.run_context import RayRunContext

    assert isinstance(load_backend("ray"), RayProjectBackend)
    (target,) = entry_points(group="mlflow.deployments", name="ray-serve")
    assert callable(target.load().run_local)
    assert any(isinstance(provider, RayRunContext) for provider in providers)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_brings_the_plugins_to_a_clean_environment(tmp_path: Path) -> None:
    """Only the package itself is installed there; its dependencies are lent by this environment."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = [name for name in zipfile.ZipFile(wheel).namelist() if "_shipped" in name]
    for project in ("classifier", "evaluation", "llm", "pipeline", "tool_outputs"):
        assert f"ecg_agent_ray/_shipped/mlflow_projects/{project}/MLproject" in shipped
    assert "ecg_agent_ray/_shipped/mlflow_projects/python_env.yaml" in shipped

    clean = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True)
    python = clean / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    site = clean / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (site / "zz_lent.pth").write_text("\n".join(lent))  # not their .pth files: no checkout
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def out(*command: str) -> str:
        return subprocess.run(
            [str(python), *command], check=True, capture_output=True, text=True, cwd=tmp_path,
            env=env,
        ).stdout  # fmt: skip

    said = out("-c", LOOK).splitlines()
    assert said[0].startswith(str(site))
    assert said[1:3] == ["RayProjectBackend", "RayServeClient"]
    assert "RayRunContext" in said[3]
    assert "max_replicas" in out("-m", "mlflow", "deployments", "help", "-t", "ray-serve")
    assert "promote" in out(str(clean / "bin" / "ecg-agent"), "models", "--help")
