"""A port on which nobody listens and a real tracking server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from ecg_agent_ray.plugins.stores import server_answers


@pytest.fixture
def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def mlflow_server() -> Callable[[int, str], AbstractContextManager[None]]:
    """``mlflow_server(port, store)``: a real tracking server while the context is open."""
    return _server


@contextlib.contextmanager
def _server(port: int, store: str) -> Iterator[None]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 300
        while not server_answers(f"http://127.0.0.1:{port}"):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # with its workers
        server.wait(30)
