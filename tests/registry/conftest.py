"""PostgreSQL and an S3 server of this machine, started for the tests that ask for them."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecg_agent_ray.plugins.stores import server_answers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _postgres_tools() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


@pytest.fixture(scope="session")
def postgres() -> Iterator[int]:
    """Port of a PostgreSQL server without a password, on the loopback interface alone."""
    pytest.importorskip("psycopg")
    tools = _postgres_tools()
    # not below pytest's folder, which only its owner may enter
    folder = Path(tempfile.mkdtemp(prefix="ecg-agent-postgres-"))
    # PostgreSQL does not run as root
    user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    if os.getuid() == 0:
        shutil.chown(folder, user)
    run: dict[str, Any] = {"user": user, "cwd": folder} if os.getuid() == 0 else {"cwd": folder}
    data, port = folder / "data", free_port()
    command = [tools / "initdb", "-D", data, "-U", "mlflow", "-A", "trust", "--no-sync"]
    subprocess.run(command, check=True, capture_output=True, **run)
    options = ["-k", str(folder), "-h", "127.0.0.1", "-p", str(port), "-c", "fsync=off"]
    server = subprocess.Popen(
        [tools / "postgres", "-D", data, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **run,
    )
    try:
        _wait_for_port(port, server)
        ready = [tools / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready).returncode:  # it listens before it is up
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
        yield port
    finally:
        server.send_signal(signal.SIGINT)  # its fast shutdown: waits for no client
        assert server.wait(60) == 0, "PostgreSQL was not shut down in order"
        shutil.rmtree(folder)


@pytest.fixture
def postgres_uri(postgres: int) -> Iterator[str]:
    """URI of a database of the test's own."""
    import psycopg

    name = f"mlflow_{time.time_ns()}"
    address = f"postgresql://mlflow@127.0.0.1:{postgres}"
    with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield f"postgresql+psycopg://{address.removeprefix('postgresql://')}/{name}"


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of moto's S3 server; the environment leads MLflow's S3 client there."""
    pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    for key, value in {
        "MLFLOW_S3_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    try:
        _wait_for_port(port, server)
        bucket = boto3.resource("s3", endpoint_url=url).Bucket("models")
        bucket.create()
        yield bucket
    finally:
        server.terminate()
        server.wait(30)


def _wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not server_answers(f"http://127.0.0.1:{port}"):
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < deadline
        time.sleep(0.1)
