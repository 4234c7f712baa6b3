"""MLflow's stores by URI: whether one can be used at all, said at once and without its password."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ecg_agent_ray.errors import ConfigError, ServiceError

__all__ = ["check_store", "port_answers", "server_answers", "shown", "store_errors"]

# a data source name may stand where other databases' URIs have the host: mssql is not asked
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


def server_answers(uri: str, timeout_s: float = 3.0) -> bool:
    """True when the port of a tracking server or database accepts a connection.

    Always for stores without a server. Asked before MLflow is, because MLflow retries a refused
    connection for minutes.
    """
    try:
        url = urlsplit(uri)
        host, port = url.hostname, url.port
    except ValueError:
        return True  # several hosts, or nothing that could be asked; MLflow says what is wrong
    usual = _PORTS.get(url.scheme.partition("+")[0])
    if usual is None or not host:
        return True
    return port_answers(host, port or usual, timeout_s)


def port_answers(host: str, port: int, timeout_s: float = 3.0) -> bool:
    """Whether a TCP connection is accepted there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout_s):
        return True
    return False


def check_store(uri: str) -> None:
    """Refuse a store that cannot be used.

    Raises
    ------
    ConfigError
        It is a plain folder: MLflow 3 has no file store.
    ServiceError
        Nobody answers there.
    """
    if uri.startswith("file:") or ("://" not in uri and uri not in ("databricks", "databricks-uc")):
        raise ConfigError(
            f"{uri!r} is a folder, and MLflow 3 keeps no runs in folders",
            hint=f"use sqlite:///{Path(uri.removeprefix('file://')).absolute()}/mlflow.db",
        )
    if not server_answers(uri):
        kind = "server" if uri.startswith("http") else "database"
        raise ServiceError(
            f"the MLflow {kind} at {shown(uri)} does not answer",
            hint="start it, or correct MLFLOW_TRACKING_URI",
        )


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """What MLflow or its database says of a store that it cannot use, as ConfigError."""
    try:
        yield
    except Exception as error:
        from sqlite3 import Error as SQLiteError

        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        if not isinstance(error, MlflowException | SQLAlchemyError | SQLiteError | ImportError):
            raise
        said = shown((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise ConfigError(
            f"MLflow cannot use the store {shown(uri)}: {said}", hint="see MLFLOW_TRACKING_URI"
        ) from error


def shown(uri: str) -> str:
    """``uri`` as it may be printed and logged: without the password."""
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", uri)
