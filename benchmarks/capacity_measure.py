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
from capacity_simulator import Dialogue, Size, Turn, simulate, speeds, visits

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
TOGETHER = (2, 4)
STATIONS = ("agent", "measurement", "classification")

_Turns = list[dict[str, Any]]


def measure(n: int, together: int, utilisation: float, seed: int) -> dict[str, Any]:
    """Service times of ``n`` dialogues, then ``together`` of them as Poisson arrivals.

    In this order, since answers that were given before come faster (drafts, encoded prompts, tool
    outputs): each dialogue for the first time, which `estimate` takes; each again, alone; several
    at once; the arrivals; each alone again. The comparison is with the mean of both times alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = load_service_config("local").model_copy(update={"port": 0, "store": folder})
        began = time.monotonic()
        with running_service(config) as url, httpx.Client(base_url=url, timeout=300) as client:
            warm_up, *ids = [_upload(client, path) for path in ecg.samples()[: n + 1]]
            _talk(client, warm_up, QUESTIONS, ())  # loads the models
            start_s = time.monotonic() - began
            first = [_talk(client, one, QUESTIONS, ()) for one in ids]
            before = [_talk(client, one, QUESTIONS, ()) for one in ids]
            speed = {1: 1.0}
            for k in TOGETHER:
                speed[k] = _speed(url, ids, before, k, seconds=2 * _agent_s(before))
            plan = _arrivals(ids, _agent_s(before) / len(ids), together, utilisation, seed)
            real, failed = _open_loop(url, ids, plan)
            after = [_talk(client, one, QUESTIONS, ()) for one in ids]
    alone = [
        [_mean(*both) for both in zip(*pair, strict=True)]
        for pair in zip(before, after, strict=True)
    ]
    return {
        "source": "measured on this machine by benchmarks/capacity.py, serve_configs/local.yaml",
        "hardware": hardware(),
        "replica_start_s": round(start_s, 1),
        "dialogues": [[_work(turn) for turn in one] for one in first],
        "speed_together": {str(k): round(v, 2) for k, v in speed.items()},
        "comparison": {
            "utilisation_of_the_agent": utilisation,
            "pause_s": PAUSE_S,
            "failed": failed,
            "first_time_over_again": round(_agent_s(first) / _agent_s(before), 2),
            "after_over_before": round(_agent_s(after) / _agent_s(before), 2),
            **_compare(real, alone, plan, speed, seed),
        },
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


def _mean(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Work of a turn that was timed twice."""
    both = _work(one), _work(other)
    tools = {
        name: statistics.fmean(work["tools"].get(name, 0.0) for work in both)
        for name in both[0]["tools"]
    }
    return {"agent_s": statistics.fmean(work["agent_s"] for work in both), "tools": tools}


def _agent_s(dialogues: Sequence[_Turns]) -> float:
    return sum(_work(turn)["agent_s"] for one in dialogues for turn in one)


def _speed(url: str, ids: Sequence[str], alone: Sequence[_Turns], k: int, seconds: float) -> float:
    """How fast the agent is with ``k`` requests at all times, relative to one."""
    rates = [0.0] * k
    stop = time.monotonic() + seconds

    def keep_busy(number: int) -> None:
        done = spent = 0.0
        which = number
        with httpx.Client(base_url=url, timeout=300) as client:
            while time.monotonic() < stop:
                which = (which + 1) % len(ids)
                done += _agent_s([alone[which]])
                spent += _agent_s([_talk(client, ids[which], QUESTIONS, ())])
        rates[number] = done / spent

    _in_threads(keep_busy, [(number,) for number in range(k)])
    return sum(rates)


def _arrivals(
    ids: Sequence[str], work: float, n: int, utilisation: float, seed: int
) -> list[tuple[float, int, list[float]]]:
    """(start, which dialogue, pauses before its turns) of ``n`` Poisson dialogues."""
    rng = random.Random(seed)
    plan, now = [], 0.0
    for _ in range(n):
        now += rng.expovariate(utilisation / work)
        pauses = [0.0, *(rng.expovariate(1 / PAUSE_S) for _ in QUESTIONS[1:])]
        plan.append((now, rng.randrange(len(ids)), pauses))
    return plan


def _open_loop(
    url: str, ids: Sequence[str], plan: Sequence[tuple[float, int, list[float]]]
) -> tuple[list[float], list[str]]:
    real: list[float] = []
    failed: list[str] = []
    began = time.monotonic()

    def one(start: float, which: int, pauses: list[float]) -> None:
        time.sleep(max(0.0, began + start - time.monotonic()))
        try:
            with httpx.Client(base_url=url, timeout=300) as client:
                turns = _talk(client, ids[which], QUESTIONS, pauses)
            real.extend(turn["total_s"] for turn in turns)
        except httpx.HTTPError as error:
            failed.append(str(error))

    _in_threads(one, plan)
    return real, failed


def _in_threads(run: Any, arguments: Sequence[tuple[Any, ...]]) -> None:
    threads = [threading.Thread(target=run, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _compare(
    real: list[float],
    alone: list[list[dict[str, Any]]],
    plan: Sequence[tuple[float, int, list[float]]],
    speed: dict[int, float],
    seed: int,
) -> dict[str, Any]:
    """The real turns beside two simulations: with the speeds measured, and with none but 1."""
    dialogues = [
        Dialogue(
            start,
            tuple(
                Turn(visits(**work), pause)
                for work, pause in zip(alone[which], pauses, strict=True)
            ),
        )
        for start, which, pauses in plan
    ]
    answer: dict[str, Any] = {"dialogues": len(plan), "turns": len(real), "real": _summary(real)}
    for name, of_agent in (("simulated", speeds(speed)), ("simulated_at_speed_1", (1.0,))):
        sizes = {
            one: Size(1, slots=16, speed=of_agent if one == "agent" else (1.0,)) for one in STATIONS
        }
        turns = [seconds for _, seconds in simulate(dialogues, sizes, seed=seed).turns]
        answer[name] = _summary(turns)
        answer[f"{name}_over_real"] = {
            key: round(value / answer["real"][key], 2) for key, value in answer[name].items()
        }
    return answer


def _summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    pick = {"p50_s": 0.5, "p95_s": 0.95}
    found = {k: ordered[min(len(ordered) - 1, int(q * len(ordered)))] for k, q in pick.items()}
    return {"mean_s": round(statistics.fmean(ordered), 3)} | {
        k: round(v, 3) for k, v in found.items()
    }
