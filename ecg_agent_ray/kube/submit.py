"""Run one of an overlay's suspended RayJobs as a job of its own, and follow it to its end."""

from __future__ import annotations

import copy
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

from ecg_agent_ray.errors import (
    ConfigError,
    MissingDependencyError,
    RefusedError,
    ServiceError,
    TrainingError,
)
from ecg_agent_ray.kube.policies import PLACEHOLDER_DIGEST
from ecg_agent_ray.kube.validate import validate

__all__ = ["prepare_job", "submit_job"]

_GROUP = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}


def prepare_job(
    objects: list[dict[str, Any]], job: str, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """The RayJob ``job`` of these manifests, made to run: unsuspended, under a name of its own.

    Raises:
        ConfigError: no such job, or it (with the overrides) is not valid.
        RefusedError: its images are placeholders.
    """
    jobs = {one["metadata"]["name"]: one for one in objects if one["kind"] == "RayJob"}
    if job not in jobs:
        raise ConfigError(f"no job named {job!r}", hint=f"there are: {', '.join(sorted(jobs))}")
    chosen = copy.deepcopy(jobs[job])
    chosen["spec"]["suspend"] = False
    if overrides:
        chosen["spec"]["entrypoint"] += " " + shlex.join(overrides)
    others = [one for one in objects if one["kind"] == "ConfigMap"]
    problems = validate([chosen, *others])
    errors = tuple(
        str(one) for one in problems if one.severity == "error" and one.object == f"RayJob/{job}"
    )
    if errors:
        raise ConfigError(f"job {job} is not valid", problems=errors)
    if PLACEHOLDER_DIGEST in str(chosen):
        raise RefusedError(
            f"job {job} has placeholder images", hint="give --image and --cuda-image with digests"
        )
    metadata = chosen["metadata"]
    metadata["generateName"] = f"{metadata.pop('name')}-"
    return chosen


def submit_job(
    job: dict[str, Any],
    *,
    context: str | None = None,
    wait: bool = True,
    poll_s: float = 5.0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Create ``job`` in the cluster of the current (or named) kubeconfig context.

    Returns ``{"job", "namespace", "status"}``, with ``wait`` once it has ended.

    Raises:
        MissingDependencyError: the ``kubernetes`` package is absent.
        ConfigError: there is no usable kubeconfig, or the API server refuses the job.
        ServiceError: the API server does not answer.
        TrainingError: the job failed.
    """
    api = _api(context)
    namespace = job["metadata"].get("namespace", "default")
    made = _call(
        lambda: api.create_namespaced_custom_object(namespace=namespace, body=job, **_GROUP)
    )
    name = made["metadata"]["name"]
    result = {"job": name, "namespace": namespace, "status": "SUBMITTED"}
    last = ""
    while wait:
        got = _call(
            lambda: api.get_namespaced_custom_object(namespace=namespace, name=name, **_GROUP)
        )
        status = got.get("status") or {}
        phase = str(status.get("jobDeploymentStatus") or "Initializing")
        if phase != last and progress is not None:
            progress(f"{name}: {phase}")
        last = phase
        if phase in ("Complete", "Failed"):
            outcome = str(status.get("jobStatus") or phase.upper())
            if phase == "Failed" or outcome != "SUCCEEDED":
                told = status.get("message") or status.get("reason") or "no reason was given"
                raise TrainingError(f"job {name} {outcome.lower()}: {told}")
            return result | {"status": outcome}
        time.sleep(poll_s)
    return result


def _api(context: str | None) -> Any:
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise MissingDependencyError(
            "submitting needs the kubernetes package", hint="pip install kubernetes"
        ) from error
    try:
        config.load_kube_config(context=context)
    except config.ConfigException as error:
        try:
            if context is not None:
                raise error
            config.load_incluster_config()
        except config.ConfigException:
            raise ConfigError(f"no usable kubeconfig: {error}") from error
    return client.CustomObjectsApi()


def _call(request: Callable[[], Any]) -> Any:
    import urllib3
    from kubernetes.client import ApiException

    try:
        return request()
    except ApiException as error:
        text = f"the API server answers {error.status} {error.reason}: {error.body}"
        kind = ServiceError if (error.status or 500) >= 500 else ConfigError
        raise kind(text) from error
    except urllib3.exceptions.HTTPError as error:
        raise ServiceError(f"the API server does not answer: {error}") from error
