"""The HTTP app with the real parts in this process: what needs no Ray to be seen."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from ecg_agent_ray import ecg
from ecg_agent_ray.errors import ServiceError
from ecg_agent_ray.serving import ServiceConfig, create_app
from ecg_agent_ray.serving.access import Services
from ecg_agent_ray.serving.config import (
    DeploymentConfig,
    DeploymentsConfig,
    LimitsConfig,
    TimeoutsConfig,
)
from ecg_agent_ray.serving.store import EcgMeta, EcgStore
from ecg_agent_ray.serving.tool_replicas import MeasurementReplica

LOCAL = {"host": "localhost"}


class InProcess:
    """A backend whose measurement is the deployment's own class; the other parts are away."""

    def __init__(self, config: ServiceConfig) -> None:
        self._measurement = MeasurementReplica(config)
        self.uploads = 0
        self.hold: asyncio.Event | None = None

    async def add_ecg(
        self, files: Sequence[tuple[str, bytes]], owner: str, ecg_id: str | None = None
    ) -> EcgMeta:
        self.uploads += 1
        if self.hold is not None:
            await self.hold.wait()
        return await self._measurement.add_ecg(files, owner, ecg_id)

    async def add_sample(self, record_id: str, owner: str) -> EcgMeta:
        return await self._measurement.add_sample(record_id, owner)

    async def signal(self, ecg_id: str, options: Mapping[str, Any]) -> bytes:
        return await self._measurement.signal(ecg_id, options)

    async def plot(self, ecg_id: str, options: Mapping[str, Any]) -> bytes:
        return await self._measurement.plot(ecg_id, options)

    async def tool(self, name: str, ecg_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
        return await getattr(self._measurement, name)(ecg_id, options)

    def chat(self, turn: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        raise NotImplementedError

    async def status(self) -> dict[str, dict[str, Any]]:
        return {
            "measurement": await self._measurement.status(),
            "classification": {"ready": False, "problem": "away"},
            "agent": {"ready": False, "problem": "away"},
        }


def services_in(folder: Path, **changes: Any) -> Services:
    config = ServiceConfig(store=str(folder / "ecgs"), **changes).resolved()
    assert config.store is not None
    return Services(
        config=config, backend=InProcess(config), store=EcgStore(config.store), tokens=None
    )


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return services_in(tmp_path)


def client_of(services: Services) -> TestClient:
    return TestClient(create_app(services), "http://localhost", client=("127.0.0.1", 1))


def sample_parts(index: int = 0) -> list[tuple[str, tuple[str, bytes]]]:
    header = ecg.samples()[index]
    paths = (header, header.with_suffix(".dat"))
    return [("files", (path.name, path.read_bytes())) for path in paths]


def test_a_repeated_upload_is_the_first_one(services: Services) -> None:
    key = {"Idempotency-Key": "order-17"}
    with client_of(services) as client:
        first = client.post("/v1/ecgs", files=sample_parts(), headers=key)
        again = client.post("/v1/ecgs", files=sample_parts(), headers=key)
        other = client.post("/v1/ecgs", files=sample_parts())
        misused = client.post("/v1/ecgs", files=sample_parts(1), headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert other.json()["id"] != first.json()["id"]
    assert misused.status_code == 422
    assert "idempotency key" in misused.json()["detail"]


def test_a_refused_upload_frees_its_key(services: Services) -> None:
    key = {"Idempotency-Key": "order-18"}
    with client_of(services) as client:
        refused = client.post("/v1/ecgs", files=[("files", ("x.edf", b"no"))], headers=key)
        taken = client.post("/v1/ecgs", files=sample_parts(), headers=key)
    assert refused.status_code in (415, 422)
    assert taken.status_code == 201


def test_two_uploads_with_one_key_at_once(services: Services) -> None:
    """One is made; the other is told to wait and then gets the same."""
    backend: Any = services.backend

    async def both() -> list[httpx.Response]:
        backend.hold = asyncio.Event()
        transport = httpx.ASGITransport(create_app(services), client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"Idempotency-Key": "order-19"}

            async def send() -> httpx.Response:
                return await client.post("/v1/ecgs", files=sample_parts(), headers=headers)

            first = asyncio.create_task(send())
            while not backend.uploads:
                await asyncio.sleep(0.01)
            second = await send()
            backend.hold.set()
            return [await first, second, await send()]

    first, second, third = asyncio.run(both())
    assert second.status_code == 409
    assert second.headers["retry-after"] == "1"
    assert second.headers["content-type"] == "application/problem+json"
    assert (first.status_code, third.status_code) == (201, 201)
    assert third.json() == first.json()
    assert backend.uploads == 1


def test_too_many_at_once_are_told_when_to_come_back(tmp_path: Path) -> None:
    sizes = DeploymentsConfig(ingress=DeploymentConfig(max_ongoing_requests=2))
    services = services_in(tmp_path, deployments=sizes)
    backend: Any = services.backend

    async def crowd() -> tuple[list[httpx.Response], httpx.Response]:
        backend.hold = asyncio.Event()
        transport = httpx.ASGITransport(create_app(services), client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            sent = [
                asyncio.create_task(client.post("/v1/ecgs", files=sample_parts())) for _ in range(5)
            ]
            while sum(task.done() for task in sent) < 3:
                await asyncio.sleep(0.01)
            ready = await client.get("/readyz")
            backend.hold.set()
            return [await task for task in sent], ready

    answers, ready = asyncio.run(crowd())
    assert sorted(answer.status_code for answer in answers) == [201, 201, 503, 503, 503]
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["content-type"] == "application/problem+json"
    assert ready.status_code == 200


def test_a_busy_replica_tells_its_status_and_refuses_what_cannot_wait(tmp_path: Path) -> None:
    """Work fills a replica: one more waits its turn, the next is refused, its status comes."""
    size = DeploymentConfig(max_ongoing_requests=2, max_queued_requests=1)
    store = str(tmp_path / "ecgs")
    sizes = DeploymentsConfig(measurement=size)
    config = ServiceConfig(store=store, deployments=sizes).resolved()
    replica = MeasurementReplica(config)
    # Serve must let in what the replica is to refuse, and its status
    assert size.options({}, let_in=size.most_let_in)["max_ongoing_requests"] > 2 + 1
    free = threading.Event()

    def work() -> str:
        assert free.wait(60)
        return "done"

    async def crowd() -> tuple[dict[str, Any], list[str | BaseException]]:
        calls = [asyncio.create_task(replica.work.run(work)) for _ in range(4)]
        while not calls[3].done():
            await asyncio.sleep(0.01)
        status = await replica.status()
        free.set()
        return status, await asyncio.gather(*calls, return_exceptions=True)

    status, results = asyncio.run(crowd())
    assert status["ready"] is True
    assert results[:3] == ["done"] * 3
    assert isinstance(results[3], ServiceError)


def test_a_body_that_trickles_is_ended(tmp_path: Path) -> None:
    services = services_in(tmp_path, timeouts=TimeoutsConfig(body_s=0.2))

    async def trickle() -> AsyncIterator[bytes]:
        yield b"--b\r\n"
        await asyncio.sleep(30)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(services), client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"content-type": "multipart/form-data; boundary=b"}
            return await client.post("/v1/ecgs", content=trickle(), headers=headers)

    answer = asyncio.run(asyncio.wait_for(send(), 20))
    assert answer.status_code == 408
    assert answer.headers["content-type"] == "application/problem+json"


def hangs(_: str) -> None:
    time.sleep(1)


def is_away(_: str) -> None:
    raise ConnectionError("no route to the bucket")


@pytest.mark.parametrize(
    ("failure", "store_s", "says"), [(hangs, 0.1, "too long"), (is_away, 60, "not available")]
)
def test_a_store_that_fails_is_a_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any, store_s: float, says: str
) -> None:
    services = services_in(tmp_path, timeouts=TimeoutsConfig(store_s=store_s))
    monkeypatch.setattr(services.store, "meta", failure)
    with client_of(services) as client:
        answer = client.get("/v1/ecgs/ecg_" + "0" * 32)
    assert answer.status_code == 503
    assert says in answer.json()["detail"]
    assert "bucket" not in answer.text
    assert int(answer.headers["retry-after"]) > 0


def test_drift_is_counted_per_lead_configuration(services: Services) -> None:
    with client_of(services) as client:
        ecg_id = client.post("/v1/ecgs", files=sample_parts()).json()["id"]
        measured = client.post(f"/v1/ecgs/{ecg_id}/measurement").json()
        text = client.get("/metrics").text
    assert measured["heart_rate_bpm"] is not None
    found = series(text)
    assert found['ecg_agent_uploads_total{format="wfdb",leads="12-lead"}'] == 1
    quality = [v for k, v in found.items() if k.startswith("ecg_agent_lead_quality_total")]
    assert sum(quality) == 12
    rate = 'ecg_agent_measured_values_total{given="true",leads="12-lead",value="heart_rate"}'
    assert found[rate] == 1
    assert ecg_id not in text


def series(text: str) -> dict[str, float]:
    """Every series and its value, without the label that names the replica."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, _, value = line.rpartition(" ")
        assert 'replica="' in name
        found[re.sub(r',?replica="[^"]*"', "", name)] = float(value)
    return found


def test_access_is_audited_and_so_is_its_refusal(services: Services) -> None:
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ecg_agent_ray.audit").addHandler(handler)
    foreign = services.store.add(ecg.sample(3), {}, "somebody-else")
    try:
        with client_of(services) as client:
            ecg_id = client.post("/v1/ecgs", files=sample_parts()).json()["id"]
            assert client.get(f"/v1/ecgs/{foreign.id}").status_code == 404
            client.delete(f"/v1/ecgs/{ecg_id}")
    finally:
        logging.getLogger("ecg_agent_ray.audit").removeHandler(handler)
    assert [re.findall(r"outcome=(\w+) .*ecg=(\w+) method=(\w+)", line)[0] for line in written] == [
        ("granted", ecg_id, "POST"),
        ("refused", foreign.id, "GET"),
        ("granted", ecg_id, "DELETE"),
    ]


def test_the_document_has_examples_and_the_token(services: Services) -> None:
    with client_of(services) as client:
        document = client.get("/openapi.json").json()
        ecg_id = client.post("/v1/ecgs", files=sample_parts()).json()["id"]
        measured = client.post(f"/v1/ecgs/{ecg_id}/measurement").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert ("security" in operation) == path.startswith("/v1/"), (method, path)
    posts = [p for p in document["paths"] if p.startswith("/v1/ecgs/{ecg_id}/")]
    for path in (*posts, "/v1/chat/completions"):
        (operation,) = document["paths"][path].values()
        assert all("example" in c for c in operation["responses"]["200"]["content"].values()), path
    answer = document["paths"]["/v1/ecgs/{ecg_id}/measurement"]["post"]["responses"]["200"]
    assert answer["content"]["application/json"]["example"].keys() == measured.keys()


def test_the_dashboard_asks_for_metrics_that_exist(services: Services) -> None:
    """Every series the dashboard and the alerts name is one that the service counts."""
    folder = Path(__file__).parents[2] / "kube" / "components" / "observability"
    text = (folder / "dashboard.json").read_text() + (folder / "alerts.yaml").read_text()
    # the registry's own metrics come from its exporter, not from the service
    asked = set(re.findall(r"\becg_agent_(?!registry_)[a-z_]+", text))
    known = set()
    for metric in services.metrics.families():
        suffixes = ("_bucket", "_sum", "_count") if metric.type == "histogram" else ("_total", "")
        known |= {metric.name + suffix for suffix in suffixes}
    assert asked <= known
    shown = {name for name in known if name in asked}
    unseen = [
        metric.name
        for metric in services.metrics.families()
        if not any(name.startswith(metric.name) for name in shown)
    ]
    assert unseen == []


def test_limits_stay_what_they_were(tmp_path: Path) -> None:
    services = services_in(tmp_path, limits=LimitsConfig(upload_files=1))
    with client_of(services) as client:
        assert client.post("/v1/ecgs", files=sample_parts()).status_code == 400
