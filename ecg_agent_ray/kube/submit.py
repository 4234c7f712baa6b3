"""Run one of an overlay's suspended RayJobs as a job of its own, and follow it to its end."""

from __future__ import annotations

import copy
import secrets
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
_SUBMISSION = "ecg-agent/submission"
_ENDED = ("Complete", "Failed", "ValidationFailed")
_TRANSIENT = (429, 500, 502, 503, 504)


def prepare_job(
    objects: list[dict[str, Any]], job: str, overrides: Sequence[str] = (), name: str | None = None
) -> dict[str, Any]:
    """The RayJob ``job`` of these manifests, made to run: unsuspended, under a name of its own.

    ``name`` is what it is called in the cluster; None makes one up from ``job``.

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
    # the name is made here and not by the server, so that a lost answer can be asked for again
    metadata = chosen["metadata"]
    metadata["name"] = name or f"{job}-{secrets.token_hex(3)}"
    metadata.setdefault("annotations", {})[_SUBMISSION] = secrets.token_hex(16)
    return chosen


def submit_job(
    job: dict[str, Any],
    *,
    context: str | None = None,
    wait: bool = True,
    timeout_s: float | None = None,
    poll_s: float = 5.0,
    retries: int = 5,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Create ``job`` in the cluster of the current (or named) kubeconfig context.

    A request that the API server does not answer, or answers with 429 or 5xx, is made again up to
    ``retries`` times with doubling pauses. An interrupt or a timeout leaves the job running.

    Returns ``{"job", "namespace", "status"}``, with ``wait`` once it has ended.

    Raises:
        MissingDependencyError: the ``kubernetes`` package is absent.
        ConfigError: there is no usable kubeconfig, the API server refuses the job or the account,
            or there is a job of this name.
        ServiceError: the API server does not answer, or the job did not end in ``timeout_s``.
        TrainingError: the job failed, or was deleted while it was followed.
    """
    api = _Api(context, retries, poll_s)
    namespace = job["metadata"].get("namespace", "default")
    name = job["metadata"]["name"]
    _create(api, namespace, job)
    result = {"job": name, "namespace": namespace, "status": "SUBMITTED"}
    if not wait:
        return result
    try:
        return result | {"status": _follow(api, namespace, name, timeout_s, poll_s, progress)}
    except KeyboardInterrupt:
        if progress is not None:
            progress(
                f"{name} goes on; see it with `kubectl -n {namespace} get rayjob {name}`, "
                f"end it with `kubectl -n {namespace} delete rayjob {name}`"
            )
        raise


def _create(api: _Api, namespace: str, job: dict[str, Any]) -> None:
    from kubernetes.client import ApiException

    name = job["metadata"]["name"]
    try:
        api.call("create", namespace=namespace, body=job)
    except ApiException as error:
        if error.status != 409:
            raise _told(error) from error
        there = api.get(namespace, name)
        annotations = ((there or {}).get("metadata") or {}).get("annotations") or {}
        if annotations.get(_SUBMISSION) != job["metadata"]["annotations"][_SUBMISSION]:
            raise ConfigError(
                f"there is a job {name} in {namespace} already",
                hint=f"give another --name, or `kubectl -n {namespace} delete rayjob {name}`",
            ) from error


def _follow(
    api: _Api,
    namespace: str,
    name: str,
    timeout_s: float | None,
    poll_s: float,
    progress: Callable[[str], None] | None,
) -> str:
    last = ""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        got = api.get(namespace, name)
        if got is None:
            raise TrainingError(f"job {name} was deleted while it was followed")
        status = got.get("status") or {}
        phase = str(status.get("jobDeploymentStatus") or "Initializing")
        if phase != last and progress is not None:
            attempts = status.get("failed") or 0
            progress(f"{name}: {phase}" + (f" (after {attempts} failed)" if attempts else ""))
        last = phase
        if phase in _ENDED:
            outcome = str(status.get("jobStatus") or phase.upper())
            if phase != "Complete" or outcome != "SUCCEEDED":
                told = status.get("message") or status.get("reason") or "no reason was given"
                raise TrainingError(f"job {name} {outcome.lower()}: {told}")
            return outcome
        if end is not None and time.monotonic() > end:
            raise ServiceError(
                f"job {name} is {phase} after {timeout_s:g} s; it goes on",
                hint=f"kubectl -n {namespace} get rayjob {name}",
            )
        time.sleep(poll_s)


class _Api:
    """RayJobs of one API server, asked again where asking again can help."""

    def __init__(self, context: str | None, retries: int, pause_s: float) -> None:
        self._rayjobs = _client(context)
        self._retries = retries
        self._pause_s = min(1.0, pause_s)

    def call(self, verb: str, **arguments: Any) -> Any:
        """Raises :class:`kubernetes.client.ApiException` for what is not worth a retry."""
        import urllib3
        from kubernetes.client import ApiException

        run = getattr(self._rayjobs, f"{verb}_namespaced_custom_object")
        for attempt in range(self._retries + 1):
            try:
                return run(**arguments, **_GROUP, _request_timeout=30)
            except ApiException as error:
                if error.status not in _TRANSIENT:
                    raise
                if attempt == self._retries:
                    raise _told(error) from error
            except urllib3.exceptions.HTTPError as error:
                if attempt == self._retries:
                    raise ServiceError(f"the API server does not answer: {error}") from error
            time.sleep(min(30.0, self._pause_s * 2**attempt))
        raise AssertionError("unreachable")

    def get(self, namespace: str, name: str) -> dict[str, Any] | None:
        from kubernetes.client import ApiException

        try:
            return dict(self.call("get", namespace=namespace, name=name))
        except ApiException as error:
            if error.status == 404:
                return None
            raise _told(error) from error


def _client(context: str | None) -> Any:
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
    settings = client.Configuration.get_default_copy()
    settings.retries = False  # urllib3 would repeat behind our back
    return client.CustomObjectsApi(client.ApiClient(settings))


def _told(error: Any) -> Exception:
    text = f"the API server answers {error.status} {error.reason}: {error.body}"
    if error.status == 401:
        return ConfigError(text, hint="log in to the cluster again; the credentials have expired")
    if error.status == 403:
        return ConfigError(text, hint="bind your account to the Role ecg-agent-submitter")
    return (ServiceError if (error.status or 500) >= 500 else ConfigError)(text)
