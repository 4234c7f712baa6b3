"""Ray Serve applications by name: deploy and wait, ask, delete."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import BaseModel

from ecg_agent_ray.errors import ConfigError, EcgAgentError, ServiceError
from ecg_agent_ray.plugins.deployment_config import DeploymentConfig
from ecg_agent_ray.plugins.local_cluster import join_cluster
from ecg_agent_ray.plugins.options import validated
from ecg_agent_ray.plugins.pyfunc_app import MLflowEndpoint, MLflowModel

__all__ = ["Applications", "DeployFailedError", "endpoint_app", "model_app"]

_ANSWER_S = 600.0
_POLL_S = 0.3
_DELETE_S = 300.0
_ABOUT_S = 10.0


class DeployFailedError(EcgAgentError):
    """The application did not become healthy; the message is the end of a sentence."""


def model_app(about: Mapping[str, Any]) -> Any:
    """The application of a deployment, from what :mod:`deployments` keeps about it."""
    from ray import serve

    config = DeploymentConfig.model_validate(about["config"])
    if config.builder is not None:
        return _built(config.builder, config.args, about)
    options = config.serve_options(about["pip"])
    deployment: Any = serve.deployment(MLflowModel, name="MLflowModel", **options)
    return deployment.bind(dict(about), about["tracking_uri"])


def _built(named: str, args: Mapping[str, Any], about: Mapping[str, Any]) -> Any:
    """What the builder makes, as Serve itself would call it for a YAML file's `import_path`."""
    module, _, name = named.partition(":")
    try:
        builder = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"no builder {named}: {error}") from error
    filled = _with_model(args, about["model_uri"]) | {"deployed_as": dict(about)}
    parameters = list(inspect.signature(builder).parameters.values())
    if len(parameters) != 1:
        raise ConfigError(
            f"{named} takes {len(parameters)} arguments; a builder of Serve's takes one"
        )
    typed = parameters[0].annotation
    if inspect.isclass(typed) and issubclass(typed, BaseModel):
        return builder(validated(typed, filled, f"args of {named}"))
    return builder(filled)


def _with_model(value: Any, model_uri: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_model(inner, model_uri) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_model(inner, model_uri) for inner in value]
    return value.replace("{model_uri}", model_uri) if isinstance(value, str) else value


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
        """Remove it; returns when its replicas have gone.

        Raises :class:`ServiceError` after minutes: Serve's own wait is as long as a replica that
        never started may take to drain.
        """
        self._serve().delete(name, _blocking=False)
        deadline = time.monotonic() + _DELETE_S
        while self.status(name) is not None:
            if time.monotonic() > deadline:
                raise ServiceError(f"{name} is still being deleted after {_DELETE_S:.0f} s")
            time.sleep(_POLL_S)

    def status(self, name: str) -> Any | None:
        return self._serve().status().applications.get(name)

    def names(self, deployment: str) -> list[str]:
        """Applications that are of this kind, ``MLflowModel`` or ``MLflowEndpoint``."""
        found = self._serve().status().applications
        return sorted(name for name, app in found.items() if self.is_a(deployment, name, app))

    def is_a(self, deployment: str, name: str, status: Any) -> bool:
        own = {"MLflowModel", "MLflowEndpoint"} & set(status.deployments)
        if own or deployment != "MLflowModel":
            return deployment in own
        # made by a builder, or none of ours; one that is ill cannot say which, so only its owner,
        # who names it, may take it for his
        return "model_uri" in self.about_if_known(name)

    def replicas(self, status: Any) -> dict[str, int]:
        """Numbers of replicas by their state."""
        counts: dict[str, int] = {}
        for deployment in status.deployments.values():
            for state, number in deployment.replica_states.items():
                counts[str(state)] = counts.get(str(state), 0) + number
        return counts

    def about(self, name: str) -> dict[str, Any]:
        """What the replicas say they are.

        Raises :class:`ServiceError` where none answers: what is to be changed must be known.
        """
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            return dict(self.call(name, "about", timeout_s=_ABOUT_S))
        except (TimeoutError, RayError, RayServeException) as error:
            raise ServiceError(
                f"no replica of {name} says what it is: {type(error).__name__}",
                hint="wait until it is healthy, or delete it",
            ) from error

    def about_if_known(self, name: str) -> dict[str, Any]:
        """:meth:`about`, empty where no replica answers."""
        with contextlib.suppress(ServiceError):
            return self.about(name)
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
