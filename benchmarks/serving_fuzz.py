"""Requests that no client would make: generated from the OpenAPI document, and damaged files."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from typing import Any

import httpx
import psutil
from serving_load import Bench

from ecg_agent_ray import ecg

CHUNKS = 5


def fuzz(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Four fifths from the document, one fifth damaged ECGs, in chunks; memory after each."""
    statuses: Counter[str] = Counter()
    memory, faults = [], []
    ecg_id = bench.ecgs(1)[0]
    files = args.requests // 5
    with bench.client() as client:
        document = client.get("/openapi.json").json()
        for chunk in range(CHUNKS):
            per_chunk = (args.requests - files) // CHUNKS
            faults += _from_document(bench, document, ecg_id, per_chunk, chunk, statuses)
            left = args.requests - sum(statuses.values())
            # an operation without parameters has few different requests: files fill the rest
            count = files // CHUNKS if chunk < CHUNKS - 1 else max(left, files // CHUNKS)
            faults += _damaged(client, count, chunk, statuses)
            memory.append(_memory(bench))
    # the first chunk fills caches; what grows after it would grow for ever
    growth = {kind: memory[-1][kind] - memory[0][kind] for kind in memory[0] if kind in memory[-1]}
    return {
        "requests": sum(statuses.values()),
        "statuses": dict(sorted(statuses.items())),
        "memory_mib_after_each_chunk": memory,
        "growth_after_first_chunk_mib": growth,
        "faults": faults,
    }


def _from_document(
    bench: Bench,
    document: dict[str, Any],
    ecg_id: str,
    count: int,
    seed: int,
    statuses: Counter[str],
) -> list[str]:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    operations = [
        found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()
    ]
    faults: list[str] = []
    each = -(-count // len(operations))
    for operation in operations:

        @seeded(seed)
        @settings(
            max_examples=each,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            # a stored ECG half the time, so that what lies behind the id is reached
            if "ecg_id" in (case.path_parameters or {}) and random.random() < 0.5:
                case.path_parameters["ecg_id"] = ecg_id
            if case.method == "DELETE" and case.path_parameters.get("ecg_id") == ecg_id:
                return
            try:
                answer = case.call(base_url=bench.url, headers=bench.headers(), timeout=120)
            except Exception as error:  # what the client library refuses to send is no request
                statuses[f"client {type(error).__name__}"] += 1
                return
            statuses[str(answer.status_code)] += 1
            if answer.status_code >= 500 and answer.status_code != 503:
                faults.append(f"{answer.status_code} at {case.method} {case.formatted_path[:200]}")

        ask()
    return faults


def _damaged(client: httpx.Client, count: int, seed: int, statuses: Counter[str]) -> list[str]:
    generator = random.Random(seed)
    faults = []
    paths = ecg.samples()
    for _ in range(count):
        header = generator.choice(paths)
        contents = {p.name: p.read_bytes() for p in (header, header.with_suffix(".dat"))}
        victim = generator.choice(sorted(contents))
        contents[victim] = _damage(contents[victim], generator)
        parts = [("files", named) for named in contents.items()]
        answer = client.post("/v1/ecgs", files=parts)
        statuses[str(answer.status_code)] += 1
        if answer.status_code == 201:
            client.delete(f"/v1/ecgs/{answer.json()['id']}")
        elif answer.status_code >= 500 and answer.status_code != 503:
            faults.append(f"{answer.status_code} for a damaged {victim}: {answer.text[:200]}")
    return faults


def _damage(content: bytes, generator: random.Random) -> bytes:
    body = bytearray(content)
    way = generator.choice(("flip", "cut", "repeat", "insert"))
    position = generator.randrange(len(body))
    if way == "flip":
        for _ in range(generator.randrange(1, 20)):
            body[generator.randrange(len(body))] = generator.randrange(256)
    elif way == "cut":
        del body[position:]
    elif way == "repeat":
        body[position:position] = body[: min(2000, position)]
    else:
        body[position:position] = generator.randbytes(generator.randrange(1, 40))
    return bytes(body)


def _memory(bench: Bench) -> dict[str, float]:
    """MiB of unshared memory per kind of replica."""
    found: Counter[str] = Counter()
    for process in bench.processes("ray::ServeReplica:ecg-agent:"):
        try:
            kind = process.name().split(":")[4].split("#")[0].split(".")[0]
            found[kind] += process.memory_full_info().uss / 2**20
        except (psutil.Error, IndexError):
            continue
    return {kind: round(value, 1) for kind, value in found.items()}
