"""A Ray cluster of this machine, started with token authentication and stopped completely.

Ray's head listens on every interface even when told 127.0.0.1, so a local cluster without a token
would let anybody on the network run code here. The token is generated per cluster and reaches the
workers through the environment; it is never written to disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import psutil

from ecg_agent_ray.errors import ServiceError
from ecg_agent_ray.plugins.stores import port_answers

__all__ = ["job_server_url", "join_cluster", "local_ray", "prepare_auth"]

_PR_SET_CHILD_SUBREAPER = 36

_PATIENCE = {
    "RAY_grpc_keepalive_timeout_ms": "600000",
    "RAY_grpc_client_keepalive_timeout_ms": "600000",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_failure_threshold": "20",
}
"""Ray takes a process that does not answer for 10 to 120 s for a lost node. On one machine it is
the same machine, busy or suspended: a laptop's lid may be shut on a training of hours."""


def prepare_auth() -> None:
    """Put token authentication into the environment unless the user configured it already."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" in sys.modules:
        # Ray's C++ core read the environment when it was imported, which may have been before this
        core: Any = import_module("ray._raylet")
        core.Config.initialize("")
        core.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def local_ray(
    *,
    num_cpus: int | None = None,
    address: str | None = None,
    env_vars: dict[str, str] | None = None,
    log_to_driver: bool = False,
    job_server: bool = False,
) -> Iterator[Any]:
    """Yield an initialised ``ray``; shut down on exit only what was started here.

    ``address`` (or ``RAY_ADDRESS``) joins a running cluster instead of starting one. ``env_vars``
    are set in every worker. ``num_cpus`` may exceed the machine's cores: it is a scheduling budget.
    ``job_server`` starts the dashboard too, at a free port of the loopback interface, so that the
    local cluster takes jobs at :func:`job_server_url`.
    Raises :class:`ServiceError` where the cluster does not come up, or none is at ``address``.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        prepare_auth()
    import ray

    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": env_vars} if env_vars else None,
        "log_to_driver": log_to_driver,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if address:
        join_cluster(address, **options)
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    with contextlib.ExitStack() as cleanup:
        if job_server:
            # its jobs look for "the latest cluster" of the temporary folder, which has to be this
            folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
            options["_temp_dir"] = cleanup.enter_context(folder)
        cleanup.enter_context(_no_ray_process_left())
        try:
            if not log_to_driver:
                # raylet's messages go to stdout all the same, where a job's one JSON line belongs
                ray._private.worker._worker_logs_enabled = False
            options |= {"num_cpus": num_cpus, "include_dashboard": job_server}
            try:
                _start(ray, **options)
            except ServiceError:
                # Ray gives a node 30 s, which a machine under load may need more than once
                ray.shutdown()
                _start(ray, **options)
            if job_server:
                # as `ray start` does; without it a job joins whichever cluster of the machine
                gcs_address = ray.get_runtime_context().gcs_address
                ray._private.utils.write_ray_address(gcs_address, options["_temp_dir"])
            yield ray
        finally:
            ray.shutdown()


def join_cluster(address: str, **options: Any) -> None:
    """``ray.init`` at a running cluster: HEAD:6379, ray://HEAD:10001 or auto.

    Raises :class:`ServiceError`; at once where nobody listens, which Ray tries for minutes.
    """
    import ray

    try:
        url = urlsplit(address if "://" in address else f"gcs://{address}")
        if url.hostname and url.port and not port_answers(url.hostname, url.port):
            raise ConnectionError("nobody listens there")
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ServiceError(
            f"no Ray cluster at {address}: {error}",
            hint="start one (`ray start --head`), or give its address as RAY_ADDRESS",
        ) from error


def job_server_url() -> str | None:
    """HTTP address at which the cluster this process is connected to takes jobs, if it does."""
    import ray

    url = ray._private.worker.global_worker.node.address_info.get("webui_url")
    return f"http://{url}" if url else None


def _start(ray: Any, **options: Any) -> None:
    try:
        with _free_agent_port():
            ray.init(_node_ip_address="127.0.0.1", **options)
    except Exception as error:
        # Ray raises a bare Exception when a part of it is not up after 30 s
        if type(error) is not Exception and not isinstance(error, ConnectionError | TimeoutError):
            raise
        raise ServiceError(
            f"the local Ray cluster did not start: {error}",
            hint="is the machine busy? try again, or give RAY_ADDRESS",
        ) from error


@contextlib.contextmanager
def _free_agent_port() -> Iterator[None]:
    """Let the node's agent listen at any free port.

    ``ray.init`` has no option for it and takes 52365; in a second cluster of the machine the agent
    then has no HTTP, and without it no job is accepted.
    """
    parameter: Any = import_module("ray._private.parameter")
    original = parameter.RayParams
    parameter.RayParams = functools.partial(original, dashboard_agent_listen_port=None)
    try:
        yield
    finally:
        parameter.RayParams = original


@contextlib.contextmanager
def _no_ray_process_left(grace_s: float = 5.0) -> Iterator[None]:
    """End what Ray leaves behind when its own shutdown was cut short, by an interrupt above all.

    Ray's workers outlive a killed raylet for a while. Orphans of ours become our children on Linux
    (PR_SET_CHILD_SUBREAPER), so they can be told from another user's Ray and waited for.
    """
    own = psutil.Process()
    before = {child.pid for child in own.children(recursive=True)}
    adopted = _adopt_orphans(True)
    try:
        yield
    finally:
        left = [child for child in own.children(recursive=True) if child.pid not in before]
        left = [child for child in left if _is_ray(child)]
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        _, stubborn = psutil.wait_procs(left, timeout=grace_s)
        for child in stubborn:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(stubborn, timeout=grace_s)
        if adopted:
            _adopt_orphans(False)


def _adopt_orphans(wanted: bool) -> bool:
    """Whether the kernel does as ``wanted``; other systems than Linux do not have this."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) == 0)


def _is_ray(process: psutil.Process) -> bool:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return command.startswith("ray::") or "/ray/" in command
