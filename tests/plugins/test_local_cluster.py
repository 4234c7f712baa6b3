"""A local Ray lets nobody in without its token, and leaves no process when its driver is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = """
import time
from ecg_agent_ray.plugins.local_cluster import local_ray

with local_ray(num_cpus=1) as ray:
    print(ray.get_runtime_context().gcs_address, flush=True)
    time.sleep(120)
"""

INTRUDER = """
import sys
from ray._raylet import GcsClient

GcsClient(address=sys.argv[1]).internal_kv_keys(b"", namespace=None)
"""


@pytest.mark.parametrize(
    "sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_local_ray_is_closed_to_others_and_stops_completely(
    sent: signal.Signals, tmp_path: Path
) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env=without_auth(),
    )
    assert driver.stdout is not None
    address = driver.stdout.readline().strip()
    started = psutil.Process(driver.pid).children(recursive=True)
    try:
        assert any(process.name() == "raylet" for process in started)
        intruder = subprocess.run(
            [sys.executable, "-c", INTRUDER, address],
            capture_output=True,
            text=True,
            timeout=120,
            env=without_auth() | {"RAY_gcs_rpc_server_connect_timeout_s": "2"},
        )
        assert intruder.returncode != 0
        assert "InvalidAuthToken" in intruder.stderr
    finally:
        driver.send_signal(sent)
        driver.wait(60)
    deadline = time.monotonic() + 15
    while alive(started) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert alive(started) == []


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_without_a_cluster_is_refused_at_once(form: str, closed_port: int) -> None:
    address = form.format(closed_port)
    code = "from ecg_agent_ray.plugins.local_cluster import local_ray\nwith local_ray(): pass"
    env = without_auth() | {"RAY_ADDRESS": address}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=env
    )
    assert f"ServiceError: no Ray cluster at {address}: nobody listens there" in done.stderr


def without_auth() -> dict[str, str]:
    """The environment without what this test process itself set up for Ray."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}


def alive(processes: list[psutil.Process]) -> list[str]:
    names = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                names.append(process.name())
        except psutil.NoSuchProcess:
            continue
    return names
