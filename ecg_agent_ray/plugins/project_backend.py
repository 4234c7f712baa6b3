"""MLflow's ``project_backend`` "ray": a project's entry point as a Ray job.

    mlflow run PROJECT -b ray --backend-config cluster.json -P lr=1e-4

The project's folder is packaged and sent with the job, the job's output is shown as it comes, and
Ctrl-C stops the job. Without an address (in the configuration or ``RAY_ADDRESS``) a Ray cluster of
this machine is started for the time of the run. Run and job carry each other's ids: the run has the
tags ``ray.submission_id``, ``ray.job_id``, ``ray.node_id`` and ``ray.job_server``, the job's
metadata ``mlflow.run_id`` and ``mlflow.experiment_id``.

``--env-manager`` says what the project's ``python_env`` becomes: ``local`` the cluster's own
environment, ``virtualenv`` (the default, as everywhere in MLflow) a ``pip`` runtime environment,
``uv`` a ``uv`` one, ``conda`` a ``conda`` one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.exceptions import ExecutionException
from mlflow.projects import utils
from mlflow.projects.backend.abstract_backend import AbstractBackend
from pydantic import Field, SecretStr

from ecg_agent_ray.errors import ConfigError, EcgAgentError
from ecg_agent_ray.plugins.options import StrictConfig, validated
from ecg_agent_ray.plugins.project_environment import environment
from ecg_agent_ray.plugins.project_run import RayJobRun

__all__ = ["EntrypointResources", "RayBackendConfig", "RayProjectBackend"]

# below "mlflow", whose command line shows what is logged there
logger = logging.getLogger("mlflow.projects.backend.ray")

_EXCLUDES = [".git/", ".venv/", "__pycache__/", "mlruns/", "mlartifacts/", "mlflow.db*"]
# `mlflow artifacts download` prints an empty line before the path
_DOWNLOAD = (
    "import mlflow, os, sys; os.makedirs(sys.argv[2], exist_ok=True); "
    "print(mlflow.artifacts.download_artifacts(artifact_uri=sys.argv[1], dst_path=sys.argv[2]))"
)
# put into the configuration by mlflow.projects itself
_OF_MLFLOW = {
    utils.PROJECT_ENV_MANAGER,
    utils.PROJECT_SYNCHRONOUS,
    utils.PROJECT_DOCKER_ARGS,
    utils.PROJECT_STORAGE_DIR,
    utils.PROJECT_BUILD_IMAGE,
    utils.PROJECT_DOCKER_AUTH,
}


class EntrypointResources(StrictConfig):
    """Reserved for the entry point's own process, apart from what its tasks ask for."""

    num_cpus: float | None = Field(default=None, ge=0)
    num_gpus: float | None = Field(default=None, ge=0)
    memory: int | None = Field(default=None, ge=0, description="Bytes.")
    resources: dict[str, float] | None = None
    label_selector: dict[str, str] | None = None


class RayBackendConfig(StrictConfig):
    """``--backend-config``: a JSON file or JSON text."""

    address: str | None = Field(
        default=None,
        description="Job server, http(s)://HEAD:8265; also HEAD:6379 or auto. Left out: "
        "RAY_ADDRESS, else a cluster of this machine for the time of the run.",
    )
    token: SecretStr | None = Field(
        default=None, description="Of the cluster. Better: RAY_AUTH_TOKEN, or token_file."
    )
    token_file: Path | None = Field(default=None, description="File that holds the token.")
    headers: dict[str, str] = Field(
        default_factory=dict, description="More HTTP headers for a proxy before the job server."
    )
    verify: bool | str = Field(default=True, description="TLS: false, or a CA bundle's path.")
    tracking_uri: str | None = Field(
        default=None, description="MLflow as the cluster reaches it; left out: as seen from here."
    )
    pass_env: list[str] = Field(
        default_factory=list,
        description="Environment variables handed to the job, e.g. MLFLOW_TRACKING_TOKEN. "
        "Whoever may read the cluster's jobs can read them.",
    )
    runtime_env: dict[str, Any] = Field(
        default_factory=dict, description="Ray's; what is given here wins over the project's."
    )
    entrypoint: EntrypointResources = Field(default_factory=EntrypointResources)
    num_cpus: int = Field(
        default=max(8, os.cpu_count() or 1),
        ge=1,
        description="CPUs to schedule on, of a cluster started for the run.",
    )
    wait: bool = Field(
        default=True, description="The command line follows the job; false: submits and returns."
    )


class RayProjectBackend(AbstractBackend):
    """See the module's text; ``mlflow.projects.run(backend="ray")`` is the same from Python."""

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: Mapping[str, Any] | None,
        version: str | None,
        backend_config: Mapping[str, Any],
        tracking_uri: str,
        experiment_id: str,
    ) -> RayJobRun:
        """Submit the entry point. Raises ``mlflow.exceptions.ExecutionException``."""
        try:
            config = validated(
                RayBackendConfig,
                {key: value for key, value in backend_config.items() if key not in _OF_MLFLOW},
                "--backend-config of backend ray",
            )
            config.tracking_uri = config.tracking_uri or tracking_uri
            _check_reachable(config)
            run = _submit(
                config, project_uri, entry_point, params, version, backend_config, experiment_id
            )
        except EcgAgentError as error:
            raise ExecutionException(str(error)) from error
        if not backend_config.get(utils.PROJECT_SYNCHRONOUS) and config.wait:
            _follow_on_the_command_line(run)
        return run


def _submit(
    config: RayBackendConfig,
    project_uri: str,
    entry_point: str,
    params: Mapping[str, Any] | None,
    version: str | None,
    backend_config: Mapping[str, Any],
    experiment_id: str,
) -> RayJobRun:
    from mlflow import MlflowClient

    work_dir = Path(utils.fetch_and_validate_project(project_uri, version, entry_point, params))
    project = utils.load_project(work_dir)
    command = _command(project.get_entry_point(entry_point), params, work_dir)
    needed = environment(project, backend_config.get(utils.PROJECT_ENV_MANAGER))
    active = utils.get_or_create_run(
        None, project_uri, experiment_id, work_dir, version, entry_point, params
    )
    run_id = active.info.run_id
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(MlflowClient().set_terminated, run_id, "FAILED")
        run = RayJobRun.submit(
            run_id,
            config,
            entrypoint=command,
            runtime_env=_runtime_env(config, needed, work_dir, run_id, experiment_id),
            metadata={
                "mlflow.run_id": run_id,
                "mlflow.experiment_id": str(experiment_id),
                "mlflow.project": project.name or work_dir.name,
                "mlflow.entry_point": entry_point,
            },
        )
        cleanup.pop_all()
    return run


def _command(entry_point: Any, params: Mapping[str, Any] | None, work_dir: Path) -> str:
    """The entry point's shell command as the cluster runs it, in a copy of the project's folder.

    A parameter of type ``path`` is downloaded there if it is a URI, stays relative if it lies in
    the project, and is the cluster's own path otherwise.
    """
    from mlflow.utils.data_utils import is_uri

    values = dict(params or {})
    downloads: dict[str, str] = {}
    for name, parameter in entry_point.parameters.items():
        value = values.get(name, parameter.default)
        if parameter.type != "path" or value is None:
            continue
        if is_uri(str(value)):
            variable = f"mlflow_input_{len(downloads)}"
            downloads[variable] = (
                f"{variable}=$(python -c {shlex.quote(_DOWNLOAD)} {shlex.quote(str(value))} "
                f'".mlflow-inputs/$MLFLOW_RUN_ID/{len(downloads)}")'  # jobs share their folder
            )
            values[name] = f"@{variable}@"
        else:
            project = work_dir.resolve()
            inside = project / value
            path = inside if inside.exists() else Path(value).resolve()
            values[name] = path.relative_to(project) if path.is_relative_to(project) else path
    command: str = entry_point.compute_command(values, None)
    for variable in downloads:
        command = command.replace(f"@{variable}@", f'"${variable}"')
    return " && ".join([*downloads.values(), command])


def _runtime_env(
    config: RayBackendConfig,
    needed: Mapping[str, Any],
    work_dir: Path,
    run_id: str,
    experiment_id: str,
) -> dict[str, Any]:
    given = dict(config.runtime_env)
    unset = [name for name in config.pass_env if name not in os.environ]
    if unset:
        raise ConfigError(f"pass_env names variables that are not set: {', '.join(unset)}")
    env_vars = {
        **{name: os.environ[name] for name in config.pass_env},
        **given.pop("env_vars", {}),
        "MLFLOW_RUN_ID": run_id,
        "MLFLOW_TRACKING_URI": str(config.tracking_uri),
        "MLFLOW_EXPERIMENT_ID": str(experiment_id),
    }
    return {
        "working_dir": str(work_dir),
        "excludes": [*_EXCLUDES, *given.pop("excludes", [])],
        **needed,
        **given,
        "env_vars": env_vars,
    }


def _check_reachable(config: RayBackendConfig) -> None:
    """Refuse an MLflow that a cluster elsewhere cannot reach, and make a local path absolute."""
    uri = str(config.tracking_uri)
    url = urlsplit(uri)
    remote = _is_remote(config.address or os.environ.get("RAY_ADDRESS"))
    if url.scheme in ("http", "https"):
        if remote and _is_loopback(url.hostname or ""):
            raise ConfigError(
                f"the cluster cannot reach MLflow at {uri}, an address of this machine",
                hint="give tracking_uri in the backend configuration",
            )
    elif url.scheme in ("", "file", "sqlite"):
        if remote:
            raise ConfigError(
                f"the cluster cannot reach MLflow's store {uri}, a file of this machine",
                hint="use a tracking server (MLFLOW_TRACKING_URI=http://…)",
            )
        if uri.startswith("sqlite:///"):
            path = Path(uri.removeprefix("sqlite:///"))
            config.tracking_uri = f"sqlite:///{path.absolute()}"


def _is_remote(address: str | None) -> bool:
    if not address or address in ("auto", "local"):
        return False
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    return not _is_loopback(host)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _follow_on_the_command_line(run: RayJobRun) -> None:
    """``mlflow run`` does not wait for plugins; so it is done when the command is about to end."""
    import click

    context = click.get_current_context(silent=True)
    if context is None or context.info_name != "run":
        return

    def follow() -> None:
        try:
            succeeded = run.wait()
        except KeyboardInterrupt:
            logger.error("=== Run (ID '%s') interrupted, stopping its job ===", run.run_id)
            run.cancel()
            raise click.exceptions.Exit(130) from None
        except EcgAgentError as error:
            raise click.ClickException(str(error)) from error
        if not succeeded:
            logger.error("=== Run (ID '%s') failed ===", run.run_id)
            raise click.exceptions.Exit(1)
        logger.info("=== Run (ID '%s') succeeded ===", run.run_id)

    context.call_on_close(follow)
