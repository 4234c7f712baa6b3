"""Service times of a real local service, and the same service under load beside the simulation."""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from capacity_simulator import Dialogue, Size, Turn, simulate

from ecg_agent_ray import ecg
from ecg_agent_ray.pipelines.bench.timing import hardware
from ecg_agent_ray.serving.config import load_service_config
from ecg_agent_ray.serving.service import running_service

__all__ = ["measure"]

QUESTIONS = (
    "What is the heart rate?",
    "Is the rhythm normal?",
    "What does the PR interval mean?",
    "Thank you, goodbye.",
)
PAUSE_S = 1.0


def measure(n: int, together: int, utilisation: float, seed: int) -> dict[str, Any]:
    """``n`` dialogues one by one, then ``together`` as Poisson arrivals at this utilisation."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_service_config("local").model_copy(update={"port": 0, "store": folder})
        began = time.monotonic()
        with running_service(config) as url, httpx.Client(base_url=url, timeout=300) as client:
            ids = [_upload(client, path) for path in ecg.samples()[:n]]
            _talk(client, ids[0], QUESTIONS, ())  # loads the models
            start_s = time.monotonic() - began
            alone = [_talk(client, ids[i % len(ids)], QUESTIONS, ()) for i in range(n)]
            comparison = _compare(url, ids, alone, together, utilisation, seed)
    return {
        "source": "measured on this machine by benchmarks/capacity.py, serve_configs/local.yaml",
        "hardware": hardware(),
        "replica_start_s": round(start_s, 1),
        "dialogues": [[_work(turn) for turn in one] for one in alone],
        "comparison": comparison,
    }


def _upload(client: httpx.Client, path: Path) -> str:
    parts = [p for p in sorted(path.parent.glob(f"{path.stem}.*")) if p.suffix in (".hea", ".dat")]
    files = [("files", (part.name, part.read_bytes())) for part in parts]
    answer = client.post("/v1/ecgs", files=files)
    answer.raise_for_status()
    return str(answer.json()["id"])


def _talk(
    client: httpx.Client, ecg_id: str, questions: Sequence[str], pauses: Sequence[float]
) -> list[dict[str, Any]]:
    messages: list[dict[str, str]] = []
    turns = []
    steps: list[Any] = []
    for number, question in enumerate(questions):
        if pauses and number:
            time.sleep(pauses[number])
        messages.append({"role": "user", "content": question})
        body = {
            "model": "ecg-agent",
            "messages": messages,
            "ecg_agent": {"ecg_id": ecg_id, "include_steps": True, "steps": steps},
        }
        asked = time.monotonic()
        answer = client.post("/v1/chat/completions", json=body)
        total = time.monotonic() - asked
        answer.raise_for_status()
        said = answer.json()
        new = said["ecg_agent"]["steps"]
        messages.append({"role": "assistant", "content": said["choices"][0]["message"]["content"]})
        steps = [*steps, *new]
        turns.append({"asked": asked, "total_s": total, "steps": new})
    return turns


def _work(turn: dict[str, Any]) -> dict[str, Any]:
    tools: dict[str, float] = {}
    for step in turn["steps"]:
        station = "measurement" if "measure" in step["tool"] else "classification"
        tools[station] = tools.get(station, 0.0) + step["ms"] / 1000
    agent_s = max(0.0, turn["total_s"] - sum(tools.values()))
    return {"agent_s": round(agent_s, 4), "tools": {k: round(v, 4) for k, v in tools.items()}}


def _visits(turn: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    work = _work(turn)
    tools = list(work["tools"].items())
    part = ("agent", work["agent_s"] / (len(tools) + 1))
    return (part, *(visit for tool in tools for visit in (tool, part)))


def _compare(
    url: str, ids: list[str], alone: list[Any], n: int, utilisation: float, seed: int
) -> dict[str, Any]:
    rng = random.Random(seed)
    work = statistics.fmean(sum(_work(t)["agent_s"] for t in one) for one in alone)
    rate = utilisation / work
    plan, now = [], 0.0
    for _ in range(n):
        now += rng.expovariate(rate)
        plan.append(
            (now, rng.randrange(len(alone)), [rng.expovariate(1 / PAUSE_S) for _ in QUESTIONS])
        )
    real: list[float] = []
    failed: list[str] = []
    began = time.monotonic()

    def one(start: float, which: int, pauses: list[float]) -> None:
        time.sleep(max(0.0, began + start - time.monotonic()))
        try:
            with httpx.Client(base_url=url, timeout=300) as client:
                turns = _talk(client, ids[which % len(ids)], QUESTIONS, pauses)
            real.extend(turn["total_s"] for turn in turns)
        except httpx.HTTPError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=one, args=each) for each in plan]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    dialogues = [
        Dialogue(
            start,
            tuple(
                Turn(_visits(turn), pauses[number] if number else 0.0)
                for number, turn in enumerate(alone[which])
            ),
        )
        for start, which, pauses in plan
    ]
    stations = {name: Size(1, slots=16) for name in ("agent", "measurement", "classification")}
    foretold = [seconds for _, seconds in simulate(dialogues, stations, seed=seed).turns]
    both = {"real": _summary(real), "simulated": _summary(foretold)}
    ratios = {k: round(both["simulated"][k] / both["real"][k], 2) for k in both["real"]}
    return {
        "dialogues": n,
        "turns": len(real),
        "failed": failed,
        "utilisation_of_the_agent": utilisation,
        "pause_s": PAUSE_S,
        **both,
        "simulated_over_real": ratios,
    }


def _summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    pick = {"p50_s": 0.5, "p95_s": 0.95}
    found = {k: ordered[min(len(ordered) - 1, int(q * len(ordered)))] for k, q in pick.items()}
    return {"mean_s": round(statistics.fmean(ordered), 3)} | {
        k: round(v, 3) for k, v in found.items()
    }
