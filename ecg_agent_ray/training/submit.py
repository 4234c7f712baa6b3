"""Send a training job to a running Ray cluster through its job server."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ecg_agent_ray.errors import ConfigError, TrainingError
from ecg_agent_ray.plugins import ray_jobs

__all__ = ["submit_job"]

_VERBS = {
    "pretrain_classifier": "pretrain",
    "finetune_llm": "llm",
    "finetune_classifier": "classifier",
    "train_delineator": "delineator",
}


def submit_job(job: str, config: BaseModel, *, address: str, wait: bool) -> dict[str, Any]:
    """Submit ``ecg-agent train …`` with ``config`` and, with ``wait``, follow it to its end.

    The cluster's image must have this package. Paths in the configuration are the cluster's.
    Returns ``{"job_id", "status"}`` and, once finished, the job's own result line.

    Raises:
        ConfigError: the address is no job server's.
        ServiceError: the job server does not answer, refuses the job, or is lost for minutes.
        TrainingError: the job failed or was stopped.
    """
    # Ray Client's addresses are refused, with the reason, where the connection is made
    if not address.startswith(("http://", "https://", "ray://")):
        raise ConfigError(
            f"--address {address!r} is no job server",
            hint="give the job server, usually http://HEAD:8265",
        )
    client = ray_jobs.connect(address)
    with tempfile.TemporaryDirectory(prefix="ecg-agent-job-") as folder:
        values = config.model_dump(mode="json")
        Path(folder, "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        command = ["ecg-agent", "train", _VERBS[job], "--config", "config.yaml"]
        job_id = ray_jobs.submit(
            client, entrypoint=shlex.join(command), runtime_env={"working_dir": folder}
        )
    if not wait:
        return {"job_id": job_id, "status": "SUBMITTED"}
    output: list[str] = []
    status = ray_jobs.follow(client, job_id, output.append).status.value
    logs = "".join(output)
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
