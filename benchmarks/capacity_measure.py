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
import psutil
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

_Turns = list[dict[str, Any]]
_Plan = list[tuple[float, int, list[float]]]  # start, which dialogue, pauses before its turns


class WorkClock:
    """Time of the agent's replica: its CPU seconds while anybody waits for it, else seconds.

    On a machine with other work a second of waiting is not a second of the service; the replica's
    own CPU time (one thread of torch) is. Two requests that run on two cores at once look no faster
    on this clock: gains of running together are not seen.
    """

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._waiting = 0
        self._time = 0.0
        self._seen = time.monotonic(), self._cpu()
        self.busy_wall_s = self.busy_cpu_s = 0.0

    def _cpu(self) -> float:
        used = self._process.cpu_times()
        return float(used.user + used.system)

    def _advance(self) -> float:
        wall, cpu = time.monotonic(), self._cpu()
        d_wall, d_cpu = wall - self._seen[0], cpu - self._seen[1]
        self._seen = wall, cpu
        if self._waiting:
            self.busy_wall_s, self.busy_cpu_s = self.busy_wall_s + d_wall, self.busy_cpu_s + d_cpu
        self._time += d_cpu if self._waiting else d_wall
        return self._time

    def now(self, waiting: int = 0) -> float:
        """The time; ``waiting`` is 1 where a request begins here, -1 where one ends."""
        with self._lock:
            told = self._advance()
            self._waiting += waiting
            return told

    def sleep_until(self, when: float) -> None:
        while self.now() < when:
            time.sleep(0.02)


def measure(n: int, together: int, utilisation: float, seed: int) -> dict[str, Any]:
    """Service times of ``n`` dialogues, then ``together`` of them as Poisson arrivals.

    In this order, since answers that were given before come faster (drafts, encoded prompts, tool
    outputs): each dialogue for the first time, which `estimate` takes; each again; the arrivals;
    each again. The arrivals are compared with simulations from either times.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = load_service_config("local").model_copy(update={"port": 0, "store": folder})
        agent = config.deployments.agent.model_copy(update={"threads": 1})
        config = config.model_copy(
            update={"deployments": config.deployments.model_copy(update={"agent": agent})}
        )
        began = time.monotonic()
        with running_service(config) as url, httpx.Client(base_url=url, timeout=600) as client:
            warm_up, *ids = [_upload(client, path) for path in ecg.samples()[: n + 1]]
            clock = WorkClock(_agent_process())
            _talk(client, clock, warm_up)  # loads the models
            start_s = time.monotonic() - began
            first, before = ([_talk(client, clock, one) for one in ids] for _ in range(2))
            plan = _arrivals(len(ids), _agent_s(before) / len(ids), together, utilisation, seed)
            real, failed = _open_loop(url, clock, ids, plan)
            after = [_talk(client, clock, one) for one in ids]
    again = [
        [_mean(*turns) for turns in zip(*both, strict=True)]
        for both in zip(before, after, strict=True)
    ]
    new = [[_work(turn) for turn in one] for one in first]
    return {
        "source": "CPU seconds of the agent's replica, one thread, serve_configs/local.yaml, "
        "the shipped agent; measured by benchmarks/capacity.py",
        "hardware": hardware(),
        "replica_start_s": round(start_s, 1),
        "dialogues": new,
        "comparison": {
            "utilisation_of_the_agent": utilisation,
            "pause_s": PAUSE_S,
            "dialogues": len(plan),
            "turns": len(real),
            "failed": failed,
            "wall_over_cpu_of_the_replica": round(clock.busy_wall_s / clock.busy_cpu_s, 2),
            "first_over_again": round(_agent_s(first) / _agent_s(before), 2),
            "after_over_before": round(_agent_s(after) / _agent_s(before), 2),
            "real": _summary(real),
            **_simulated("simulated", real, again, plan, seed),
            **_simulated("simulated_from_first", real, new, plan, seed),
        },
    }


def _agent_process() -> psutil.Process:
    for process in psutil.Process().children(recursive=True):
        if " ".join(process.cmdline()).startswith("ray::ServeReplica:ecg-agent:agent"):
            return process
    raise RuntimeError("the agent's replica is no child of this process")


def _upload(client: httpx.Client, path: Path) -> str:
    parts = [p for p in sorted(path.parent.glob(f"{path.stem}.*")) if p.suffix in (".hea", ".dat")]
    files = [("files", (part.name, part.read_bytes())) for part in parts]
    answer = client.post("/v1/ecgs", files=files)
    answer.raise_for_status()
    return str(answer.json()["id"])


def _talk(
    client: httpx.Client, clock: WorkClock, ecg_id: str, pauses: Sequence[float] = ()
) -> _Turns:
    messages: list[dict[str, str]] = []
    turns: _Turns = []
    steps: list[Any] = []
    for number, question in enumerate(QUESTIONS):
        if pauses and number:
            clock.sleep_until(clock.now() + pauses[number])
        messages.append({"role": "user", "content": question})
        body = {
            "model": "ecg-agent",
            "messages": messages,
            "ecg_agent": {"ecg_id": ecg_id, "include_steps": True, "steps": steps},
        }
        asked = clock.now(1)
        try:
            answer = client.post("/v1/chat/completions", json=body)
        finally:
            agent_s = clock.now(-1) - asked
        answer.raise_for_status()
        said = answer.json()
        new = said["ecg_agent"]["steps"]
        messages.append({"role": "assistant", "content": said["choices"][0]["message"]["content"]})
        steps = [*steps, *new]
        turns.append({"agent_s": agent_s, "steps": new})
    return turns


def _work(turn: dict[str, Any]) -> dict[str, Any]:
    tools: dict[str, float] = {}
    for step in turn["steps"]:
        station = "measurement" if "measure" in step["tool"] else "classification"
        tools[station] = tools.get(station, 0.0) + step["ms"] / 1000
    return {
        "agent_s": round(turn["agent_s"], 4),
        "tools": {k: round(v, 4) for k, v in tools.items()},
    }


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


def _arrivals(kinds: int, work: float, n: int, utilisation: float, seed: int) -> _Plan:
    """``n`` Poisson dialogues of so much work each."""
    rng = random.Random(seed)
    plan, now = [], 0.0
    for _ in range(n):
        now += rng.expovariate(utilisation / work)
        pauses = [0.0, *(rng.expovariate(1 / PAUSE_S) for _ in QUESTIONS[1:])]
        plan.append((now, rng.randrange(kinds), pauses))
    return plan


def _open_loop(
    url: str, clock: WorkClock, ids: Sequence[str], plan: _Plan
) -> tuple[list[float], list[str]]:
    real: list[float] = []
    failed: list[str] = []
    began = clock.now()

    def one(start: float, which: int, pauses: list[float]) -> None:
        clock.sleep_until(began + start)
        try:
            with httpx.Client(base_url=url, timeout=600) as client:
                turns = _talk(client, clock, ids[which], pauses)
            real.extend(turn["agent_s"] for turn in turns)
        except httpx.HTTPError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=one, args=each) for each in plan]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return real, failed


def _simulated(
    name: str, real: list[float], alone: list[list[dict[str, Any]]], plan: _Plan, seed: int
) -> dict[str, Any]:
    """Turns of the plan with these times alone, and their ratio to the real ones.

    The agent alone: time in tools is none of its CPU time.
    """
    dialogues = [
        Dialogue(
            start,
            tuple(
                Turn((("agent", work["agent_s"]),), pause)
                for work, pause in zip(alone[which], pauses, strict=True)
            ),
        )
        for start, which, pauses in plan
    ]
    turns = [s for _, s in simulate(dialogues, {"agent": Size(1, slots=16)}, seed=seed).turns]
    told, found = _summary(turns), _summary(real)
    ratios = {key: round(value / found[key], 2) for key, value in told.items()}
    return {name: told, f"{name}_over_real": ratios}


def _summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    pick = {"p50_s": 0.5, "p95_s": 0.95}
    found = {k: ordered[min(len(ordered) - 1, int(q * len(ordered)))] for k, q in pick.items()}
    return {"mean_s": round(statistics.fmean(ordered), 3)} | {
        k: round(v, 3) for k, v in found.items()
    }
