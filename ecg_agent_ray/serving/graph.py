"""The one builder of the Serve application: for YAML files (KubeRay, `serve deploy`), the command
line, MLflow's deployment target and tests alike.

        HTTP ─> ingress ─┬─> measurement      (uploads, measuring, plots)
                         ├─> classification   (classifier, explanations)
                         └─> agent ─┬─> measurement
                                    ├─> classification
                                    └─> llm      (vLLM, where the configuration has `llm`)

A hop costs some milliseconds, so there are as few as there can be: one for a tool, two for a tool
within a dialogue. The ingress reads descriptions from the ECG store itself, and without `llm` the
agent's replicas run the language model themselves.
"""

# no `from __future__ import annotations`: Serve looks at the builder's annotation as a class

from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from ecg_agent_ray.serving.agent_replica import AgentReplica
from ecg_agent_ray.serving.config import DeploymentConfig, ServiceConfig
from ecg_agent_ray.serving.tool_replicas import ClassificationReplica, MeasurementReplica

__all__ = ["build", "build_app"]

_ONE_LOOP = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""Spares a call two changes of thread. For replicas whose code never holds the event loop: the
ingress, and tools, which work in threads. The agent waits for tools in its own."""

_KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}
"""glibc keeps a signal's arrays for the next request, which otherwise cost a thousand page faults
each; measuring is an eighth faster so. Other systems' allocators read other names."""


@serve.ingress()
class Ingress:
    """HTTP in, handles out."""

    def __init__(
        self,
        config: ServiceConfig,
        measurement: DeploymentHandle,
        classification: DeploymentHandle,
        agent: DeploymentHandle,
    ) -> None:
        self._config = config
        self._handles = {
            "measurement": measurement,
            "classification": classification,
            "agent": agent,
        }

    def about(self) -> dict[str, Any]:
        """What MLflow's deployment target keeps about this service; empty where it did not."""
        return self._config.deployed_as

    def __serve_build_asgi_app__(self) -> Any:
        from ecg_agent_ray.serving.access import Services
        from ecg_agent_ray.serving.app import create_app
        from ecg_agent_ray.serving.auth import TokenFile
        from ecg_agent_ray.serving.handles import HandleBackend
        from ecg_agent_ray.serving.logs import configure_replica_logs
        from ecg_agent_ray.serving.store import EcgStore
        from ecg_agent_ray.serving.tracing import configure_tracing

        config = self._config
        configure_replica_logs()
        configure_tracing(config, "ingress")
        assert config.store is not None, "build_app resolves the configuration"
        services = Services(
            config=config,
            backend=HandleBackend(timeouts=config.timeouts, **self._handles),
            store=EcgStore(config.store),
            tokens=TokenFile(config.tokens_file) if config.tokens_file else None,
        )
        return create_app(services)


def build_app(config: ServiceConfig) -> Application:
    """The application of ``config``, to be given to ``serve.run`` or deployed from YAML.

    Raises:
        ConfigError: it would be open to the network without tokens, or Ray Serve LLM refuses
            ``llm``.
        MissingDependencyError: ``llm`` is given, and vLLM is not installed.
    """
    config.check_exposure()
    config = config.resolved()
    environment = config.environment()
    on_one_loop = environment | _ONE_LOOP
    sizes = config.deployments
    for_tools = on_one_loop | _KEPT_MEMORY
    measurement = _deployment(
        MeasurementReplica,
        "measurement",
        sizes.measurement,
        for_tools,
        let_in=sizes.measurement.most_let_in,
    ).bind(config)
    classification = _deployment(
        ClassificationReplica,
        "classification",
        sizes.classification,
        for_tools,
        let_in=sizes.classification.most_let_in,
    ).bind(config)
    agent = _deployment(AgentReplica, "agent", sizes.agent, environment).bind(
        config, measurement, classification, _llm(config)
    )
    # the app refuses what is too much, in its own words, before Serve does
    most = 4 * sizes.ingress.max_ongoing_requests
    return _deployment(Ingress, "ingress", sizes.ingress, on_one_loop, let_in=most).bind(
        config, measurement, classification, agent
    )


def _llm(config: ServiceConfig) -> Application | None:
    if config.llm is None:
        return None
    from ecg_agent_ray.serving.llm import build_llm

    return build_llm(config)


def _deployment(
    replica: type,
    name: str,
    size: DeploymentConfig,
    environment: dict[str, str],
    *,
    let_in: int | None = None,
) -> Deployment:
    return serve.deployment(name=name, **size.options(environment, let_in=let_in))(replica)


def build(args: ServiceConfig) -> Application:
    """What ``import_path: ecg_agent_ray.serving:build`` calls; Serve validates ``args``."""
    return build_app(args)
