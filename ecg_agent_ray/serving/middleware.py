"""What every request passes before a route sees it, as plain ASGI so that streams stay streams."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.trace import INVALID_SPAN, Span
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ecg_agent_ray.serving.config import LimitsConfig, is_loopback
from ecg_agent_ray.serving.problems import problem
from ecg_agent_ray.serving.tracing import span

__all__ = ["Admission", "BodyLimit", "LocalOnly", "RequestContext"]

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}

Observer = Callable[[str, str, int, float], None]
"""Called with method, route template, status and seconds after each request."""


class RequestContext:
    """Request id, security headers, one log line, one observation per request.

    Serve takes the client's ``X-Request-Id`` or makes one, and sends it back; here it reaches the
    problem bodies and the log.
    """

    def __init__(self, app: ASGIApp, observe: Observer) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if _REQUEST_ID.fullmatch(offered) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            with _span_of(scope) as traced:
                try:
                    await self._app(scope, receive, send_with_headers)
                finally:
                    traced.update_name(f"{scope['method']} {_route_of(scope)}")
                    traced.set_attribute("http.response.status_code", status)
        finally:
            seconds = time.perf_counter() - started
            route = _route_of(scope)
            self._observe(scope["method"], route, status, seconds)
            _log.info(
                "request id=%s method=%s route=%s status=%d ms=%.1f",
                request_id,
                scope["method"],
                route,
                status,
                seconds * 1000,
            )


def _span_of(scope: Scope) -> AbstractContextManager[Span]:
    """The request's span, within the client's trace where it sent one."""
    if not scope["path"].startswith("/v1/"):
        return contextlib.nullcontext(INVALID_SPAN)
    headers = Headers(scope=scope)
    parent = {key: headers[key] for key in ("traceparent", "tracestate") if key in headers}
    return span(scope["method"], parent, request_id=scope["state"]["request_id"])


def _route_of(scope: MutableMapping[str, Any]) -> str:
    # the template, not the path: ids are no one's business in logs and would flood the metrics
    return str(getattr(scope.get("route"), "path", "(none)"))


class Admission:
    """503 with Retry-After for requests beyond ``most`` at the same time.

    Serve's own refusals at the proxy are plain text, so this bound lies below Serve's. Health,
    readiness and metrics always answer: an overloaded service is not a broken one.
    """

    ALWAYS = frozenset({"/healthz", "/readyz", "/metrics"})

    def __init__(self, app: ASGIApp, most: int, on_refusal: Callable[[], None]) -> None:
        self._app = app
        self._most = most
        self._on_refusal = on_refusal
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.ALWAYS:
            await self._app(scope, receive, send)
            return
        if self._running >= self._most:
            self._on_refusal()
            refusal = problem(
                503, "the service is overloaded", request_id=scope["state"]["request_id"]
            )
            await refusal(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1


class BodyLimit:
    """413 for a body larger than its route may have, whether or not it announces its length.

    408 for one that takes longer than ``body_s`` seconds to arrive.
    """

    def __init__(self, app: ASGIApp, limits: LimitsConfig, upload_path: str, body_s: float) -> None:
        self._app = app
        self._limits = limits
        self._body_s = body_s
        self._upload_path = upload_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"].rstrip("/") == self._upload_path
        # multipart framing costs a few hundred bytes a part
        most = (
            self._limits.upload_bytes + 4096 * (self._limits.upload_files + 1)
            if is_upload
            else self._limits.json_bytes
        )
        too_large = problem(
            413,
            f"the request body is larger than {most} bytes",
            request_id=scope["state"]["request_id"],
            headers={"Connection": "close"},
        )
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal() or int(announced) > most:
            await too_large(scope, receive, send)
            return
        too_slow = problem(
            408,
            f"the request body did not arrive within {self._body_s:g} s",
            request_id=scope["state"]["request_id"],
            headers={"Connection": "close"},
        )
        received = 0
        deadline = asyncio.get_running_loop().time() + self._body_s
        complete = False
        refusal: Response | None = None
        started = False

        async def counted_receive() -> Message:
            nonlocal received, complete, refusal
            if complete:
                # what comes now is the client's leaving, which streams wait for
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                refusal = too_slow
                return {"type": "http.disconnect"}
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received > most:
                    refusal = too_large
                    return {"type": "http.disconnect"}
            return message

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if refusal is not None and not started:
                return
            started = True
            await send(message)

        try:
            await self._app(scope, counted_receive, guarded_send)
        except Exception:
            if refusal is None:
                raise
        if refusal is not None and not started:
            await refusal(scope, receive, send)


class LocalOnly:
    """While no tokens exist, answer this machine alone.

    The client's address must be loopback, and so must the Host header: a web page elsewhere that
    points its own name at 127.0.0.1 (DNS rebinding) would otherwise read ECGs through the user's
    browser. For the same reason a request whose Origin is another site is refused.
    """

    def __init__(self, app: ASGIApp, is_open: Callable[[], bool]) -> None:
        self._app = app
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._is_open():
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client = (scope.get("client") or ("",))[0]
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        origin = headers.get("origin", "")
        same_origin = not origin or urlsplit(origin).netloc == headers.get("host", "")
        if (client and not is_loopback(client)) or not is_loopback(host) or not same_origin:
            refusal = problem(
                403,
                "without API tokens only this machine is answered",
                request_id=scope["state"]["request_id"],
                hint="make tokens with `ecg-agent tokens create` and set ECG_AGENT_API_TOKENS",
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)
