"""Errors as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import http
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ecg_agent_ray.errors import (
    EcgAgentError,
    InputError,
    ModelNotFoundError,
    RefusedError,
    ServiceError,
    ToolError,
    UnsupportedFormatError,
)
from ecg_agent_ray.serving.config import RETRY_AFTER_S

__all__ = ["PROBLEM_SCHEMA", "install_problem_handlers", "problem", "status_of"]

PROBLEM_MEDIA_TYPE = "application/problem+json"

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["about:blank"]},
        "title": {"type": "string", "examples": ["Not Found"]},
        "status": {"type": "integer", "examples": [404]},
        "detail": {"type": "string", "examples": ["there is no ECG with this id"]},
        "hint": {"type": "string", "description": "how to mend it"},
        "error": {"type": "string", "description": "name of the error class"},
        "request_id": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}

_log = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[EcgAgentError], int], ...] = (
    (UnsupportedFormatError, 415),
    (ModelNotFoundError, 404),
    (InputError, 422),
    (ToolError, 422),
    (RefusedError, 409),
    (ServiceError, 503),
)


def status_of(error: EcgAgentError) -> int:
    """The HTTP status of one of our errors; 500 for what the caller cannot mend."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def problem(
    status: int,
    detail: str,
    *,
    request_id: str = "",
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> JSONResponse:
    """One problem response; a 503 always carries Retry-After."""
    body = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    } | {key: value for key, value in extra.items() if value is not None}
    if request_id:
        body["request_id"] = request_id
    headers = dict(headers or {})
    if status == 503:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    return JSONResponse(body, status, headers, media_type=PROBLEM_MEDIA_TYPE)


def problem_of(error: EcgAgentError, request_id: str = "") -> JSONResponse:
    """One of our errors as a response."""
    return problem(
        status_of(error),
        error.message,
        request_id=request_id,
        hint=error.hint,
        error=type(error).__name__,
    )


def install_problem_handlers(app: FastAPI) -> None:
    """Turn every error of the app into a problem; details of unexpected ones stay in the log."""

    @app.exception_handler(EcgAgentError)
    async def _ours(request: Request, error: EcgAgentError) -> JSONResponse:
        return problem_of(error, _request_id(request))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return problem(
            error.status_code,
            str(error.detail),
            request_id=_request_id(request),
            headers=dict(error.headers or {}),
        )

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        # the offending input is left out: it may be a patient's words
        faults = [
            {"at": "/".join(str(part) for part in fault["loc"]), "message": fault["msg"]}
            for fault in error.errors()
        ]
        malformed = any(fault["type"] == "json_invalid" for fault in error.errors())
        return problem(
            400 if malformed else 422,
            "; ".join(f"{fault['at']}: {fault['message']}" for fault in faults),
            request_id=_request_id(request),
            errors=faults,
        )

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("unexpected %s at %s", type(error).__name__, request.url.path, exc_info=error)
        return problem(500, "the service failed on this request", request_id=_request_id(request))


def _request_id(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))
