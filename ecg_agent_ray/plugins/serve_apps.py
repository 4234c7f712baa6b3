"""Ray Serve applications by name: deploy and wait, ask, delete."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from ecg_agent_ray.errors import EcgAgentError, ServiceError
from ecg_agent_ray.plugins.deployment_config import DeploymentConfig
from ecg_agent_ray.plugins.local_cluster import join_cluster
from ecg_agent_ray.plugins.pyfunc_app import MLflowEndpoint, MLflowModel

__all__ = ["Applications", "DeployFailedError", "endpoint_app", "model_app"]

_ANSWER_S = 600.0
_POLL_S = 0.3


class DeployFailedError(EcgAgentError):
    """The application did not become healthy; the message is the end of a sentence."""


def model_app(about: Mapping[str, Any]) -> Any:
    """The application of a deployment, from what :mod:`deployments` keeps about it."""
    from ray import serve

    options = DeploymentConfig.model_validate(about["config"]).serve_options(about["pip"])
    deployment: Any = serve.deployment(MLflowModel, name="MLflowModel", **options)
    return deployment.bind(dict(about), about["tracking_uri"])


def endpoint_app(about: Mapping[str, Any]) -> Any:
    from ray import serve

    deployment: Any = serve.deployment(
        MLflowEndpoint,
        name="MLflowEndpoint",
        num_replicas=about["num_replicas"],
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
        max_surge_percent=100,
        graceful_shutdown_wait_loop_s=0.5,
    )
    return deployment.bind(dict(about))


class Applications:
    """Those of one cluster, which is joined at the first use."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    def deploy(self, name: str, app: Any, route_prefix: str | None, timeout_s: float) -> None:
        """Put ``app`` in place of the application ``name``; returns when it is healthy.

        Raises :class:`DeployFailedError` when it fails, or is not healthy in time.
        """
        serve = self._serve()
        target = serve.RunTarget(app, name=name, route_prefix=route_prefix)
        serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        deadline = time.monotonic() + timeout_s
        while True:
            status = serve.status().applications.get(name)
            state = status.status.value if status else "NOT_STARTED"
            if state == "RUNNING":
                return
            if state in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise DeployFailedError(f"failed: {_why(status)}")
            if time.monotonic() > deadline:
                raise DeployFailedError(f"was not healthy after {timeout_s:.0f} s: {_why(status)}")
            time.sleep(_POLL_S)

    def delete(self, name: str) -> None:
        self._serve().delete(name)

    def status(self, name: str) -> Any | None:
        return self._serve().status().applications.get(name)

    def names(self, deployment: str) -> list[str]:
        """Applications that have a deployment of this name."""
        found = self._serve().status().applications
        return sorted(name for name, app in found.items() if deployment in app.deployments)

    def replicas(self, status: Any) -> dict[str, int]:
        """Numbers of replicas by their state."""
        counts: dict[str, int] = {}
        for deployment in status.deployments.values():
            for state, number in deployment.replica_states.items():
                counts[str(state)] = counts.get(str(state), 0) + number
        return counts

    def about(self, name: str) -> dict[str, Any]:
        """What the replicas say they are; empty where none answers."""
        with contextlib.suppress(TimeoutError):
            return dict(self.call(name, "about", timeout_s=60))
        return {}

    def call(self, name: str, method: str, *arguments: Any, timeout_s: float = _ANSWER_S) -> Any:
        handle = self._serve().get_app_handle(name)
        return getattr(handle, method).remote(*arguments).result(timeout_s=timeout_s)

    def url(self, route_prefix: str | None) -> str | None:
        """Where the application is reached on this node, if it has a route."""
        if route_prefix is None:
            return None
        import ray

        controller: Any = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        http = ray.get(controller.get_http_config.remote())
        host = "127.0.0.1" if http.host in ("0.0.0.0", "::") else http.host
        return f"http://{host}:{http.port}{route_prefix}"

    def _serve(self) -> Any:
        import ray
        from ray import serve

        if not ray.is_initialized():
            address = self._address or os.environ.get("RAY_ADDRESS") or "auto"
            if address.startswith(("http://", "https://")):
                raise ServiceError(
                    f"{address} is a job server, and Serve is reached through the cluster itself",
                    hint="give HEAD:6379, or ray://HEAD:10001 from outside",
                )
            join_cluster(address, log_to_driver=False, logging_level=logging.ERROR)
        return serve


def _why(status: Any) -> str:
    if status is None:
        return "it was never started"
    said = [status.message, *(item.message for item in status.deployments.values())]
    lines = [line for text in said for line in text.splitlines() if line.strip()]
    return " ".join(dict.fromkeys(lines))[-2000:] or status.status.value
