"""A Ray cluster of this machine, started with token authentication and stopped completely.

Ray's head listens on every interface even when told 127.0.0.1, so a local cluster without a token
would let anybody on the network run code here. The token is generated per cluster and reaches the
workers through the environment; it is never written to disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

__all__ = ["local_ray", "prepare_auth"]


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
) -> Iterator[Any]:
    """Yield an initialised ``ray``; shut down on exit only what was started here.

    ``address`` (or ``RAY_ADDRESS``) joins a running cluster instead of starting one. ``env_vars``
    are set in every worker. ``num_cpus`` may exceed the machine's cores: it is a scheduling budget.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        prepare_auth()
    import ray

    if ray.is_initialized():
        yield ray
        return
    runtime_env = {"env_vars": env_vars} if env_vars else None
    options: dict[str, Any] = {
        "runtime_env": runtime_env,
        "log_to_driver": log_to_driver,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if address:
        ray.init(address=address, **options)
    else:
        ray.init(
            num_cpus=num_cpus,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **options,
        )
    try:
        yield ray
    finally:
        ray.shutdown()
