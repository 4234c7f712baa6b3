"""Send a training job to a running Ray cluster through its job server."""

from __future__ import annotations

import json
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ecg_agent_ray.errors import ConfigError, ServiceError, TrainingError

__all__ = ["submit_job"]

_VERBS = {
    "pretrain_classifier": "pretrain",
    "finetune_llm": "llm",
    "finetune_classifier": "classifier",
    "train_delineator": "delineator",
}
_FINAL = {"SUCCEEDED", "FAILED", "STOPPED"}


def submit_job(job: str, config: BaseModel, *, address: str, wait: bool) -> dict[str, Any]:
    """Submit ``ecg-agent train …`` with ``config`` and, with ``wait``, follow it to its end.

    The cluster's image must have this package. Paths in the configuration are the cluster's.
    Returns ``{"job_id", "status"}`` and, once finished, the job's own result line.

    Raises:
        ConfigError: the address is no job server's.
        ServiceError: the job server does not answer.
        TrainingError: the job failed or was stopped.
    """
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address {address!r} is no job server",
            hint="ray:// runs the driver here, so a lost connection would end the job; "
            "give the job server, usually http://HEAD:8265",
        )
    from ray.job_submission import JobSubmissionClient

    with tempfile.TemporaryDirectory(prefix="ecg-agent-job-") as folder:
        values = config.model_dump(mode="json")
        Path(folder, "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        command = ["ecg-agent", "train", _VERBS[job], "--config", "config.yaml"]
        try:
            client = JobSubmissionClient(address)
            job_id = client.submit_job(
                entrypoint=shlex.join(command), runtime_env={"working_dir": folder}
            )
        except (ConnectionError, RuntimeError) as error:
            raise ServiceError(f"no Ray job server answers at {address}: {error}") from error
    if not wait:
        return {"job_id": job_id, "status": "SUBMITTED"}
    while (status := client.get_job_status(job_id).value) not in _FINAL:
        time.sleep(2)
    logs = client.get_job_logs(job_id)
    if status != "SUCCEEDED":
        raise TrainingError(f"job {job_id} {status.lower()}: {_last_line(logs)}")
    return {"job_id": job_id, "status": status, **_result(logs)}


def _last_line(logs: str) -> str:
    lines = [line for line in logs.splitlines() if line.strip()]
    return lines[-1] if lines else "it logged nothing"


def _result(logs: str) -> dict[str, Any]:
    for line in reversed(logs.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except ValueError:
                continue
    return {}
