"""A project run that is a Ray job: waiting, cancelling, states, tags."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import RunStatus
from mlflow.projects.submitted_run import SubmittedRun

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.plugins.ray_jobs import connect, follow, stop, submit

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

    from ecg_agent_ray.plugins.project_backend import RayBackendConfig

__all__ = ["RayJobRun"]

# below "mlflow", whose command line shows what is logged there
logger = logging.getLogger("mlflow.projects.backend.ray")

_TAG_LIMIT = 5000
_STATUS = {
    "PENDING": "SCHEDULED",
    "RUNNING": "RUNNING",
    "SUCCEEDED": "FINISHED",
    "FAILED": "FAILED",
    "STOPPED": "KILLED",
}


class RayJobRun(SubmittedRun):
    """What ``mlflow.projects.run(backend="ray")`` returns; ``job_id`` is the submission id."""

    def __init__(
        self,
        run_id: str,
        job_id: str,
        client: JobSubmissionClient,
        resources: contextlib.ExitStack,
    ) -> None:
        self._run_id = run_id
        self.job_id = job_id
        self._client = client
        self._resources = resources
        self._last: JobDetails | None = None

    @classmethod
    def submit(cls, run_id: str, config: RayBackendConfig, **job: Any) -> RayJobRun:
        """Submit ``job`` for the run, to a cluster started for it where there is no other."""
        with contextlib.ExitStack() as resources:
            address = config.address or os.environ.get("RAY_ADDRESS")
            if not address:
                address = _own_cluster(resources, config.num_cpus)
            client = connect(address, headers=_headers(config), verify=config.verify)
            wanted = config.entrypoint.model_dump(exclude_none=True)
            job_id = submit(
                client,
                submission_id=f"mlflow-{run_id}",
                **{f"entrypoint_{key}": value for key, value in wanted.items()},
                **job,
            )
            run = cls(run_id, job_id, client, resources.pop_all())
        run._tag({"ray.submission_id": job_id, "ray.job_server": client.get_address()})
        logger.info("=== Ray job '%s' at %s ===", job_id, client.get_address())
        logger.info("=== Running command '%s' ===", job["entrypoint"])
        atexit.register(run._resources.close)
        return run

    @property
    def run_id(self) -> str:
        return self._run_id

    def get_status(self) -> str:
        """MLflow's name of the job's state, asked for now."""
        if self._last is None:
            details = self._client.get_job_info(self.job_id)
            if not details.status.is_terminal():
                return _STATUS[details.status.value]
            self._ended(details)
        assert self._last is not None
        return _STATUS[self._last.status.value]

    def wait(self) -> bool:
        """Show the job's output until it ends, end the run accordingly; True if it succeeded.

        Raises :class:`ServiceError` when the job server is lost for minutes.
        """
        if self._last is None:
            self._ended(follow(self._client, self.job_id, _show))
        return self.get_status() == RunStatus.to_string(RunStatus.FINISHED)

    def cancel(self) -> None:
        """Stop the job, wait until it has stopped, and end the run ``KILLED``."""
        if self._last is None:
            self._ended(stop(self._client, self.job_id))

    def _ended(self, details: JobDetails) -> None:
        from mlflow import MlflowClient

        self._last = details
        status = _STATUS[details.status.value]
        tags = {
            "ray.job_id": details.job_id,
            "ray.node_id": details.driver_node_id,
            "ray.exit_code": details.driver_exit_code,
        }
        if status == "FAILED":
            tags["error"] = details.message
        try:
            self._tag({key: str(value) for key, value in tags.items() if value is not None})
            client = MlflowClient()
            before = RunStatus.from_string(client.get_run(self._run_id).info.status)
            # a job that fails after its code has closed the run has failed all the same
            if not RunStatus.is_terminated(before) or status == "FAILED":
                client.set_terminated(self._run_id, status)
        finally:
            self._resources.close()

    def _tag(self, tags: dict[str, str]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import RunTag

        entities = [RunTag(key, value[:_TAG_LIMIT]) for key, value in tags.items()]
        MlflowClient().log_batch(self._run_id, tags=entities)


def _own_cluster(resources: contextlib.ExitStack, num_cpus: int) -> str:
    from ecg_agent_ray.plugins.local_cluster import job_server_url, local_ray

    # the project's commands are looked for where this interpreter's are
    tools = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    if tools not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([tools, path])
    resources.enter_context(local_ray(num_cpus=num_cpus, job_server=True))
    url = job_server_url()
    assert url is not None
    return url


def _headers(config: RayBackendConfig) -> dict[str, str]:
    headers = dict(config.headers)
    token = config.token.get_secret_value() if config.token else None
    if config.token_file is not None:
        try:
            token = config.token_file.expanduser().read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"token_file: {error.strerror}: {config.token_file}") from error
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
