"""Clients of the service: one at a time, a crowd, a steady few while parts are killed, owners."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx
import numpy as np
import psutil

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.agent import check_grounding
from ecg_agent_ray.serving.store import EcgStore

REFUSALS = (429, 503)
KINDS = ("ingress", "measurement", "classification", "agent")


@dataclass
class Bench:
    """A running service, its tokens by owner, the URLs of its ECG store and of its registry."""

    url: str
    tokens: dict[str, str]
    store: str
    registry: str | None = None
    _ids: list[str] = field(default_factory=list)

    def headers(self, owner: str = "owner-0") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[owner]}"}

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers(), timeout=120)

    def ecgs(self, count: int) -> list[str]:
        """Ids of ``count`` distinct stored ECGs: shipped records, each with noise of its own."""
        store = EcgStore(self.store)
        records = [ecg.read(path) for path in ecg.samples()]
        while len(self._ids) < count:
            number = len(self._ids)
            base = records[number % len(records)]
            noise = np.random.default_rng(number).normal(0, 0.002, base.signal.shape)
            changed = ecg.Recording(
                signal=(base.signal + noise).astype(np.float32),
                sampling_rate=base.sampling_rate,
                leads=base.leads,
                record_id=f"{base.record_id}-{number}",
            )
            self._ids.append(store.add(changed, {}, "owner-0").id)
        return self._ids[:count]

    def processes(self, name: str) -> list[psutil.Process]:
        """This run's own processes whose name begins so."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if process.name().startswith(name) or name in "".join(process.cmdline()[:1]):
                    found.append(process)
            except psutil.Error:
                continue
        return found


def overhead(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Measurement over HTTP against the plain function, in turns, one in flight."""
    store = EcgStore(bench.store)
    ids = bench.ecgs(args.rounds)
    plain, over_http, hop, described = [], [], [], []
    with bench.client() as client:
        for ecg_id in ids[:10]:
            client.post(f"/v1/ecgs/{ecg_id}/measurement")
        for ecg_id in ids:
            recording = store.recording(ecg_id)
            assert recording is not None
            plain.append(_ms(lambda r=recording: tools.measure(r)))
            path = f"/v1/ecgs/{ecg_id}"
            over_http.append(_ms(lambda p=path: client.post(f"{p}/measurement").raise_for_status()))
            # what the way alone costs: to the ingress and back, and with token, audit, description
            hop.append(_ms(lambda: client.get("/healthz").raise_for_status()))
            described.append(_ms(lambda p=path: client.get(p).raise_for_status()))
    differences = [b - a for a, b in zip(plain, over_http, strict=True)]
    return {
        "requests": len(ids),
        "function_p50_ms": round(statistics.median(plain), 2),
        "http_p50_ms": round(statistics.median(over_http), 2),
        "healthz_p50_ms": round(statistics.median(hop), 2),
        "description_p50_ms": round(statistics.median(described), 2),
        "overhead_p50_ms": round(statistics.median(differences), 2),
        # other work on the machine lengthens some calls of either; their shortest tenths have least
        "overhead_of_p10_ms": round(_p10(over_http) - _p10(plain), 2),
    }


def _p10(times: list[float]) -> float:
    return statistics.quantiles(times, n=10)[0]


def _ms(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


@dataclass
class Request:
    """A POST and whether the body of its 200 is right."""

    path: str
    right: Callable[[Any], bool] = lambda body: True
    body: Any = None


@dataclass
class Tally:
    """What a group of clients saw; ``times`` holds (second, status) of every answer."""

    statuses: Counter[str] = field(default_factory=Counter)
    times: list[tuple[float, str]] = field(default_factory=list)
    wrong: int = 0
    dishonest: int = 0

    def add(self, status: str) -> None:
        self.statuses[status] += 1
        self.times.append((time.monotonic(), status))

    def faults(self, allowed: tuple[str, ...] = ("200", "429", "503")) -> list[str]:
        bad = {s: n for s, n in self.statuses.items() if s not in allowed}
        found = [f"{n} answers {s}" for s, n in bad.items()]
        if self.wrong:
            found.append(f"{self.wrong} wrong answers")
        if self.dishonest:
            found.append(f"{self.dishonest} refusals without Retry-After or problem body")
        return found


async def _client(
    bench: Bench,
    session: aiohttp.ClientSession,
    pick: Callable[[], Request],
    tally: Tally,
    until: Callable[[], bool],
) -> None:
    """Ask again and again; after a refusal wait as long as the service asked for."""
    while not until():
        wanted = pick()
        wait = 0.0
        try:
            async with session.post(
                bench.url + wanted.path, json=wanted.body, headers=bench.headers()
            ) as answer:
                body = await answer.json(content_type=None)
                tally.add(str(answer.status))
                if answer.status == 200 and not wanted.right(body):
                    tally.wrong += 1
                if answer.status in REFUSALS:
                    honest = answer.content_type == "application/problem+json"
                    wait = float(answer.headers.get("Retry-After", "0"))
                    tally.dishonest += not honest or wait <= 0
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
            tally.add(type(error).__name__)
            wait = 0.1
        if wait:
            await asyncio.sleep(min(wait, 5.0) * random.uniform(0.5, 1.0))


async def _group(
    bench: Bench, count: int, pick: Callable[[], Request], body: Awaitable[Any]
) -> tuple[Tally, Any]:
    """``count`` clients at work while ``body`` runs."""
    tally, over = Tally(), asyncio.Event()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        tasks = [
            asyncio.create_task(_client(bench, session, pick, tally, over.is_set))
            for _ in range(count)
        ]
        result = await body
        over.set()
        await asyncio.gather(*tasks)
    return tally, result


def crowd(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Goodput of many clients against that of 8; only 200, 429 and 503 are answers."""
    ids = bench.ecgs(200)

    def pick() -> Request:
        return Request(f"/v1/ecgs/{random.choice(ids)}/measurement")

    report: dict[str, Any] = {"faults": []}
    for name, count, seconds in (
        ("few", 8, min(30.0, args.crowd_s)),
        ("many", args.clients, args.crowd_s),
    ):
        started = time.monotonic()
        tally, _ = asyncio.run(_group(bench, count, pick, asyncio.sleep(seconds)))
        took = time.monotonic() - started
        report[name] = {
            "clients": count,
            "seconds": round(took, 1),
            "goodput_per_s": round(tally.statuses["200"] / took, 2),
            "statuses": dict(tally.statuses),
        }
        report["faults"] += tally.faults()
    few, many = report["few"]["goodput_per_s"], report["many"]["goodput_per_s"]
    report["goodput_ratio"] = round(many / few, 3) if few else None
    return report


def kill(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """kill -9 of one replica of each kind, and of the proxy, while 8 clients use the tools."""
    expected: dict[str, Any] = {}
    with bench.client() as client:
        for ecg_id in bench.ecgs(12):
            for tool in ("measurement", "classification"):
                path = f"/v1/ecgs/{ecg_id}/{tool}"
                answer = client.post(path)
                answer.raise_for_status()
                expected[path] = answer.json()

    def pick() -> Request:
        path = random.choice(list(expected))
        return Request(path, lambda body: body == expected[path])

    return _kill_each(bench, args, pick, clients=8, watch_s=12)


def kill_chat(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """The same while 4 clients talk about two ECGs; each question needs a tool."""
    questions = ("What is the heart rate?", "What does the classifier find in this ECG?")
    expected: dict[str, dict[str, Any]] = {}
    bodies: list[dict[str, Any]] = []
    with bench.client() as client:
        for ecg_id in bench.ecgs(2):
            for question in questions:
                body = {
                    "model": "ecg-agent",
                    "messages": [{"role": "user", "content": question}],
                    "ecg_agent": {"ecg_id": ecg_id, "include_steps": True},
                }
                answer = client.post("/v1/chat/completions", json=body)
                answer.raise_for_status()
                bodies.append(body)
                expected[json.dumps(body)] = _outputs(answer.json())

    def pick() -> Request:
        body = random.choice(bodies)
        known = expected[json.dumps(body)]
        return Request("/v1/chat/completions", lambda got: _right_turn(got, known), body)

    return _kill_each(bench, args, pick, clients=4, watch_s=25)


def _outputs(answer: dict[str, Any]) -> dict[str, Any]:
    return {step["tool"]: step["tool_output"] for step in answer["ecg_agent"]["steps"]}


def _right_turn(answer: dict[str, Any], known: dict[str, Any]) -> bool:
    """Tool outputs as before the kill, and no number in the words that they do not hold.

    The words may differ in a last bit of bf16; a tool that was away is one that failed, not another
    value.
    """
    outputs = _outputs(answer)
    content = answer["choices"][0]["message"]["content"]
    same = all(outputs[tool] == known[tool] for tool in outputs.keys() & known.keys())
    return same and not check_grounding(content, list(outputs.values()))


def _kill_each(
    bench: Bench,
    args: argparse.Namespace,
    pick: Callable[[], Request],
    clients: int,
    watch_s: float,
) -> dict[str, Any]:
    report: dict[str, Any] = {"faults": []}
    for kind in args.kinds or (*KINDS, "proxy"):
        name = f"ray::ServeReplica:ecg-agent:{kind}"
        if kind == "proxy":
            name = "haproxy" if args.haproxy else "ray::ProxyActor"
        victims = bench.processes(name)
        if not victims:
            report["faults"].append(f"no process of {kind} to kill")
            continue
        tally, at = asyncio.run(_group(bench, clients, pick, _kill_and_watch(victims[0], watch_s)))
        after = [when for when, status in tally.times if status == "200" and when > at]
        others = {s: n for s, n in tally.statuses.items() if s != "200"}
        report[kind] = {
            "statuses": dict(tally.statuses),
            "failed": sum(others.values()),
            "next_answer_after_s": round(min(after) - at, 2) if after else None,
            "longest_gap_s": round(_longest_gap([t for t, s in tally.times if s == "200"]), 2),
        }
        if tally.wrong:
            report["faults"].append(f"{kind}: {tally.wrong} wrong answers")
        # in flight on one replica were at most the clients' requests
        if sum(others.values()) > clients and kind != "proxy":
            report["faults"].append(f"{kind}: {others} failed, of {clients} clients")
        _wait_all_ready(bench)
    return report


async def _kill_and_watch(victim: psutil.Process, watch_s: float) -> float:
    await asyncio.sleep(3)
    victim.kill()
    at = time.monotonic()
    await asyncio.sleep(watch_s)
    return at


def _longest_gap(moments: list[float]) -> float:
    ordered = sorted(moments)
    return max((b - a for a, b in itertools.pairwise(ordered)), default=0.0)


def _wait_all_ready(bench: Bench, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    with bench.client() as client:
        while time.monotonic() < deadline:
            with_all = False
            with contextlib.suppress(httpx.HTTPError, ValueError):
                with_all = client.get("/readyz").json().get("degraded") == []
            if with_all and len(bench.processes("ray::ServeReplica:ecg-agent:")) >= 8:
                return
            time.sleep(0.5)


def owners(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """ECGs of random owners; then everybody asks for everybody's."""
    generator = random.Random(1)
    names = list(bench.tokens)
    of: dict[str, tuple[str, int]] = {}
    with httpx.Client(base_url=bench.url, timeout=120) as client:
        for number in range(args.ecgs):
            owner = generator.choice(names)
            answer = client.post("/v1/ecgs", files=_tiny(number), headers=bench.headers(owner))
            answer.raise_for_status()
            of[answer.json()["id"]] = (owner, number)
        own, foreign, faults = 0, 0, []
        for ecg_id, (owner, number) in of.items():
            other = generator.choice([name for name in names if name != owner])
            path = generator.choice(("", "/signal", "/plot.svg"))
            refused = client.get(f"/v1/ecgs/{ecg_id}{path}", headers=bench.headers(other))
            foreign += 1
            if refused.status_code != 404:
                faults.append(f"{other} got {refused.status_code} for an ECG of {owner}")
            answer = client.get(f"/v1/ecgs/{ecg_id}/signal", headers=bench.headers(owner))
            own += 1
            if answer.status_code != 200 or answer.json()["signal"]["II"][0] != number / 1000:
                faults.append(f"{owner} did not get the ECG number {number}")
    return {"ecgs": len(of), "own_reads": own, "foreign_reads": foreign, "faults": faults}


def _tiny(number: int) -> list[tuple[str, tuple[str, bytes]]]:
    """Two seconds of lead II that begin with the number in microvolts."""
    samples = np.zeros(200, "<i2")
    samples[0] = number
    samples[1:] = 100 * np.sin(np.arange(199) / 7)
    content = io.BytesIO(samples.tobytes()).getvalue()
    header = f"r{number} 1 100 200\nr{number}.dat 16 1000/mV 16 0 {number} 0 0 II\n"
    return [
        ("files", (f"r{number}.hea", header.encode())),
        ("files", (f"r{number}.dat", content)),
    ]
