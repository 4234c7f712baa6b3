"""Tags that say where on a Ray cluster a run was made; MLflow's ``run_context_provider`` "ray".

A module of its own: MLflow loads context providers while it is itself being imported, and silently
skips one whose import reaches back into mlflow.projects or mlflow.deployments.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from mlflow.tracking.context.abstract_context import RunContextProvider

__all__ = ["RayRunContext"]

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class RayRunContext(RunContextProvider):
    """Ray job, submission, node and cluster; Kubernetes pod and namespace."""

    def in_context(self) -> bool:
        return bool(self.tags())

    def tags(self) -> dict[str, str]:
        return {**_ray_tags(), **_kubernetes_tags()}


def _ray_tags() -> dict[str, str]:
    # looked up, not imported: a process that does not use Ray must not pay for it
    ray = sys.modules.get("ray")
    is_initialized = getattr(ray, "is_initialized", None)
    if ray is None or is_initialized is None or not is_initialized():
        return {}
    context = ray.get_runtime_context()
    tags = {
        "ray.version": str(ray.__version__),
        "ray.job_id": str(context.get_job_id()),
        "ray.node_id": str(context.get_node_id()),
        "ray.address": str(context.gcs_address),
    }
    # set by Ray's job agent for the entrypoint of a submitted job
    with contextlib.suppress(KeyError, ValueError, TypeError):
        job_config = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])
        tags["ray.submission_id"] = str(job_config["metadata"]["job_submission_id"])
    if cluster := os.environ.get("RAY_CLUSTER_NAME"):
        tags["ray.cluster"] = cluster
    return tags


def _kubernetes_tags() -> dict[str, str]:
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return {}
    tags: dict[str, str] = {}
    if pod := os.environ.get("POD_NAME") or os.environ.get("HOSTNAME"):
        tags["kubernetes.pod"] = pod
    namespace = os.environ.get("POD_NAMESPACE", "")
    if not namespace:
        with contextlib.suppress(OSError):
            namespace = _NAMESPACE_FILE.read_text(encoding="ascii").strip()
    if namespace:
        tags["kubernetes.namespace"] = namespace
    if node := os.environ.get("NODE_NAME"):
        tags["kubernetes.node"] = node
    return tags
