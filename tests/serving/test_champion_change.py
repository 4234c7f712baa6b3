"""A new champion takes over under load, and a broken one does not; no request or turn fails."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from safetensors.numpy import load_file, save_file

from ecg_agent_ray.registry import ModelVersion, resolve

PERIOD_S = 0.05
"""Between two requests: 20 a second."""


class Load:
    """Measurements at a steady rate, with a classification among every ten, and a dialogue."""

    def __init__(self, service: Any, ecg_id: str) -> None:
        self.statuses: Counter[int | str] = Counter()
        self.turns: Counter[int | str] = Counter()
        self.models: list[str] = []
        self._service = service
        self._ecg_id = ecg_id
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(4)]
        self._threads.append(threading.Thread(target=self._talk))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        with self._service.client() as client:
            due = time.monotonic() + number * PERIOD_S
            for turn in range(100_000):
                if self._stop.wait(max(0.0, due - time.monotonic())):
                    return
                due = max(due + PERIOD_S * 4, time.monotonic())
                tool = "classification" if turn % 10 == 0 else "measurement"
                try:
                    answer = client.post(f"/v1/ecgs/{self._ecg_id}/{tool}")
                except Exception as error:
                    self.statuses[type(error).__name__] += 1
                    continue
                self.statuses[answer.status_code] += 1
                if tool == "classification" and answer.status_code == 200:
                    self.models.append(answer.json()["model"])

    def _talk(self) -> None:
        about = {"model": "ecg-agent", "ecg_agent": {"ecg_id": self._ecg_id}}
        with self._service.client() as client:
            while not self._stop.is_set():
                messages: list[dict[str, str]] = []
                for question in ("What is the heart rate?", "Findings?", "Why?"):
                    messages.append({"role": "user", "content": question})
                    try:
                        answer = client.post(
                            "/v1/chat/completions", json={**about, "messages": messages}
                        )
                    except Exception as error:
                        self.turns[type(error).__name__] += 1
                        break
                    self.turns[answer.status_code] += 1
                    if answer.status_code != 200:
                        break
                    messages.append(answer.json()["choices"][0]["message"])


def test_a_new_champion_under_load(service: Any, ecg_id: str, tmp_path: Path) -> None:
    before = in_use(service)["version"]
    second = service.register()
    with Load(service, ecg_id) as load:
        wait_until(lambda: before in load.models, "an answer of the first")
        point(second)
        wait_until(lambda: second.uri in load.models, "an answer of the second")
        wait_until(lambda: in_use(service)["version"] == second.uri, "the second in use")
        broken = service.register(broken_copy(tmp_path / "broken"))
        point(broken)
        wait_until(lambda: "rejected" in in_use(service), "the broken one refused")
        seen = len(load.models)
        wait_until(lambda: len(load.models) > seen + 3, "more answers")
    assert in_use(service)["rejected"]["version"] == broken.uri
    assert in_use(service)["version"] == second.uri
    point(second)
    assert set(load.statuses) == {200}, load.statuses
    assert load.statuses[200] > 20
    assert set(load.turns) == {200}, load.turns
    assert set(load.models) == {before, second.uri}
    # once the second answered, the first answers no more
    assert before not in load.models[load.models.index(second.uri) + 4 :]


def in_use(service: Any) -> dict[str, Any]:
    with service.client() as client:
        found: dict[str, Any] = client.get("/readyz").json()["parts"]["classification"]
    return found


def point(version: ModelVersion) -> None:
    mlflow.MlflowClient().set_registered_model_alias(version.name, "champion", str(version.version))


def broken_copy(folder: Path) -> Path:
    """Weights that load and give no numbers."""
    shutil.copytree(resolve("builtin:classifier"), folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(
        {k: np.full_like(v, np.nan) for k, v in weights.items()}, folder / "model.safetensors"
    )
    return folder


def wait_until(true: Any, what: str, timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if true():
            return
        time.sleep(0.2)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")
