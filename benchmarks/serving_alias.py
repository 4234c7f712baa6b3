"""The champion changes while measurements come at a steady rate and dialogues go on."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp
import mlflow
from serving_load import Bench, Tally

from ecg_agent_ray.plugins.tracking import configure, tracked_run
from ecg_agent_ray.registry import log_classifier, resolve

NAME = "ecg-classifier"
QUESTIONS = ("What is the heart rate?", "Which findings does it show?", "Thank you, goodbye!")
_SETTLE_S = 5.0
_LIMIT_S = 120.0


def registry(folder: Path) -> str:
    """URI of a store with the shipped classifier as versions 1, the champion, and 2."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    configure(uri, artifact_root=folder / "artifacts", experiment="bench")
    for alias in ("champion", None):
        with tracked_run("register") as run:
            pass
        log_classifier(resolve("builtin:classifier"), run_id=run.run_id, alias=alias)
    return uri


def alias(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """The classifier's champion moved under load; any answer but 200 is a fault."""
    clients = _Clients(bench)
    begun = time.monotonic()
    changed_after = asyncio.run(clients.work(args))
    lasted = time.monotonic() - begun
    tallies, seconds = clients.tallies, clients.seconds
    return {
        "seconds": round(lasted, 1),
        "rate_asked_per_s": args.rate,
        "rate_answered_per_s": round(tallies["measurement"].statuses["200"] / lasted, 2),
        "measurement_p50_ms": round(1000 * statistics.median(seconds), 1),
        "measurement_p99_ms": round(1000 * statistics.quantiles(seconds, n=100)[98], 1),
        "dialogues": args.dialogues,
        "changed_after_s": [round(value, 1) for value in changed_after],
        "statuses": {kind: dict(tally.statuses) for kind, tally in tallies.items()},
        "faults": [
            f"{kind}: {fault}"
            for kind, tally in tallies.items()
            for fault in tally.faults(allowed=("200",))
        ],
    }


class _Clients:
    """Those of all kinds at once, and what they saw."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._ids = bench.ecgs(200)
        self._over = False
        self._session: Any = None
        self.tallies = {kind: Tally() for kind in ("measurement", "classification", "chat")}
        self.seconds: list[float] = []
        self._models: list[tuple[float, str]] = []

    async def work(self, args: argparse.Namespace) -> list[float]:
        """Until the champion has moved as often as asked; seconds from each move to its effect."""
        timeout, connector = aiohttp.ClientTimeout(total=300), aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._measure(group, args.rate))
            group.create_task(self._classify())
            for number in range(args.dialogues):
                group.create_task(self._talk(number))
            changes = group.create_task(self._change(args.moves))
        return changes.result()

    async def _ask(self, kind: str, path: str, body: Any = None) -> Any:
        url, headers = self._bench.url + path, self._bench.headers()
        try:
            async with self._session.post(url, json=body, headers=headers) as answer:
                found = await answer.json(content_type=None)
                self.tallies[kind].add(str(answer.status))
                return found if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self.tallies[kind].add(type(error).__name__)
            return None

    async def _measure(self, group: asyncio.TaskGroup, rate: float) -> None:
        """``rate`` requests a second, however long the answers take."""

        async def one(ecg_id: str) -> None:
            begun = time.monotonic()
            await self._ask("measurement", f"/v1/ecgs/{ecg_id}/measurement")
            self.seconds.append(time.monotonic() - begun)

        begun = time.monotonic()
        for number, ecg_id in enumerate(itertools.cycle(self._ids), 1):
            if self._over:
                return
            group.create_task(one(ecg_id))
            await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))

    async def _classify(self) -> None:
        for ecg_id in itertools.cycle(self._ids):
            if self._over:
                return
            found = await self._ask("classification", f"/v1/ecgs/{ecg_id}/classification")
            if found:
                self._models.append((time.monotonic(), found["model"]))
            await asyncio.sleep(0.5)

    async def _talk(self, number: int) -> None:
        for ecg_id in itertools.cycle(self._ids[number:]):
            messages: list[dict[str, str]] = []
            for question in QUESTIONS:
                if self._over:
                    return
                messages.append({"role": "user", "content": question})
                body = {"model": "ecg-agent", "messages": messages, "ecg_agent": {"ecg_id": ecg_id}}
                found = await self._ask("chat", "/v1/chat/completions", body)
                said = found["choices"][0]["message"]["content"] if found else "(no answer)"
                messages.append({"role": "assistant", "content": said})

    async def _change(self, moves: int) -> list[float]:
        took = []
        client = mlflow.MlflowClient(self._bench.registry)
        for version in itertools.islice(itertools.cycle("21"), moves):
            await asyncio.sleep(_SETTLE_S)
            moved = time.monotonic()
            await asyncio.to_thread(client.set_registered_model_alias, NAME, "champion", version)
            took.append(await self._answered_by(f"models:/{NAME}/{version}", moved))
        await asyncio.sleep(_SETTLE_S)
        self._over = True
        return took

    async def _answered_by(self, uri: str, since: float) -> float:
        """Seconds from ``since`` to the first of six answers in a row by ``uri``."""
        while time.monotonic() - since < _LIMIT_S:
            after = [(when, model) for when, model in self._models if when > since][-6:]
            if len(after) == 6 and all(model == uri for _, model in after):
                return after[0][0] - since
            await asyncio.sleep(0.2)
        raise TimeoutError(f"{uri} did not answer within {_LIMIT_S:.0f} s")
