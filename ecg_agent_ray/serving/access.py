"""Who may do what: the FastAPI dependencies that routes declare."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from ecg_agent_ray.errors import ConfigError, ServiceError
from ecg_agent_ray.serving.auth import LOCAL_CALLER, Caller, TokenFile
from ecg_agent_ray.serving.backend import Backend
from ecg_agent_ray.serving.config import ServiceConfig
from ecg_agent_ray.serving.metrics import ServiceMetrics
from ecg_agent_ray.serving.store import EcgMeta, EcgStore

__all__ = ["AnyCaller", "OwnedEcg", "Reader", "Services", "Talker", "owned_ecg", "services_of"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_audit = logging.getLogger("ecg_agent_ray.audit")


class RateLimiter:
    """Token buckets: ``per_minute`` requests a minute for each name, bursts up to that many."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def seconds_to_wait(self, name: str) -> float:
        """0 when the request may go on (and is counted), else seconds until one may."""
        if self._per_minute is None:
            return 0.0
        rate = self._per_minute / 60
        now = time.monotonic()
        left, since = self._buckets.pop(name, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - since) * rate)
        allowed = left >= 1
        self._buckets[name] = (left - 1 if allowed else left, now)
        return 0.0 if allowed else (1 - left) / rate


@dataclass
class Services:
    """What the routes work with; one per ingress replica."""

    config: ServiceConfig
    backend: Backend
    store: EcgStore
    tokens: TokenFile | None
    metrics: ServiceMetrics = field(default_factory=ServiceMetrics)

    def __post_init__(self) -> None:
        self.limiter = RateLimiter(self.config.limits.requests_per_minute)

    @property
    def is_open(self) -> bool:
        return self.tokens is None

    def caller(self, authorization: str) -> Caller:
        """The caller of an ``Authorization`` header.

        Raises:
            HTTPException: 401 without a known token.
            ServiceError: the tokens file cannot be used.
        """
        if self.tokens is None:
            return LOCAL_CALLER
        scheme, _, token = authorization.partition(" ")
        try:
            caller = self.tokens.find(token.strip()) if scheme.lower() == "bearer" else None
        except ConfigError as error:
            raise ServiceError("the service cannot read its tokens") from error
        if caller is None:
            raise HTTPException(
                401, "a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"}
            )
        return caller

    async def stored(self, call: Callable[..., _T], *args: Any) -> _T:
        """A call of the store in a thread, waited for as long as the configuration allows.

        Raises:
            ServiceError: the store does not answer.
        """
        try:
            async with asyncio.timeout(self.config.timeouts.store_s):
                return await run_in_threadpool(call, *args)
        except TimeoutError as error:
            raise ServiceError("the ECG store takes too long") from error
        except OSError as error:
            _log.warning("the ECG store failed", exc_info=True)
            raise ServiceError("the ECG store is not available") from error

    def audit(
        self, request: Request, caller: Caller, ecg_id: str, outcome: str = "granted"
    ) -> None:
        """One line per access to an ECG: who, which, what. No content."""
        _audit.info(
            "access outcome=%s caller=%s ecg=%s method=%s route=%s request=%s",
            outcome,
            caller.name,
            ecg_id,
            request.method,
            getattr(request.scope.get("route"), "path", request.url.path),
            request.state.request_id,
        )


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _requires(scope: str | None) -> Callable[[Request], Awaitable[Caller]]:
    async def dependency(request: Request) -> Caller:
        services = services_of(request)
        caller = services.caller(request.headers.get("authorization", ""))
        if scope is not None and not caller.may(scope):
            raise HTTPException(403, f"this token lacks the scope {scope!r}")
        wait = services.limiter.seconds_to_wait(caller.name)
        if wait:
            raise HTTPException(
                429, "too many requests", headers={"Retry-After": str(int(wait) + 1)}
            )
        return caller

    return dependency


AnyCaller = Annotated[Caller, Depends(_requires(None))]
"""Whoever has a valid token."""

Reader = Annotated[Caller, Depends(_requires("read"))]
"""A caller with the scope ``read``."""

Talker = Annotated[Caller, Depends(_requires("chat"))]
"""A caller with the scope ``chat``."""


async def find_owned(request: Request, caller: Caller, ecg_id: str) -> EcgMeta:
    """The caller's ECG; 404 for another's too, so that nobody learns which ids exist."""
    services = services_of(request)
    meta = await services.stored(services.store.meta, ecg_id)
    if meta is None or meta.owner != caller.name:
        if meta is not None:
            services.audit(request, caller, ecg_id, "refused")
        raise HTTPException(404, "there is no ECG with this id")
    services.audit(request, caller, ecg_id)
    return meta


async def owned_ecg(request: Request, ecg_id: str, caller: Reader) -> EcgMeta:
    return await find_owned(request, caller, ecg_id)


OwnedEcg = Annotated[EcgMeta, Depends(owned_ecg)]
"""The path's ECG, if it is the caller's."""
