"""The HTTP app: routes, limits, tokens, errors. Everything heavy is behind the backend."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from ecg_agent_ray import __version__
from ecg_agent_ray.errors import ModelNotFoundError
from ecg_agent_ray.serving import routes_chat, routes_ecgs
from ecg_agent_ray.serving.access import AnyCaller, Services, services_of
from ecg_agent_ray.serving.middleware import Admission, BodyLimit, LocalOnly, RequestContext
from ecg_agent_ray.serving.openapi import add_security
from ecg_agent_ray.serving.page import add_page
from ecg_agent_ray.serving.problems import (
    PROBLEM_MEDIA_TYPE,
    PROBLEM_SCHEMA,
    install_problem_handlers,
    problem,
)

__all__ = ["create_app"]

_log = logging.getLogger(__name__)
EXPIRY_PERIOD_S = 60.0
VERSIONS_PERIOD_S = 60.0

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"content": {PROBLEM_MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}, "description": text}
    for status, text in {
        400: "The request is malformed.",
        401: "A bearer token is needed.",
        403: "The token lacks the scope, or the request is not from this machine.",
        404: "No such ECG, model or page.",
        408: "The body arrived too slowly.",
        413: "The body is too large.",
        415: "The file is of no format that is read.",
        422: "The request or the ECG cannot be worked with.",
        429: "Too many requests; see Retry-After.",
        503: "A part is missing or overloaded; see Retry-After.",
    }.items()
}


def create_app(services: Services) -> FastAPI:
    """The ASGI app of one ingress replica."""
    app = FastAPI(
        title="ecg-agent",
        version=__version__,
        summary="Electrocardiograms: upload, measure, classify, explain, and talk about them.",
        description="Not a medical device. Answers are for research and teaching.",
        responses=_PROBLEMS,
        lifespan=_lifespan,
        # FastAPI's own spans and logs hold paths, hence ECG ids; ours do not
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # the interactive pages load their scripts from elsewhere
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    app.include_router(routes_ecgs.router)
    app.include_router(routes_chat.router)
    _add_service_routes(app)
    add_page(app)
    install_problem_handlers(app)
    add_security(app)
    app.add_middleware(LocalOnly, is_open=lambda: services.is_open and not allows_all(services))
    config = services.config
    app.add_middleware(
        BodyLimit, limits=config.limits, upload_path="/v1/ecgs", body_s=config.timeouts.body_s
    )
    app.add_middleware(
        Admission,
        most=config.deployments.ingress.max_ongoing_requests,
        on_refusal=lambda: services.metrics.overloads.labels("ingress").inc(),
    )
    app.add_middleware(RequestContext, observe=services.metrics.observe_request)
    return app


def allows_all(services: Services) -> bool:
    """Whether the operator chose to answer anybody."""
    return services.config.allow_unauthenticated


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services = app.state.services
    tasks = [
        asyncio.create_task(_expire_forever(services)),
        asyncio.create_task(_follow_versions(services)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def _follow_versions(services: Services) -> None:
    """Keep the evaluation of the versions in use among the metrics, as what drift is seen by."""
    parts = {"agent": "agent", "classification": "classifier"}
    while True:
        try:
            status = await services.backend.status()
            for part, kind in parts.items():
                if version := status[part].get("version"):
                    evaluation = status[part]["evaluation"]
                    services.metrics.observe_version(kind, version, evaluation)
        except Exception:
            _log.exception("the versions in use cannot be told")
        await asyncio.sleep(VERSIONS_PERIOD_S)


async def _expire_forever(services: Services) -> None:
    hours = services.config.retention_hours
    while hours is not None:
        try:
            expired = await run_in_threadpool(services.store.expire, hours * 3600)
        except Exception:
            # a store that is briefly unreachable must not end retention for good
            _log.exception("deleting expired ECGs failed")
        else:
            if expired:
                _log.info("deleted %d ECGs older than %g hours", expired, hours)
        await asyncio.sleep(EXPIRY_PERIOD_S)


def _add_service_routes(app: FastAPI) -> None:
    @app.get("/v1/models", tags=["Chat"])
    async def models(request: Request, _: AnyCaller) -> dict[str, Any]:
        """The agents that answer, in OpenAI's form, and what each is made of."""
        status = await services_of(request).backend.status()
        return {"object": "list", "data": _models(status)}

    @app.get("/v1/models/{model}", tags=["Chat"])
    async def model(model: str, request: Request, _: AnyCaller) -> dict[str, Any]:
        """One of the agents."""
        status = await services_of(request).backend.status()
        for found in _models(status):
            if found["id"] == model:
                return found
        raise ModelNotFoundError("there is no such model", hint="see GET /v1/models")

    @app.get("/healthz", tags=["Service"])
    async def healthz() -> dict[str, str]:
        """Whether the HTTP server runs."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["Service"])
    async def readyz(request: Request) -> Response:
        """Which parts are missing; 503 only if no answer is possible."""
        status = await services_of(request).backend.status()
        degraded = [name for name, part in status.items() if not part["ready"]]
        if not status["agent"]["ready"] and not status["measurement"]["ready"]:
            return problem(503, "no part of the service is ready", degraded=degraded, parts=status)
        return JSONResponse(
            {
                "status": "degraded" if degraded else "ready",
                "degraded": degraded,
                "parts": status,
            }
        )

    @app.get("/metrics", tags=["Service"])
    async def metrics(request: Request) -> Response:
        """Prometheus metrics of this ingress replica; they name no ECG and no caller."""
        recorded = services_of(request).metrics
        return Response(recorded.render(), media_type=recorded.content_type)


def _models(status: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    agent = status["agent"]
    return [
        {
            "id": name,
            "object": "model",
            "created": int(agent.get("loaded_at") or 0),
            "owned_by": "ecg-agent",
            "ecg_agent": {"agent": agent, "classifier": status["classification"]},
        }
        for name in agent.get("models", [])
    ]
