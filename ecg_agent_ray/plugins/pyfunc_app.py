"""Ray Serve deployments that answer for MLflow models; any pyfunc will do.

A model's application speaks the protocol of MLflow's own scoring server, whose code it calls: POST
``/invocations`` (``dataframe_split``, ``dataframe_records``, ``instances``, ``inputs``, CSV,
Parquet, or an agent's JSON), GET ``/ping``, ``/health`` and ``/version``. With ``"stream": true`` a
model that has ``predict_stream`` answers in server-sent events. An endpoint's application spreads
its requests over the models' by weight.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

__all__ = ["JSON_TYPE", "MLflowEndpoint", "MLflowModel"]

JSON_TYPE = "application/json"
Answer = tuple[int, str, str]
"""HTTP status, media type, body."""


class MLflowModel:
    """One replica with the model loaded; ``about`` is kept for whoever asks what runs here."""

    def __init__(self, about: Mapping[str, Any], tracking_uri: str) -> None:
        import mlflow
        from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT

        mlflow.set_tracking_uri(tracking_uri)
        os.environ[_MLFLOW_IS_IN_SERVING_ENVIRONMENT.name] = "true"
        self._about = dict(about)
        self._model: Any = mlflow.pyfunc.load_model(about["model_uri"])
        self._input_schema = self._model.metadata.get_input_schema()

    def about(self) -> dict[str, Any]:
        return self._about

    async def score(self, body: bytes, content_type: str) -> Answer:
        """What the scoring server answers to a POST of ``body``."""
        return await asyncio.to_thread(self._score, body, content_type)

    async def __call__(self, request: Request) -> Response:
        path = request.url.path.removeprefix(request.scope.get("root_path", "")).rstrip("/")
        if path != "/invocations":
            return _other_paths(path)
        if request.method != "POST":
            return PlainTextResponse("use POST", 405)
        body = await request.body()
        content_type = request.headers.get("content-type", JSON_TYPE)
        if _wants_stream(body, content_type):
            return await self._streamed(body)
        status, media_type, text = await self.score(body, content_type)
        return Response(text, status, media_type=media_type)

    def _score(self, body: bytes, content_type: str) -> Answer:
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc import scoring_server

        data: Any = body.decode("utf-8", "replace") if content_type.startswith(JSON_TYPE) else body
        try:
            result = scoring_server.invocations(data, content_type, self._model, self._input_schema)
        except MlflowException as error:
            return error.get_http_status_code(), JSON_TYPE, error.serialize_as_json()
        return result.status, result.mimetype, result.response

    async def _streamed(self, body: bytes) -> Response:
        """Events from the first on; what is wrong before it is an error with its own status."""
        from mlflow.exceptions import MlflowException

        events, context = self._events(body), contextvars.copy_context()
        loop = asyncio.get_running_loop()

        def step() -> str | None:
            return next(events, None)

        async def pull() -> str | None:
            # MLflow sets a context variable around all events, so they need one context
            return await loop.run_in_executor(None, context.run, step)

        try:
            first = await pull()
        except MlflowException as error:
            status = error.get_http_status_code()
            return Response(error.serialize_as_json(), status, media_type=JSON_TYPE)

        async def all_events() -> AsyncIterator[str]:
            event = first
            while event is not None:
                yield event
                event = await pull()

        return StreamingResponse(all_events(), media_type="text/event-stream")

    def _events(self, body: bytes) -> Iterator[str]:
        from mlflow.pyfunc import scoring_server

        payload = json.loads(body)
        payload.pop("stream")
        parsed = scoring_server._parse_json_data(
            json.dumps(payload), self._model.metadata, self._input_schema
        )
        for event in self._model.predict_stream(parsed.data, params=parsed.params):
            plain = event if isinstance(event, dict | str) else event.model_dump(exclude_none=True)
            yield f"data: {json.dumps(plain)}\n\n"


class MLflowEndpoint:
    """Passes each request to one of several model applications, drawn by weight."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self._about = dict(about)
        self._traffic = {name: weight for name, weight in about["traffic"].items() if weight > 0}

    def about(self) -> dict[str, Any]:
        return self._about

    async def score(self, body: bytes, content_type: str) -> Answer:
        from ray import serve

        if not self._traffic:
            return 503, "text/plain", "no deployment of this endpoint takes traffic"
        (name,) = random.choices(list(self._traffic), list(self._traffic.values()))
        handle: Any = serve.get_app_handle(name)
        answer: Answer = await handle.score.remote(body, content_type)
        return answer

    async def __call__(self, request: Request) -> Response:
        path = request.url.path.removeprefix(request.scope.get("root_path", "")).rstrip("/")
        if path != "/invocations":
            return _other_paths(path)
        status, media_type, text = await self.score(
            await request.body(), request.headers.get("content-type", JSON_TYPE)
        )
        return Response(text, status, media_type=media_type)


def _other_paths(path: str) -> Response:
    if path in ("/ping", "/health"):
        return PlainTextResponse("\n")
    if path == "/version":
        from mlflow.version import VERSION

        return PlainTextResponse(VERSION)
    return JSONResponse({"error_code": "ENDPOINT_NOT_FOUND", "message": f"no {path} here"}, 404)


def _wants_stream(body: bytes, content_type: str) -> bool:
    if not content_type.startswith(JSON_TYPE) or b'"stream"' not in body:
        return False
    try:
        payload = json.loads(body)
    except ValueError:
        return False
    return isinstance(payload, dict) and payload.get("stream") is True
