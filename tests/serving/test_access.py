"""Tokens, ownership, and what an open service answers."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from ecg_agent_ray.errors import ConfigError, InputError
from ecg_agent_ray.serving import ServiceConfig, TokenFile
from ecg_agent_ray.serving.access import RateLimiter
from ecg_agent_ray.serving.config import is_loopback
from ecg_agent_ray.serving.middleware import LocalOnly


def test_without_a_token_nothing_is_told(service: Any, ecg_id: str) -> None:
    with service.client(None) as client:
        for path in (f"/v1/ecgs/{ecg_id}", "/v1/models", "/v1/samples"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["content-type"] == "application/problem+json"
        assert client.post("/v1/chat/completions", json={}).status_code in (401, 422)
        assert client.get("/healthz").status_code == 200
        wrong = {"Authorization": "Bearer ecga_wrong"}
        assert client.get("/v1/models", headers=wrong).status_code == 401


def test_another_owner_finds_nothing(service: Any, ecg_id: str) -> None:
    with service.client("bob") as client:
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("GET", "/signal"),
            ("GET", "/plot.svg"),
            ("POST", "/measurement"),
            ("POST", "/classification"),
        ):
            assert client.request(method, f"/v1/ecgs/{ecg_id}{path}").status_code == 404
        chat = {
            "model": "ecg-agent",
            "messages": [{"role": "user", "content": "hello"}],
            "ecg_agent": {"ecg_id": ecg_id},
        }
        assert client.post("/v1/chat/completions", json=chat).status_code == 404


def test_a_scope_is_needed(service: Any) -> None:
    with service.client("reader") as client:
        chat = {"model": "ecg-agent", "messages": [{"role": "user", "content": "hello"}]}
        answer = client.post("/v1/chat/completions", json=chat)
        assert answer.status_code == 403
        assert answer.json()["title"] == "Forbidden"


def test_tokens_change_without_restart(service: Any) -> None:
    tokens = TokenFile(service.tokens_file)
    late = tokens.create("late", ["read"])
    headers = {"Authorization": f"Bearer {late}"}
    with service.client(None) as client:
        assert client.get("/v1/samples", headers=headers).status_code == 200
        tokens.revoke("late")
        assert client.get("/v1/samples", headers=headers).status_code == 401


def test_token_file_keeps_digests_only(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = TokenFile(path).create("a", ["read", "chat"])
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = TokenFile(path).find(token)
    assert found is not None
    assert (found.name, found.scopes) == ("a", frozenset({"read", "chat"}))
    assert TokenFile(path).find(token + "x") is None


@pytest.mark.parametrize(
    ("name", "scopes"), [("a", ["read"]), ("no:colons", ["read"]), ("b", ["root"]), ("b", [])]
)
def test_faulty_tokens_are_refused(tmp_path: Path, name: str, scopes: list[str]) -> None:
    tokens = TokenFile(tmp_path / "tokens")
    tokens.create("a", ["read"])
    with pytest.raises(InputError):
        tokens.create(name, scopes)


def test_a_broken_tokens_file_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = TokenFile(path).create("a", ["admin"])
    path.write_text(path.read_text() + "b:nodigest:read\n")
    with pytest.raises(ConfigError, match="name:sha256:scopes"):
        TokenFile(path).find(token)


def test_no_open_port_beyond_this_machine_without_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without API tokens"):
        ServiceConfig(host="0.0.0.0").check_exposure()
    ServiceConfig(host="0.0.0.0", tokens_file=tmp_path / "t").check_exposure()
    ServiceConfig(host="0.0.0.0", allow_unauthenticated=True).check_exposure()
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "[::1]", "localhost", "127.9.9.9")]
    assert not any(is_loopback(h) for h in ("0.0.0.0", "10.0.0.1", "localhost.evil.org", "", "::"))


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:8000"}, 204),
        ("127.0.0.1", {"host": "localhost:8000", "origin": "http://localhost:8000"}, 204),
        ("10.1.2.3", {"host": "127.0.0.1:8000"}, 403),
        ("127.0.0.1", {"host": "rebound.example"}, 403),
        ("127.0.0.1", {"host": "localhost:8000", "origin": "https://evil.example"}, 403),
    ],
)
def test_an_open_service_answers_this_machine_alone(
    client: str, headers: dict[str, str], status: int
) -> None:
    async def hello(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def with_state(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = {"request_id": "r"}
        await LocalOnly(hello, is_open=lambda: True)(scope, receive, send)

    async def ask() -> int:
        transport = httpx.ASGITransport(with_state, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return (await http.get("/", headers=headers)).status_code

    assert asyncio.run(ask()) == status


def test_rate_limit_lets_a_burst_through_and_then_waits() -> None:
    limiter = RateLimiter(6)
    waits = [limiter.seconds_to_wait("a") for _ in range(7)]
    assert waits[:6] == [0.0] * 6
    assert 9 < waits[6] <= 10
    assert limiter.seconds_to_wait("b") == 0.0
    assert RateLimiter(None).seconds_to_wait("a") == 0.0
