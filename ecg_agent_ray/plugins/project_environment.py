"""A project's environment (``python_env``, ``conda_env``) as a Ray runtime environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ecg_agent_ray.errors import ConfigError

__all__ = ["environment", "requirements"]


def environment(project: Any, env_manager: str | None) -> dict[str, Any]:
    """Keys of the runtime environment for ``project`` under MLflow's ``--env-manager``.

    Raises :class:`ConfigError` for Docker projects (the cluster's image is chosen when the cluster
    is made) and for an environment of another kind than the manager asked for.
    """
    from mlflow.projects import env_type

    if project.docker_env:
        raise ConfigError(
            "a docker_env project does not run on Ray",
            hint="give the image to the cluster and drop docker_env from MLproject",
        )
    if env_manager == "local" or project.env_config_path is None:
        return {}
    path = Path(project.env_config_path)
    if project.env_type == env_type.CONDA:
        if env_manager not in (None, "conda"):
            raise ConfigError(f"a conda_env project has no --env-manager {env_manager}")
        return {"conda": str(path)}
    if env_manager == "conda":
        raise ConfigError("a python_env project has no --env-manager conda")
    packages = requirements(path)
    return {"uv" if env_manager == "uv" else "pip": packages} if packages else {}


def requirements(python_env: Path) -> list[str]:
    """Dependencies of a ``python_env.yaml``, with the files behind ``-r`` put in their place.

    ``-c`` files and other pip options stay behind: Ray takes requirements, one each.
    """
    from mlflow.utils.environment import _PythonEnv

    found: list[str] = []
    for line in _PythonEnv.from_yaml(python_env).dependencies or []:
        found += _expanded(str(line), python_env.parent)
    return list(dict.fromkeys(found))


def _expanded(line: str, folder: Path) -> list[str]:
    line = line.split(" #")[0].strip()
    if not line or line.startswith("#"):
        return []
    if line.startswith(("-r ", "--requirement ")):
        path = folder / line.split(maxsplit=1)[1]
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        return [name for inner in lines for name in _expanded(inner, path.parent)]
    return [] if line.startswith("-") else [line]
