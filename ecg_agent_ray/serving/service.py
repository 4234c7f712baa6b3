"""The service in this process's local Ray: started, waited for, and gone without a trace."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from ecg_agent_ray.errors import ServiceError
from ecg_agent_ray.plugins.environment import variables
from ecg_agent_ray.plugins.local_cluster import local_ray
from ecg_agent_ray.serving.config import ServiceConfig

__all__ = ["running_service"]

APPLICATION = "ecg-agent"
_log = logging.getLogger(__name__)
_RAY = {
    # a dead proxy is replaced after three missed checks; Serve's own period is 10 s. In a cluster,
    # where three might fall within a reload of HAProxy or a moment without network, `kube/` has 1
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.1",
    # Ray's own 15 lets everything else on the machine go before somebody who waits for an answer
    "RAY_worker_niceness": "0",
}
"""What Ray reads where it starts, unless the user set it."""


@contextlib.contextmanager
def running_service(config: ServiceConfig, *, start_timeout_s: float = 180.0) -> Iterator[str]:
    """Serve ``config`` and yield its base URL, such as ``http://127.0.0.1:8000``.

    Joins the Ray of this process, or of ``RAY_ADDRESS``, if there is one; otherwise starts a local
    one and ends it. What was started is gone afterwards.

    Raises:
        ConfigError: it would be open to the network without tokens.
        ServiceError: the port is taken, Serve runs there already, or it was not ready in
            ``start_timeout_s`` seconds.
    """
    config.check_exposure()
    port = _free_port(config.host, config.port)
    with _local_ray(config) as ours:
        from ray import serve

        # Serve tells of every step it takes; what matters is told here
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _check_no_serve()
        running = False
        try:
            _start(config, port)
            running = True
            url = f"http://{_shown(config.host)}:{port}"
            _wait_ready(url, start_timeout_s)
            yield url
        finally:
            if not ours:
                serve.shutdown()
            elif running:
                # requests are finished; then the cluster ends, with Serve in it
                serve.delete(APPLICATION)


@contextlib.contextmanager
def _local_ray(config: ServiceConfig) -> Iterator[bool]:
    """A Ray to run in; yields whether it was started here and ends after the block."""
    import ray

    ours = not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")
    before = signal.getsignal(signal.SIGTERM)
    with variables(_RAY if ours else {}, keep=True), local_ray(num_cpus=_cpus(config)):
        if threading.current_thread() is threading.main_thread():
            # Ray puts its own handler there, which kills its processes under Serve's feet
            signal.signal(signal.SIGTERM, before)
        yield ours


def _check_no_serve() -> None:
    import ray

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return
    raise ServiceError(
        "Ray Serve runs in this cluster already, with its own port and applications",
        hint="use `serve deploy` with a file of serve_configs",
    )


def _start(config: ServiceConfig, port: int) -> None:
    from ray import serve
    from ray.exceptions import RayError

    from ecg_agent_ray.serving.graph import build_app

    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": config.host,
                "port": port,
                # the parts' own timeouts come first and say which part it was
                "request_timeout_s": config.timeouts.chat_s + 30,
            },
            logging_config={"log_level": "WARNING"},
        )
    except (RayError, TimeoutError) as error:
        raise ServiceError(
            "Serve's HTTP proxy did not start",
            hint="is the machine busy? RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S gives it more time",
        ) from error
    try:
        serve.run(build_app(config), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise ServiceError(f"the service did not start: {_deploy_message()}") from error


def _shown(host: str) -> str:
    """The host to put into a URL for this machine."""
    if host in ("0.0.0.0", "localhost"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _cpus(config: ServiceConfig) -> int:
    """The scheduling budget that the graph at its smallest fits in, with room for the proxy."""
    parts = (
        config.deployments.ingress,
        config.deployments.measurement,
        config.deployments.classification,
        config.deployments.agent,
        *([config.deployments.llm] if config.llm else []),
    )
    wanted = sum(
        part.num_cpus * (part.autoscaling.max_replicas if part.autoscaling else part.num_replicas)
        for part in parts
    )
    return int(wanted) + 1


def _free_port(host: str, port: int) -> int:
    """``port``, or a free one for 0; raises :class:`ServiceError` where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise ServiceError(
                f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another port"
            ) from error
        return int(probe.getsockname()[1])


def _wait_ready(url: str, timeout_s: float) -> None:
    import httpx

    deadline = time.monotonic() + timeout_s
    last: Any = "no answer"
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=10)
            if answer.status_code == 200:
                for part in answer.json()["degraded"]:
                    problem = answer.json()["parts"][part]["problem"]
                    _log.warning("the service runs without %s: %s", part, problem)
                return
            last = answer.text
        except httpx.HTTPError as error:
            last = error
        time.sleep(0.1)
    raise ServiceError(f"the service was not ready after {timeout_s:g} s: {last}")


def _deploy_message() -> str:
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    if application is None:
        return "Serve knows nothing of it"
    broken = [
        f"{name}: {deployment.message}"
        for name, deployment in application.deployments.items()
        if deployment.message
    ]
    return "; ".join(broken) or application.message
